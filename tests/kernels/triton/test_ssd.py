"""The Triton kernels of ssd against float64, beside the reference in the same dtype."""

import importlib

import pytest
import torch
from torch import Tensor

from basedbench.kernels import ssd_plan, ssd_walk
from basedbench.kernels import ssd_triton as triton_form
from basedbench.kernels.ssd_step_triton import step
from basedbench.kernels.ssd_step_triton import unsupported as step_unsupported

from .conftest import errors, interpreted

# The package has a function of the module's name.
reference = importlib.import_module("basedbench.kernels.ssd").reference
step_reference = importlib.import_module("basedbench.kernels.ssd").step_reference

FLOOR = 2e-6
# What is float32 although the inputs are not: states, gradients of parameters. Their products have rounded factors.
COARSE = {torch.float16: 1.5e-3, torch.bfloat16: 1e-2}
NAMES = ("x", "dt", "A", "B", "C", "D", "z", "bias", "state")

# length, heads, groups, head width, states: chunks that are full and not, one and several, padded widths.
SMALL = [
    (1, 2, 1, 16, 8), (17, 4, 2, 24, 12), (64, 2, 1, 64, 16), (130, 2, 1, 16, 24), (70, 1, 1, 80, 16),
    (100, 2, 2, 32, 64), (40, 1, 1, 16, 130),
]  # fmt: skip
ON_A_GPU = [
    (256, 4, 1, 64, 8), (256, 8, 1, 64, 16), (256, 4, 1, 64, 24), (1000, 4, 2, 64, 64), (4097, 2, 1, 64, 128),
    (1000, 2, 1, 64, 256), (8192, 2, 1, 64, 128),
]  # fmt: skip


@pytest.fixture(autouse=True)
def poisoned_memory(device):
    """Freed memory full of NaN: what is read before it is written shows."""
    freed = [torch.full((size,), float("nan"), device=device) for size in (1 << 10, 1 << 16, 1 << 22)]
    del freed


def inputs(randn, device, dtype, length, heads, groups, width, states, batch=1 if interpreted else 2) -> list[Tensor]:
    """In the order of NAMES; x, B, C, as a mixer gives them, slices of one projection, and dt one of another."""
    widths = [heads * width, groups * states, groups * states]
    x, B, C = (part for part in randn(batch, length, sum(widths)).to(device, dtype).split(widths, -1))
    dt = randn(batch, length, 3 * heads).to(device, dtype)[..., heads : 2 * heads]
    keys = [part.unflatten(-1, (groups, states)) for part in (B, C)]
    required = [x.unflatten(-1, (heads, width)), dt, (-randn(heads).abs() - 0.1).float().to(device), *keys]
    gate = randn(batch, length, heads, width).to(device, dtype)
    state = randn(batch, heads, width, states).float().to(device)
    return [*required, randn(heads).float().to(device), gate, randn(heads).float().to(device), state]


def call(function, tensors, *, softplus=True) -> tuple[Tensor, ...]:
    options = dict(zip(("D_H", "z_BLHP", "dt_bias_H", "initial_state"), tensors[5:], strict=False))
    # Bare steps must be small and positive.
    dt = tensors[1] if softplus else 0.1 * tensors[1].abs()
    with_state = len(tensors) == len(NAMES)
    found = function(
        tensors[0], dt, *tensors[2:5], **options, dt_softplus=softplus, return_state=with_state
    )  # fmt: skip
    return found if with_state else (found,)


def outputs_and_gradients(function, tensors, signs, softplus=True) -> list[Tensor]:
    leaves = [x.detach().requires_grad_() for x in tensors]
    outputs = call(function, leaves, softplus=softplus)
    signs = [sign.to(y.dtype) for sign, y in zip(signs, outputs, strict=False)]
    return [*(y.detach() for y in outputs), *torch.autograd.grad(outputs, leaves, signs)]


def compare(randn, tensors, *, softplus=True) -> None:
    dtype, device = tensors[0].dtype, tensors[0].device
    shapes = [tensors[0].shape, (*tensors[0].shape[:1], *tensors[0].shape[2:], tensors[3].shape[-1])]
    signs = [randn(*shape).sign().to(device) for shape in shapes]
    ours = outputs_and_gradients(triton_form.ssd, tensors, signs, softplus)
    again = outputs_and_gradients(triton_form.ssd, tensors, signs, softplus)
    same = outputs_and_gradients(reference, tensors, signs, softplus)
    exact = outputs_and_gradients(reference, [x.double() for x in tensors], signs, softplus)
    names = (("y", "last") if len(tensors) == len(NAMES) else ("y",)) + NAMES[: len(tensors)]
    for name, one, two, other, truth in zip(names, ours, again, same, exact, strict=True):
        assert torch.equal(one, two), name
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        along_length = name in ("y", "x", "dt", "B", "C", "z")
        (error, worst), (theirs, their_worst) = errors(one, truth, along_length), errors(other, truth, along_length)
        # Gradients by A and the bias are sums that nearly cancel: the order of additions shows.
        floor = FLOOR if along_length else 1e-4
        floor = COARSE[dtype] if dtype in COARSE and one.dtype == torch.float32 else floor
        assert error <= 2 * theirs + floor, (name, error, theirs)
        assert worst <= 3 * their_worst + floor, (name, worst, their_worst)


