"""The kernels of `short_conv`, its gated forms and `split_conv` against float64, beside the references' errors."""

from importlib import import_module

import pytest
import torch

from basedbench import kernels

# The package re-exports functions under the names of these modules.
short_conv = import_module("basedbench.kernels.short_conv")
gated_conv = import_module("basedbench.kernels.gated_conv")
conv_gate = import_module("basedbench.kernels.conv_gate")
split_conv = import_module("basedbench.kernels.split_conv")
triton = import_module("basedbench.kernels.short_conv_triton")

# Beyond twice the reference's own error: what is left where the reference happens to be exact.
FLOOR = {torch.float32: 2e-7, torch.float16: 2e-4, torch.bfloat16: 2e-3}


def outputs_and_gradients(function, tensors, signs, **options):
    leaves = [None if x is None else x.detach().clone().requires_grad_() for x in tensors]
    y = function(*leaves, **options)
    given = [x for x in leaves if x is not None]
    return [y.detach(), *torch.autograd.grad((y.double() * signs.double()).sum(), given)]


def compare(randn, relative_error, function, reference, tensors, **options):
    shape = function(*tensors, **options).shape
    signs = randn(*shape).sign().to(tensors[0].device)
    exact_tensors = [None if x is None else x.double() for x in tensors]
    exact = outputs_and_gradients(reference, exact_tensors, signs, **options)
    expected = outputs_and_gradients(reference, tensors, signs, **options)
    ours = outputs_and_gradients(function, tensors, signs, **options)
    for mine, theirs, true in zip(ours, expected, exact, strict=True):
        assert mine.dtype == theirs.dtype
        assert relative_error(mine, true) <= 2 * relative_error(theirs, true) + FLOOR[mine.dtype]


def draw(randn, device, dtype, *shapes):
    return [randn(*shape).to(device, dtype) for shape in shapes]


@pytest.mark.parametrize(("taps", "activation"), [(1, None), (2, "silu"), (3, None), (4, "silu")])
@pytest.mark.parametrize(("batch", "length", "width"), [(3, 1, 48), (2, 17, 64), (5, 2, 112), (1, 40, 256)])
def test_short_conv(randn, relative_error, device, dtypes, batch, length, width, taps, activation):
    for dtype in dtypes:
        tensors = draw(randn, device, dtype, (batch, length, width), (width, taps), (width,))
        if taps == 2:
            tensors[2] = None
        compare(randn, relative_error, triton.short_conv, short_conv.reference, tensors, activation=activation)


@pytest.mark.parametrize("taps", [2, 3, 4])
@pytest.mark.parametrize(("batch", "length", "width"), [(3, 1, 48), (2, 17, 64), (5, 2, 112), (1, 40, 128)])
def test_gated_conv(randn, relative_error, device, dtypes, batch, length, width, taps):
    for dtype in dtypes:
        x = (batch, length, width)
        tensors = draw(randn, device, dtype, x, x, (width, taps), (width,), (width,))
        compare(randn, relative_error, triton.gated_conv, gated_conv.reference, tensors)


@pytest.mark.parametrize(("batch", "length", "width", "taps"), [(3, 1, 48, 4), (2, 17, 24, 3), (2, 34, 70, 2)])
def test_conv_gate(randn, relative_error, device, dtypes, batch, length, width, taps):
    for dtype in dtypes:
        tensors = draw(randn, device, dtype, (batch, length, 2 * width), (width, taps), (width,))
        tensors[2] = tensors[2] if taps > 2 else None
        compare(randn, relative_error, triton.conv_gate, conv_gate.reference, tensors)


@pytest.mark.parametrize("steps", [4, 8, 32])
@pytest.mark.parametrize("taps", [2, 4])
def test_segments_of_any_length_and_programs_that_take_several_tiles(
    randn, relative_error, device, monkeypatch, steps, taps
):
    monkeypatch.setattr(triton, "LONGEST", steps)
    monkeypatch.setattr(triton, "THREADS", 0)
    monkeypatch.setattr(triton, "PROGRAMS", 2)
    tensors = draw(randn, device, torch.float32, (3, 101, 70), (70, taps), (70,))
    compare(randn, relative_error, triton.short_conv, short_conv.reference, tensors, activation="silu")


@pytest.mark.parametrize(("length", "taps"), [(1, 4), (2, 3), (11, 2), (33, 4)])
def test_an_initial_state(randn, relative_error, device, dtypes, length, taps):
    for dtype in dtypes:
        tensors = draw(randn, device, dtype, (2, length, 40), (40, taps), (40,))
        state = randn(2, 40, taps - 1).to(device, dtype)
        for activation in (None, "silu"):
            options = {"activation": activation, "initial_state": state}
            compare(randn, relative_error, triton.short_conv, short_conv.reference, tensors, **options)
        x = torch.cat([tensors[0], tensors[0].flip(1)], dim=-1)
        y = triton.conv_gate(x, *tensors[1:], state)
        expected = conv_gate.reference(x, *tensors[1:], initial_state=state)
        torch.testing.assert_close(y, expected)


