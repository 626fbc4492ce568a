"""The Triton kernels of linear_attention and retention against float64, beside the reference in the same dtype."""

import importlib

import pytest
import torch
from torch import Tensor

from basedbench.kernels import linear_attention_triton as triton_form
from basedbench.kernels.linear_attention_step_triton import step
from basedbench.kernels.linear_attention_step_triton import unsupported as step_unsupported

from .conftest import errors, interpreted

# The package has functions of the modules' names.
linear = importlib.import_module("basedbench.kernels.linear_attention")
retained = importlib.import_module("basedbench.kernels.retention")

FLOOR = 3e-7
# States are float32 although the inputs are not, and their products have rounded factors.
COARSE = {torch.float16: 1e-5, torch.bfloat16: 4e-3}
MAPS = {"none": None, "pos_elu": linear.pos_elu, "relu": linear.relu, "square": linear.square}
NAMES = ("q", "k", "v", "state")

# length, heads, key width, value width: tiles that are full and not, one and several, padded widths.
NARROW = [(1, 2, 16, 16), (17, 2, 8, 24), (64, 1, 16, 64), (130, 2, 24, 48)]
WIDE = [(70, 1, 16, 136), (70, 1, 136, 24), (40, 1, 272, 16)]
ON_A_GPU = [
    (256, 1, 64, 64), (256, 1, 512, 512), (256, 1, 192, 320), (512, 2, 64, 64), (1000, 2, 128, 128),
    (1024, 1, 256, 64), (2048, 2, 64, 64), (2500, 1, 256, 256), (4097, 2, 64, 64), (4097, 2, 16, 128),
]  # fmt: skip

pytestmark = pytest.mark.usefixtures("poisoned")


@pytest.fixture
def walks(monkeypatch):
    """Short sequences too go the way of long ones."""
    monkeypatch.setattr(triton_form, "QUADRATIC_LENGTH", 0)


@pytest.fixture
def segments(monkeypatch):
    """A device that one program per head does not fill: the sequence is cut."""
    monkeypatch.setattr(triton_form, "FEWEST", 1)
    monkeypatch.setattr(triton_form, "SEGMENT", 64)


def inputs(randn, device, dtype, length, heads, keys, values, batch=1 if interpreted else 2) -> list[Tensor]:
    """q, k, v, slices of one projection as a mixer gives them, and a state (B,H,K,V+1)."""
    widths = [heads * keys, heads * keys, heads * values]
    parts = randn(batch, length, sum(widths)).to(device, dtype).split(widths, -1)
    state = randn(batch, heads, keys, values + 1).abs().float().to(device)
    return [*(part.unflatten(-1, (heads, -1)) for part in parts), state]


def positive(tensors) -> list[Tensor]:
    """Features that need no map."""
    q, k, *rest = tensors
    return [q.abs(), k.abs(), *rest]


def outputs_and_gradients(function, tensors, signs) -> list[Tensor]:
    """y and, with an initial state, the last one; gradients of both by everything."""
    leaves = [x.detach().requires_grad_() for x in tensors]
    with_state = len(tensors) == len(NAMES)
    found = function(*leaves[:3], initial_state=leaves[3] if with_state else None, return_state=with_state)
    outputs = found if with_state else (found,)
    signs = [sign.to(y.dtype) for sign, y in zip(signs, outputs, strict=False)]
    return [*(y.detach() for y in outputs), *torch.autograd.grad(outputs, leaves, signs)]


def compare(randn, tensors, ours, reference) -> None:
    dtype, device = tensors[2].dtype, tensors[2].device
    # Every token is in the last state, and few are in an output: neither gradient may hide the other one.
    scales = 1.0, 2.0 ** -tensors[2].shape[1].bit_length()
    signs = [scale * randn(*x.shape).sign().to(device) for scale, x in zip(scales, tensors[2:], strict=False)]
    found = outputs_and_gradients(ours, tensors, signs)
    again = outputs_and_gradients(ours, tensors, signs)
    same = outputs_and_gradients(reference, tensors, signs)
    exact = outputs_and_gradients(reference, [x.double() for x in tensors], signs)
    names = (("y", "last") if len(tensors) == len(NAMES) else ("y",)) + NAMES[: len(tensors)]
    for name, one, two, other, truth in zip(names, found, again, same, exact, strict=True):
        assert torch.equal(one, two), name
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        along_length = name not in ("last", "state")
        (error, worst), (theirs, their_worst) = errors(one, truth, along_length), errors(other, truth, along_length)
        floor = COARSE[dtype] if dtype in COARSE and one.dtype == torch.float32 else FLOOR
        assert error <= 2 * theirs + floor, (name, error, theirs)
        assert worst <= 3 * their_worst + floor, (name, worst, their_worst)


