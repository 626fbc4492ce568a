"""The Triton kernels of wkv4 against its reference in float64, beside the reference in the same dtype."""

import importlib

import pytest
import torch
from torch import Tensor

from basedbench.kernels import wkv4_step_triton as steps
from basedbench.kernels import wkv4_triton as kernels

module = importlib.import_module("basedbench.kernels.wkv4")  # the package has a function of that name
reference = module.reference

FLOOR = {torch.float32: 2e-7, torch.float16: 1e-4, torch.bfloat16: 1e-3}
# batch, length, channels: chunks that are full and not, one and several, several programs
SMALL = [(1, 1, 32), (1, 17, 40), (2, 34, 8)]


def inputs(randn, device, dtype, batch, length, channels, scale=1.0) -> list[Tensor]:
    """k, v, decays from .7 % of a sum a token to nearly all of it, u, and a state."""
    w = -torch.linspace(-5, 3, channels, dtype=torch.float64).exp()
    k, v = (scale * randn(batch, length, channels)), randn(batch, length, channels)
    sums = [randn(batch, channels), 1 + randn(batch, channels).abs(), randn(batch, channels)]
    state = torch.stack(sums, 1)
    return [*(x.to(device, dtype) for x in (k, v)), *(x.float().to(device) for x in (w, randn(channels), state))]


def results(function, parts, generator_seed=1) -> list[Tensor]:
    """Outputs and gradients; with a state among the parts of the last one too, by its sums."""
    leaves = [part.detach().requires_grad_() for part in parts]
    state = leaves[4] if len(leaves) == 5 else None
    y, last = function(*leaves[:4], initial_state=state, return_state=True)
    ends = [y] if state is None else [y, last]
    generator = torch.Generator().manual_seed(generator_seed)
    signs = [torch.randn(end.shape, generator=generator).sign().to(end) for end in ends]
    return [y.detach(), last.detach(), *torch.autograd.grad(ends, leaves, signs)]


def compare(relative_error, parts) -> None:
    mine, again, theirs = (results(f, parts) for f in (kernels.wkv4, kernels.wkv4, reference))
    exact = results(reference, [part.double() for part in parts])
    for index, (one, two, other, truth) in enumerate(zip(mine, again, theirs, exact, strict=True)):
        assert torch.equal(one, two)
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        floor = FLOOR[parts[0].dtype] if one.dtype == parts[0].dtype else FLOOR[torch.float32]
        limit = 2 * relative_error(other, truth) + floor
        assert relative_error(one, truth) <= limit, (index, relative_error(one, truth), limit)


@pytest.mark.parametrize("with_state", [pytest.param(False, marks=pytest.mark.slow), True])
@pytest.mark.parametrize("shape", SMALL, ids=str)
def test_outputs_states_and_gradients(randn, relative_error, device, dtypes, shape, with_state):
    for dtype in dtypes:
        compare(relative_error, inputs(randn, device, dtype, *shape)[: 5 if with_state else 4])


@pytest.mark.parametrize("scale", [100.0, 1e4])
def test_keys_whose_exponentials_overflow(randn, relative_error, device, scale):
    k, v, w, u, _ = inputs(randn, device, torch.float32, 2, 33, 32, scale)
    for one, exact in zip(
        results(kernels.wkv4, (k, v, w, u)), results(reference, [x.double() for x in (k, v, w, u)]), strict=True
    ):
        assert torch.isfinite(one).all()
        assert (one.double() - exact).norm() <= 1e-5 * exact.norm() + 1e-3 * (exact.norm() < 1e-2)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="too slow to interpret")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(3, 1000, 64), (2, 4097, 48), (256, 256, 64)], ids=str)
def test_long(randn, relative_error, device, dtype, shape):
    compare(relative_error, inputs(randn, device, dtype, *shape))


def test_prefix_and_rest_give_the_whole(randn, device):
    k, v, w, u, state = inputs(randn, device, torch.float32, 2, 40, 32, 3.0)
    whole, last = kernels.wkv4(k, v, w, u, initial_state=state, return_state=True)
    head, middle = kernels.wkv4(k[:, :23], v[:, :23], w, u, initial_state=state, return_state=True)
    tail, end = kernels.wkv4(k[:, 23:], v[:, 23:], w, u, initial_state=middle, return_state=True)
    torch.testing.assert_close(torch.cat([head, tail], 1), whole)
    torch.testing.assert_close(end, last)


def test_gradients_through_the_last_state_alone(randn, relative_error, device):
    parts = inputs(randn, device, torch.float32, 2, 20, 32)[:4]
    found = []
    for function, given in ((kernels.wkv4, parts), (reference, [part.double() for part in parts])):
        leaves = [part.detach().requires_grad_() for part in given]
        state = function(*leaves, return_state=True)[1]
        found.append(torch.autograd.grad(state[:, :2].sum(), leaves[:3]))
    for ours, exact in zip(*found, strict=True):
        assert relative_error(ours, exact) < 1e-6


def test_registration(randn, device):
    """Schema, fake tensors and autograd registration."""
    parts = [part.requires_grad_() for part in inputs(randn, device, torch.float32, 1, 17, 32)]
    torch.library.opcheck(kernels.forward, (*parts, True))
    torch.library.opcheck(kernels.forward, (*parts[:4], None, True))


def test_what_the_kernels_leave_to_the_reference(randn, device):
    k, v, w, u, state = inputs(randn, device, torch.float32, 1, 3, 16)
    assert kernels.unsupported(k, v, w, u, state) is None
    assert "float16" in kernels.unsupported(k.double(), v, w, u)
    assert "nothing" in kernels.unsupported(k[:0], v[:0], w, u)


@pytest.mark.parametrize("shape", [(1, 8), (3, 600), (2, 1024)], ids=str)
def test_decode_steps(randn, relative_error, device, dtypes, shape):
    """From no token on, some keys far above those before them and some far below; slices of wider rows."""
    batch, channels = shape
    for dtype in dtypes:
        k, v, w, u, _ = inputs(randn, device, dtype, batch, 5, channels, 8.0)
        wide = torch.cat([k, v], -1)
        mine, theirs = (module.empty_state(k[:, 0].float()) for _ in range(2))
        exact = module.empty_state(k[:, 0].double())
        for t in range(5):
            one = steps.step(*wide[:, t].chunk(2, -1), w, u, mine)
            other = module.step_reference(k[:, t], v[:, t], w, u, theirs)
            true = module.step_reference(*(x.double() for x in (k[:, t], v[:, t], w, u)), exact)
            assert one.dtype == dtype
            assert relative_error(one, true) <= 2 * relative_error(other, true) + FLOOR[dtype]
            assert relative_error(mine, exact) <= 2 * relative_error(theirs, exact) + FLOOR[torch.float32]


def test_decode_step_registration_and_what_it_leaves_to_the_reference(randn, device):
    k, v, w, u, state = inputs(randn, device, torch.float32, 2, 1, 40)
    given = k[:, 0], v[:, 0], w, u
    torch.library.opcheck(steps.step, (*given, state.clone()))
    assert steps.supported(*given, state)
    assert not steps.supported(*given, state.double())
    assert not steps.supported(*given, torch.cat([state, state], 2)[:, :, ::2])
    assert not steps.supported(k[:, 0].requires_grad_(), *given[1:], state)
    assert not steps.supported(*(x[:0] for x in given[:2]), w, u, state[:0])