def sewn(function, widths, **options):
    """The parts that a function cuts, as one tensor: all but the first, which then has no gradient of its own."""

    def call(*tensors):
        parts = function(tensors[0], widths, *tensors[1:], **options)
        return torch.cat([part for index, part in enumerate(parts) if index != 0], dim=-1)

    return call


@pytest.mark.parametrize(
    ("widths", "start", "width", "more"),
    [
        ([32, 16, 32, 16, 16, 2], 32, 64, 6),
        ([48, 5, 48], 0, 53, 0),
        ([3, 40, 40, 7, 1], 43, 47, 0),
        ([64, 64], 64, 64, 16),
    ],
)
def test_split_conv(randn, relative_error, device, dtypes, widths, start, width, more):
    for dtype in dtypes:
        shapes = (2, 19, sum(widths) + more), (width, 4), (width,)
        tensors = draw(randn, device, dtype, *shapes)
        options = {"start": start, "activation": "silu"}
        functions = (sewn(one, widths, **options) for one in (triton.split_conv, split_conv.reference))
        compare(randn, relative_error, *functions, tensors)


def test_gradients_of_parts_may_lie_anywhere(randn, device):
    x, weight, bias = draw(randn, device, torch.float32, (2, 9, 40), (32, 3), (32,))
    wide = randn(2, 9, 96).to(device)
    upstream = [wide[..., ::2][..., :16], wide[..., 30:46], randn(9, 2, 8).to(device).transpose(0, 1)]
    found = []
    for function in (triton.split_conv, split_conv.reference):
        leaves = [part.clone().requires_grad_() for part in (x, weight, bias)]
        parts = function(leaves[0], [16, 16, 8], *leaves[1:], start=0, activation=None)
        found.append(torch.autograd.grad(parts, leaves, upstream))
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)


def test_a_thousand_tokens(randn, relative_error, device):
    tensors = draw(randn, device, torch.float32, (1, 1000, 32), (1, 1000, 32), (32, 3), (32,), (32,))
    compare(randn, relative_error, triton.gated_conv, gated_conv.reference, tensors)
    compare(
        randn, relative_error, triton.short_conv, short_conv.reference, [*tensors[:1], *tensors[2:4]], activation=None
    )


def test_half_precision_gate_of_autocast(randn, relative_error, device, dtypes):
    for dtype in dtypes[1:]:
        tensors = draw(randn, device, torch.float32, (2, 9, 32), (2, 9, 32), (32, 3), (32,), (32,))
        tensors[1] = tensors[1].to(dtype)
        compare(randn, relative_error, triton.gated_conv, gated_conv.reference, tensors)


def test_a_chunk_of_a_wider_tensor_and_a_transposed_one(randn, device):
    wide, weight, bias = draw(randn, device, torch.float32, (2, 9, 96), (48, 4), (48,))
    for view in (wide.chunk(2, -1)[1], wide[:, :, ::2], wide.chunk(2, -1)[0].transpose(0, 1), wide[:, :0, :48]):
        expected = short_conv.reference(view, weight, bias, activation="silu")
        torch.testing.assert_close(
            triton.short_conv(view, weight, bias, activation="silu"), expected, rtol=1e-4, atol=1e-5
        )


def test_nothing_is_read_beyond_the_sequences_and_everything_is_written(randn, device, monkeypatch):
    """Rows of NaN around the inputs, NaN in every new buffer."""
    new_empty, empty = torch.Tensor.new_empty, torch.empty
    monkeypatch.setattr(torch.Tensor, "new_empty", lambda *a, **k: new_empty(*a, **k).fill_(torch.nan))
    monkeypatch.setattr(torch, "empty", lambda *a, **k: empty(*a, **k).fill_(torch.nan))
    leaves = []
    for _ in range(2):
        padded = torch.full((7, 17, 48), torch.nan, device=device)
        padded[3:5] = randn(2, 17, 48)
        leaves.append(padded[3:5].requires_grad_())
    leaves += [x.requires_grad_() for x in draw(randn, device, torch.float32, (48, 3), (48,), (48,))]
    y = triton.gated_conv(*leaves)
    plain = [leaves[0], *leaves[2:4]]
    z = triton.short_conv(*plain, activation="silu")
    grads = [*torch.autograd.grad(y.sum(), leaves), *torch.autograd.grad(z.sum(), plain)]
    for x in (y, z, *grads):
        assert torch.isfinite(x).all()