def compare_linear(randn, tensors, name="pos_elu") -> None:
    compare(
        randn,
        tensors,
        lambda *args, **options: triton_form.linear_attention(*args, feature_map=name, **options),
        lambda *args, **options: linear.reference(*args, feature_map=MAPS[name], **options),
    )


def compare_retention(randn, tensors) -> None:
    """Decays from nearly none to half of the state a token."""
    heads, device = tensors[0].shape[2], tensors[0].device
    log_decay = torch.linspace(-0.7, -0.01, heads, dtype=torch.float64, device=device)
    tensors = [*tensors[:3], *(state[..., :-1].mT for state in tensors[3:])]
    options = {"scale": 0.3}
    compare(
        randn,
        tensors,
        lambda *args, **more: triton_form.retention(*args, log_decay.float(), **options, **more),
        lambda *args, **more: retained.reference(*args, log_decay.float().to(args[0].dtype), **options, **more),
    )


@pytest.mark.parametrize("shape", [*NARROW, *WIDE], ids=str)
def test_by_blocks(randn, device, shape):
    compare_linear(randn, inputs(randn, device, torch.float32, *shape))


@pytest.mark.parametrize("shape", NARROW, ids=str)
def test_by_walks(randn, device, walks, shape):
    compare_linear(randn, inputs(randn, device, torch.float32, *shape))


@pytest.mark.parametrize("shape", [(100, 1, 24, 48), WIDE[1]], ids=str)
def test_by_blocks_in_segments(randn, device, segments, shape):
    tensors = inputs(randn, device, torch.float32, *shape)
    compare_linear(randn, tensors)
    compare_linear(randn, tensors[:3])


def test_by_walks_in_segments(randn, device, walks, segments):
    tensors = inputs(randn, device, torch.float32, 100, 1, 16, 24)
    compare_linear(randn, tensors)
    compare_linear(randn, tensors[:3])


@pytest.mark.parametrize("quadratic", [0, 256])
@pytest.mark.parametrize("name", ["none", "relu", "square"])
def test_other_maps(randn, device, monkeypatch, name, quadratic):
    monkeypatch.setattr(triton_form, "QUADRATIC_LENGTH", quadratic)
    tensors = inputs(randn, device, torch.float32, 70, 1, 24, 16)
    compare_linear(randn, positive(tensors) if name == "none" else tensors, name)


@pytest.mark.parametrize("quadratic", [0, 256])
def test_half_precision(randn, device, monkeypatch, quadratic):
    monkeypatch.setattr(triton_form, "QUADRATIC_LENGTH", quadratic)
    tensors = inputs(randn, device, torch.float16, 100, 1, 16, 24)
    compare_linear(randn, tensors)
    q, k, *rest = tensors
    compare_linear(randn, [q.float().exp(), k.float().exp(), *rest], "none")


@pytest.mark.parametrize("shape", [*NARROW[1:], WIDE[0]], ids=str)
def test_retention_by_blocks(randn, device, shape):
    compare_retention(randn, inputs(randn, device, torch.float32, *shape))


def test_retention_by_walks(randn, device, walks):
    compare_retention(randn, inputs(randn, device, torch.float32, *NARROW[3]))
    compare_retention(randn, inputs(randn, device, torch.float16, *NARROW[3])[:3])


@pytest.mark.parametrize("quadratic", [0, 256])
def test_retention_in_segments(randn, device, segments, monkeypatch, quadratic):
    monkeypatch.setattr(triton_form, "QUADRATIC_LENGTH", quadratic)
    compare_retention(randn, inputs(randn, device, torch.float32, 100, 2, 16, 24))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="too slow to interpret")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", ON_A_GPU, ids=str)
def test_long_and_wide(randn, device, dtype, shape):
    tensors = inputs(randn, device, dtype, *shape)
    compare_retention(randn, tensors)
    if dtype == torch.bfloat16 and shape[2] > triton_form.WHOLE:
        pytest.skip("left to the reference")
    compare_linear(randn, tensors)
    compare_linear(randn, tensors[:3])


