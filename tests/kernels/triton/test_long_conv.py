"""The kernels of `long_conv` and `gated_long_conv` against float64, beside the references in the same dtypes."""

from importlib import import_module

import pytest
import torch

from basedbench import kernels

# The package re-exports a function under the name of this module.
module = import_module("basedbench.kernels.long_conv")
triton = import_module("basedbench.kernels.long_conv_triton")

# Beyond twice the reference's own error: what is left where the reference happens to be exact.
FLOOR = {torch.float32: 3e-7, torch.float16: 2e-4, torch.bfloat16: 2e-3}


def outputs_and_gradients(function, tensors, signs, **options):
    leaves = [None if x is None else x.detach().clone().requires_grad_() for x in tensors]
    y = function(*leaves, **options)
    given = [x for x in leaves if x is not None]
    return [y.detach(), *torch.autograd.grad((y.double() * signs.double()).sum(), given)]


def compare(randn, relative_error, function, reference, tensors, shape, **options):
    signs = randn(*shape).sign().to(tensors[0].device)
    exact = outputs_and_gradients(reference, [None if x is None else x.double() for x in tensors], signs, **options)
    expected = outputs_and_gradients(reference, tensors, signs, **options)
    ours = outputs_and_gradients(function, tensors, signs, **options)
    for mine, theirs, true in zip(ours, expected, exact, strict=True):
        assert mine.dtype == theirs.dtype
        assert relative_error(mine, true) <= 2 * relative_error(theirs, true) + FLOOR[mine.dtype]


@pytest.mark.parametrize(
    ("batch", "length", "width", "groups", "reach"),
    [(3, 1, 48, 48, 1), (2, 17, 6, 3, 17), (4, 64, 32, 16, 64), (5, 40, 40, 40, 9), (1, 33, 8, 8, 50)],
)
def test_long_conv(randn, relative_error, device, dtypes, batch, length, width, groups, reach):
    """Ragged and whole tiles, shared filters, filters shorter and longer than the sequence."""
    taps, skip = (randn(*shape).float().to(device) for shape in [(reach, groups), (groups,)])
    for dtype in dtypes:
        x, own = randn(batch, length, width).to(device, dtype), None if dtype == torch.float16 else skip
        shape = (batch, length, width)
        compare(randn, relative_error, triton.long_conv, module.reference, [x, taps, own], shape)


@pytest.mark.parametrize(
    ("batch", "length", "heads", "channels", "shift", "order"),
    [(3, 17, 6, 1, 0, "kqv"), (3, 33, 5, 2, 7, "qkv"), (8, 32, 16, 2, 32, "qkv"), (2, 1, 40, 1, 3, "vqk")],
)
def test_gated_long_conv(randn, relative_error, device, dtypes, batch, length, heads, channels, shift, order):
    width = heads * channels
    shapes = [(length, heads), (heads,), *([(shift, width), (width,)] if shift else [])]
    filters = [randn(*shape).float().to(device) for shape in shapes]
    filters += [None] * (4 - len(filters))
    for dtype in dtypes:
        x = randn(batch, length, 3 * width).to(device, dtype)
        compare(
            randn, relative_error, triton.gated_long_conv, module.gated_reference, [x, *filters],
            (batch, length, width), order=order,
        )  # fmt: skip