@pytest.mark.parametrize("shape", SMALL)
def test_outputs_states_and_gradients(randn, device, shape):
    compare(randn, inputs(randn, device, torch.float32, *shape))


@pytest.mark.parametrize("shape", SMALL[:4])
def test_without_options(randn, device, shape):
    compare(randn, inputs(randn, device, torch.float32, *shape)[:5])


def test_without_softplus(randn, device):
    compare(randn, inputs(randn, device, torch.float32, 70, 2, 1, 16, 8)[:6], softplus=False)


@pytest.mark.parametrize("shape", [SMALL[3], SMALL[5]])
def test_half_precision(randn, device, shape):
    compare(randn, inputs(randn, device, torch.float16, *shape))


@pytest.mark.parametrize("shape", [(200, 2, 1, 16, 8), (130, 2, 2, 16, 64)])
def test_segments(randn, device, monkeypatch, shape):
    """A device that one program per head does not fill: the sequence is cut."""
    monkeypatch.setattr(ssd_plan, "SEGMENT", 1)
    tensors = inputs(randn, device, torch.float32, *shape)
    compare(randn, tensors)
    compare(randn, tensors[:5])


@pytest.fixture
def walks(monkeypatch):
    """As if there were so many sequences that a warp each fills the device."""
    monkeypatch.setattr(ssd_plan, "WALKS", 1)


# One chunk and several, full and not; groups of several heads and of one; padded widths.
WALKED = [(1, 2, 1, 16, 8), (17, 4, 2, 24, 12), (64, 2, 1, 64, 16), (50, 2, 2, 16, 24)]


@pytest.mark.parametrize("count", [5, pytest.param(6, marks=pytest.mark.slow), 9])
@pytest.mark.parametrize("shape", WALKED)
def test_walks(randn, device, walks, shape, count):
    compare(randn, inputs(randn, device, torch.float32, *shape)[:count])


@pytest.mark.parametrize("shape", [(50, 2, 1, 16, 8), (40, 2, 1, 64, 24)])
def test_walks_in_half_precision(randn, device, dtypes, walks, shape):
    for dtype in dtypes[1:]:
        compare(randn, inputs(randn, device, dtype, *shape))


@pytest.mark.parametrize("size", [pytest.param(1.0, marks=pytest.mark.slow), 1e-9, 1e12])
def test_heads_add_to_keys_in_half_precision(randn, relative_error, device, walks, monkeypatch, size):
    """What a walk leaves of each head in 16 bits is as good as those, however small or large gradients are."""
    tensors = inputs(randn, device, torch.float32, 50, 4, 2, 16, 24)
    signs = [size * randn(*tensors[0].shape).to(device), size * randn(*tensors[8].shape).to(device)]
    exact = outputs_and_gradients(triton_form.ssd, tensors, signs)
    monkeypatch.setattr(ssd_walk, "HALVED", ("tf32", "tf32x3"))
    halved = outputs_and_gradients(triton_form.ssd, tensors, signs)
    for name, one, other in zip(("y", "last", *NAMES), halved, exact, strict=True):
        assert torch.equal(one, other) == (name not in ("B", "C")), name
        assert relative_error(one, other) < 3e-4, name


def test_walks_of_strong_decays_and_bare_steps(randn, device, walks):
    x, dt, A, B, C, D = inputs(randn, device, torch.float32, 50, 2, 1, 16, 8)[:6]
    compare(randn, [x, dt + 1, 20 * A - 1, B, C])
    compare(randn, [x, dt, A, B, C, D], softplus=False)


def test_a_walk_back_through_the_last_state_alone(randn, relative_error, device, walks):
    state_gradients(randn, relative_error, device)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="too slow to interpret")
@pytest.mark.parametrize("options", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [*ON_A_GPU, (1000, 2, 1, 128, 128), (1000, 2, 1, 64, 256)])
def test_long_and_wide(randn, device, dtype, shape, options):
    if shape[3] * shape[4] > 8192 and dtype == torch.float32:
        pytest.skip("left to the reference")
    compare(randn, inputs(randn, device, dtype, *shape)[: 9 if options else 8 if shape[0] == 256 else 5])


def test_strong_decays_neither_overflow_nor_spoil_gradients(randn, device):
    x, dt, A, B, C = inputs(randn, device, torch.float32, 130, 2, 1, 16, 8)[:5]
    compare(randn, [x, dt + 1, 20 * A - 1, B, C])