@pytest.mark.parametrize("quadratic", [0, 256])
def test_gradients_through_the_last_state_alone(randn, relative_error, device, monkeypatch, quadratic):
    monkeypatch.setattr(triton_form, "QUADRATIC_LENGTH", quadratic)
    tensors = inputs(randn, device, torch.float32, 70, 2, 16, 24)[:3]
    found = []
    for function, options, parts in (
        (triton_form.linear_attention, {"feature_map": "pos_elu"}, tensors),
        (linear.reference, {}, [part.double() for part in tensors]),
    ):
        leaves = [part.detach().requires_grad_() for part in parts]
        state = function(*leaves, **options, return_state=True)[1]
        found.append(torch.autograd.grad(state.square().sum(), leaves[1:]))
    for ours, exact in zip(*found, strict=True):
        assert relative_error(ours, exact) < 1e-5


def test_large_norms_in_half_precision(randn, relative_error, device, walks):
    """Products and states pass 65504, the largest float16."""
    tensors = [(100 * x).to(torch.float16) for x in inputs(randn, device, torch.float32, 100, 2, 16, 24)[:3]]
    exact = linear.reference(*(x.double() for x in tensors))
    assert relative_error(triton_form.linear_attention(*tensors, feature_map="pos_elu"), exact) < 1e-3


def test_the_first_token_has_no_gradient_by_its_query(randn, device, dtypes, walks):
    """It attends to itself alone, whatever its query: two sums cancel that are not small."""
    for dtype in dtypes:
        leaves = [x.requires_grad_() for x in inputs(randn, device, dtype, 70, 1, 16, 32)[:3]]
        y = triton_form.linear_attention(*leaves, feature_map="pos_elu")
        gradient = torch.autograd.grad(y, leaves[0], torch.ones_like(y))[0].float()
        assert gradient[:, 0].norm() < 0.01 * gradient[:, 1:].norm(dim=-1).mean()


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize(("keys", "values"), [(16, 24), (64, 64), (40, 80), (300, 16)])
def test_decode_steps(randn, relative_error, device, name, keys, values):
    q, k, v, state = inputs(randn, device, torch.float32, 3, 2, keys, values)
    q, k = (q.abs(), k.abs()) if name == "none" else (q, k)
    exact_state = state.double()
    for t in range(3):
        token = q[:, t], k[:, t], v[:, t]
        y = step(*token, state, name)
        exact = linear.step_reference(*(x.double() for x in token), exact_state, feature_map=MAPS[name])
        assert relative_error(y, exact) < 1e-6
    assert relative_error(state, exact_state) < 1e-6


def test_operators_keep_torchs_rules(randn, device):
    """Schema, fake tensors and autograd registration."""
    q, k, v, state = (x.detach().requires_grad_() for x in inputs(randn, device, torch.float32, 40, 1, 16, 24))
    torch.library.opcheck(triton_form.forward, (q, k, v, None, state, "pos_elu", True, 1.0, True))
    rates = torch.tensor([-0.1, -0.2], device=device)
    torch.library.opcheck(triton_form.forward, (q, k, v, rates, None, "none", False, 0.5, False))
    token = (x.detach()[:, 0] for x in (q, k, v))
    torch.library.opcheck(step, (*token, state.detach(), "pos_elu"))


def test_what_the_kernels_leave_to_the_reference(randn, device):
    q, k, v, state = inputs(randn, device, torch.float32, 3, 2, 16, 24)
    refuse = triton_form.unsupported
    assert refuse(q, k, v, state) is None
    assert refuse(q, k, v.half()) is None
    assert "share" in refuse(q.half(), k.half(), v)
    assert "share" in refuse(q.double(), k.double(), v.double())
    assert "state" in refuse(q, k, v, state.double())
    assert "nothing" in refuse(q[:0], k[:0], v[:0])
    wide = q.repeat(1, 1, 1, 17).half().requires_grad_()
    assert "256" in refuse(wide, wide, v.half())
    assert refuse(wide, wide, v.half(), normalise=False) is None
    with torch.no_grad():
        assert refuse(wide, wide, v.half()) is None
    token = q[:, 0], k[:, 0], v[:, 0]
    assert step_unsupported(*token, state) is None
    assert "contiguous" in step_unsupported(*token, state.mT)
    assert "gradient" in step_unsupported(*token, state.requires_grad_())