@pytest.mark.parametrize("batch", [1, 3])
def test_one_token_of_tensors_that_have_time_first(randn, device, batch):
    """Torch calls (1,B,D).transpose(0, 1) contiguous, though B D numbers are from a token to the next."""
    filters = [randn(*shape).float().to(device) for shape in [(2, 8), (8,), (3, 8), (8,)]]
    for function, reference, width, given in (
        (triton.long_conv, module.reference, 8, filters[:2]),
        (lambda *x: triton.gated_long_conv(*x, order="qkv"), module.gated_reference, 24, filters),
    ):
        x, upper = randn(1, batch, width).float().to(device), randn(1, batch, 8).float().to(device).transpose(0, 1)
        found = []
        for one in (function, reference):
            leaves = [x.transpose(0, 1), *given]
            leaves = [part.detach().requires_grad_() for part in leaves]
            y = one(*leaves)
            found.append([y, *torch.autograd.grad(y, leaves, upper)])
        for mine, theirs in zip(*found, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


def test_gradients_of_a_filter_and_its_skip_are_not_the_same_memory(randn, device):
    """Who clips or adds up gradients changes them in place, one after the other."""
    x = randn(2, 5, 24).float().to(device)
    taps, skip, shift, shift_skip = (randn(*shape).float().to(device) for shape in [(4, 8), (8,), (3, 8), (8,)])
    filters = [part.requires_grad_() for part in (taps, skip, shift, shift_skip)]
    both = triton.gated_long_conv(x, *filters, order="qkv"), triton.long_conv(x[..., :8], taps, skip)
    for y, leaves in zip(both, (filters, filters[:2]), strict=True):
        found = torch.autograd.grad(y.sum(), leaves)
        assert len({gradient.untyped_storage().data_ptr() for gradient in found}) == len(leaves)


def test_the_filters_gradient_over_many_sequences_is_the_same_every_time(randn, relative_error, device, monkeypatch):
    """Programs take several sequences each, unevenly."""
    monkeypatch.setattr(triton, "PROGRAMS", 8)
    x, taps = randn(19, 20, 16).float().to(device), randn(20, 16).float().to(device)
    exact = outputs_and_gradients(module.reference, [x.double(), taps.double()], x.sign())
    ours, again = (outputs_and_gradients(triton.long_conv, [x, taps, None], x.sign()) for _ in range(2))
    for mine, repeated, true in zip(ours, again, exact, strict=True):
        assert torch.equal(mine, repeated)
        assert relative_error(mine, true) <= 5e-7


def test_a_part_of_a_wider_tensor_and_a_transposed_one(randn, device):
    wide, taps = randn(2, 9, 48).float().to(device), randn(9, 16).float().to(device)
    for view in (wide[..., 16:32], wide[..., ::3], wide[..., :16].transpose(0, 1), wide[:, :0, :16]):
        torch.testing.assert_close(triton.long_conv(view, taps, None), module.reference(view, taps))


def test_nothing_is_read_beyond_the_sequences_and_everything_is_written(randn, device, poisoned, monkeypatch):
    """Rows of NaN around the inputs, NaN in every new buffer."""
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *a, **k: empty(*a, **k).fill_(torch.nan))
    padded = torch.full((7, 19, 96), torch.nan, device=device)
    padded[3:5] = randn(2, 19, 96)
    filters = [randn(*shape).float().to(device) for shape in [(19, 16), (16,), (5, 32), (32,)]]
    leaves = [x.requires_grad_() for x in (padded[3:5], *filters)]
    y = triton.gated_long_conv(*leaves, order="qkv")
    for x in (y, *torch.autograd.grad(y.sum(), leaves)):
        assert torch.isfinite(x).all()


def test_registration(randn, device):
    tensors = [randn(*s).float().to(device).requires_grad_() for s in [(2, 5, 8), (7, 4), (4,)]]
    torch.library.opcheck(triton._long_conv, tuple(tensors))
    tensors = [randn(*s).float().to(device).requires_grad_() for s in [(2, 5, 24), (5, 4), (4,), (3, 8), (8,)]]
    torch.library.opcheck(triton._gated, (*tensors, "qkv", True))
    torch.library.opcheck(triton._gated, (*tensors[:2], None, None, None, "kqv", True))


def test_the_public_functions_take_the_kernels_on_cuda(randn, device):
    x, taps = (randn(*s).float().to(device).requires_grad_() for s in [(2, 5, 24), (5, 8)])
    on_cuda = device.type == "cuda"
    for y in (kernels.long_conv(x, taps), kernels.gated_long_conv(x, taps)):
        assert ("basedbench" in type(y.grad_fn).__name__) == on_cuda
    wide_heads = kernels.gated_long_conv(x, taps[:, :2])
    torch.testing.assert_close(wide_heads, module.gated_reference(x, taps[:, :2]), rtol=1e-5, atol=1e-5)