@pytest.mark.parametrize("activation", [None, "silu"])
@pytest.mark.parametrize("taps", [1, 2, 3, 4])
def test_steps(randn, device, dtypes, taps, activation):
    for dtype in dtypes:
        x, weight, bias = draw(randn, device, dtype, (3, 6, 48), (48, taps), (48,))
        state, expected_state = (torch.zeros(3, 48, taps - 1, device=device, dtype=dtype) for _ in range(2))
        for t in range(6):
            y = triton.short_conv_step(x[:, t], weight, bias, state, activation=activation)
            expected = short_conv.reference_step(x[:, t], weight, bias, expected_state, activation=activation)
            torch.testing.assert_close(y, expected)
            assert torch.equal(state, expected_state)


def test_registration(randn, device):
    tensors = draw(randn, device, torch.float32, (2, 5, 16), (2, 5, 16), (16, 3), (16,), (16,))
    x, gate, weight, bias, gate_bias = (tensor.requires_grad_() for tensor in tensors)
    torch.library.opcheck(triton._convolution, (x, gate, weight, bias, gate_bias, None, False))
    torch.library.opcheck(triton._convolution, (x, gate, weight, bias, None, None, True))
    torch.library.opcheck(
        triton._convolution, (x, None, weight, None, None, torch.zeros(2, 16, 2, device=device), True)
    )
    with torch.no_grad():
        state = torch.zeros(2, 16, 2, device=device)
        arguments = (x[:, 0].detach(), weight.detach(), bias.detach(), state, True, False)
        torch.library.opcheck(triton._conv_step, arguments)
        wide = torch.zeros(2, 5, 24, device=device)
        dy = [torch.zeros(2, 5, width, device=device) for width in (4, 8, 8)]
        torch.library.opcheck(triton._split_backward, (dy, wide, weight.detach(), None, 4, True))


def test_the_public_functions_take_the_kernels_on_cuda(randn, device):
    x, gate, weight, bias, gate_bias = draw(randn, device, torch.float32, (2, 5, 16), (2, 5, 16), (16, 3), (16,), (16,))
    weight.requires_grad_()
    on_cuda = device.type == "cuda"
    pair, state = torch.cat([x, gate], dim=-1), torch.zeros(2, 16, 2, device=device)
    for y in (
        kernels.short_conv(x, weight, bias),
        kernels.short_conv(x, weight, bias, initial_state=state),
        kernels.gated_conv(x, gate, weight, bias, gate_bias),
        kernels.conv_gate(pair, weight, bias),
    ):
        assert ("basedbench_conv" in type(y.grad_fn).__name__) == on_cuda
    last = kernels.split_conv(pair, [16, 16], weight, bias, start=16)[1]
    assert ("SplitConv" in type(last.grad_fn).__name__) == on_cuda
    through_state = kernels.short_conv(x, weight, bias, initial_state=state.requires_grad_())
    assert "basedbench_conv" not in type(through_state.grad_fn).__name__
    y, state = kernels.short_conv(x, weight, bias, return_state=True)
    assert torch.equal(state, x[:, -2:].transpose(1, 2))
    state_of_one = kernels.short_conv(x[:, :1], weight, bias, return_state=True)[1]
    assert torch.equal(state_of_one[:, :, 1], x[:, 0])
    assert not state_of_one[:, :, 0].any()
    with torch.no_grad():
        torch.testing.assert_close(kernels.short_conv_step(x[:, 1], weight, bias, state_of_one), y[:, 1])


@pytest.mark.parametrize(
    ("batch", "width", "taps"), [(1, 48, 3), (3, 112, 2), (3, 70, 4), (3, 71, 4), (19, 134, 4), (9, 130, 3)]
)
def test_gated_steps(randn, relative_error, device, dtypes, batch, width, taps):
    """The decode step of conv_gate, its input a slice of something wider."""
    for dtype in dtypes:
        x, weight, bias = draw(randn, device, dtype, (batch, 6, 2 * width + 8), (width, taps), (width,))
        state, expected_state = (torch.zeros(batch, width, taps - 1, device=device, dtype=dtype) for _ in range(2))
        for t in range(6):
            token, given = x[:, t, 8:], bias if t else None
            exact = conv_gate.reference_step(
                token.double(), weight.double(), None if given is None else given.double(), state.double()
            )
            expected = conv_gate.reference_step(token, weight, given, expected_state)
            y = triton.conv_gate_step(token, weight, given, state)
            assert y.dtype == dtype
            assert relative_error(y, exact) <= 2 * relative_error(expected, exact) + FLOOR[dtype]
            assert torch.equal(state, expected_state)