def test_prefix_and_rest_give_the_whole(randn, relative_error, device):
    x, dt, A, B, C = inputs(randn, device, torch.float32, 150, 2, 1, 16, 8)[:5]
    whole, last = triton_form.ssd(x, dt, A, B, C, dt_softplus=True, return_state=True)
    parts = [[part[:, rows] for part in (x, dt, B, C)] for rows in (slice(70), slice(70, None))]
    head, state = triton_form.ssd(*parts[0][:2], A, *parts[0][2:], dt_softplus=True, return_state=True)
    tail, end = triton_form.ssd(
        *parts[1][:2], A, *parts[1][2:], dt_softplus=True, initial_state=state, return_state=True
    )  # fmt: skip
    assert relative_error(torch.cat([head, tail], 1), whole.double()) < 1e-6
    assert relative_error(end, last.double()) < 1e-6


def test_large_norms_in_half_precision(randn, relative_error, device):
    """Products and states pass 65504, the largest float16."""
    x, dt, A, B, C = inputs(randn, device, torch.float16, 100, 2, 1, 16, 8)[:5]
    tensors = 1000 * x, dt, A, 1000 * B, 1e-3 * C
    exact = reference(*(part.double() for part in tensors), dt_softplus=True)
    assert relative_error(triton_form.ssd(*tensors, dt_softplus=True), exact) < 1e-3


def test_gradients_through_the_last_state_alone(randn, relative_error, device):
    state_gradients(randn, relative_error, device)


def state_gradients(randn, relative_error, device) -> None:
    tensors = inputs(randn, device, torch.float32, 70, 2, 1, 16, 8)[:5]
    found = []
    for function, parts in ((triton_form.ssd, tensors), (reference, [part.double() for part in tensors])):
        leaves = [part.detach().requires_grad_() for part in parts]
        state = function(*leaves, dt_softplus=True, return_state=True)[1]
        found.append(torch.autograd.grad(state.sum(), leaves[:4]))
    for ours, exact in zip(*found, strict=True):
        assert relative_error(ours, exact) < 1e-5


@pytest.mark.parametrize(("heads", "groups", "width", "states"), [(4, 2, 16, 8), (2, 1, 80, 24), (2, 1, 64, 128)])
def test_decode_steps(randn, relative_error, device, heads, groups, width, states):
    x, dt, A, B, C, D, z, bias, state = inputs(randn, device, torch.float32, 3, heads, groups, width, states)
    exact_state = state.double()
    more = {"D_H": D, "dt_bias_H": bias, "dt_softplus": True}
    for t in range(3):
        token = x[:, t], dt[:, t], A, B[:, t], C[:, t]
        y = step(*token, state, D, z[:, t], bias, True)
        exact_more = {name: part.double() if isinstance(part, Tensor) else part for name, part in more.items()}
        exact_token = (part.double() for part in token)
        exact = step_reference(*exact_token, exact_state, z_BHP=z[:, t].double(), **exact_more)
        assert relative_error(y, exact) < 1e-6
    assert relative_error(state, exact_state) < 1e-6
    exact = step_reference(*(part.double() for part in token), torch.zeros_like(exact_state))
    for rates, log_A in ((A, False), ((-A).log(), True)):
        y = step(*token[:2], rates, *token[3:], torch.zeros_like(state), None, None, None, False, log_A)
        assert relative_error(y, exact) < 1e-6


def test_operators_keep_torchs_rules(randn, device, monkeypatch):
    """Schema, fake tensors and autograd registration."""
    tensors = [part.detach().requires_grad_() for part in inputs(randn, device, torch.float32, 70, 2, 1, 16, 8)]
    torch.library.opcheck(triton_form.forward, (*tensors, True, True, True))
    monkeypatch.setattr(ssd_plan, "WALKS", 1)
    torch.library.opcheck(triton_form.forward, (*tensors, True, True, True))
    x, dt, A, B, C, D, z, bias, state = (part.detach() for part in tensors)
    token = x[:, 0], dt[:, 0], A, B[:, 0], C[:, 0]
    torch.library.opcheck(step, (*token, state, D, z[:, 0], bias, True))


def test_what_the_kernels_leave_to_the_reference(randn, device):
    x, dt, A, B, C, D, z, bias, state = inputs(randn, device, torch.float32, 3, 4, 2, 16, 8)
    refuse = triton_form.unsupported
    assert refuse(x, dt, A, B, C, D, bias, state, z=z) is None
    assert "share" in refuse(x, dt, A, B.half(), C)
    assert "float16" in refuse(x, dt.double(), A, B, C)
    assert "head width" in refuse(x.repeat(1, 1, 1, 9)[..., :80], dt, A, B, C)
    assert "states" in refuse(x, dt, A, B.repeat(1, 1, 1, 33), C)
    assert "groups" in refuse(x[:, :, :3], dt, A, B, C)
    assert "nothing" in refuse(x[:0], dt, A, B, C)
    token = x[:, 0], dt[:, 0], A, B[:, 0], C[:, 0]
    assert step_unsupported(*token, state, D, None, bias) is None
    assert "contiguous" in step_unsupported(*token, state.mT)
    assert "gradient" in step_unsupported(*token, state.requires_grad_())
