"""The selective scan against its recurrence, written as a loop over time and channels in float64."""

import sys

import pytest
import torch
from torch import Tensor

from basedbench.kernels import selective_scan, selective_scan_step

module = sys.modules["basedbench.kernels.selective_scan"]  # the package exports the function of the same name

# Relative error against float64 on the same (rounded) inputs: outputs and gradients.
TOLERANCE = {torch.float32: (5e-7, 1e-6), torch.float16: (4e-4, 4e-4), torch.bfloat16: (3e-3, 3e-3)}


def naive(u, delta, A, B, C, D=None, z=None, bias=None, softplus=False, state=None) -> tuple[Tensor, Tensor]:
    delta = delta if bias is None else delta + bias
    delta = (1 + delta.exp()).log() if softplus else delta
    state = torch.zeros(u.shape[0], *A.shape, dtype=u.dtype) if state is None else state
    outputs = []
    for t in range(u.shape[1]):
        decay = torch.einsum("bd,dn->bdn", delta[:, t], A).exp()
        state = decay * state + torch.einsum("bd,bn,bd->bdn", delta[:, t], B[:, t], u[:, t])
        y = torch.einsum("bn,bdn->bd", C[:, t], state)
        y = y if D is None else y + D * u[:, t]
        outputs.append(y if z is None else y * z[:, t] * z[:, t].sigmoid())
    return torch.stack(outputs, 1), state


def required(randn, length, channels=6, states=4, batch=2):
    """u, delta, A, B, C."""
    sequences = randn(batch, length, channels), 0.5 * randn(batch, length, channels).abs()
    return *sequences, -randn(channels, states).abs(), randn(batch, length, states), randn(batch, length, states)


def optional(randn, length, channels=6, states=4, batch=2):
    """D, z, the bias of delta, the initial state."""
    return randn(channels), randn(batch, length, channels), randn(channels), randn(batch, channels, states)


def full(u, delta, A, B, C, D, z, bias, state) -> tuple[Tensor, Tensor]:
    """Everything switched on."""
    return selective_scan(
        u,
        delta,
        A,
        B,
        C,
        D_D=D,
        z_BLD=z,
        delta_bias_D=bias,
        delta_softplus=True,
        initial_state=state,
        return_state=True,
    )


def naive_full(u, delta, A, B, C, D, z, bias, state) -> tuple[Tensor, Tensor]:
    return naive(u, delta, A, B, C, D, z, bias, True, state)


@pytest.fixture(params=[1, 5, 2**20], ids=["block of 1", "block of 5", "one block"])
def any_block(request, monkeypatch):
    """Blocks of one step, of five (which divide no length here), and one for the whole sequence."""
    monkeypatch.setattr(module, "_block_length", lambda x_LBD, states: min(request.param, x_LBD.shape[0]))


@pytest.mark.parametrize("length", [1, 17])
def test_everything_on_equals_the_loop(randn, gradients, any_block, length):
    inputs = *required(randn, length), *optional(randn, length)
    for ours, exact in zip(full(*inputs), naive_full(*inputs), strict=True):
        torch.testing.assert_close(ours, exact)
    for ours, exact in zip(gradients(full, *inputs), gradients(naive_full, *inputs), strict=True):
        torch.testing.assert_close(ours, exact)


def test_gradcheck(randn, any_block):
    sizes = {"channels": 2, "states": 3, "batch": 1}
    inputs = [x.requires_grad_() for x in (*required(randn, 6, **sizes), *optional(randn, 6, **sizes))]
    assert torch.autograd.gradcheck(full, inputs)


@pytest.mark.parametrize(("length", "states"), [(1, 8), (17, 16), (1000, 8)])
def test_everything_off_equals_the_loop(randn, length, states):
    inputs = required(randn, length, channels=48, states=states, batch=1)
    y, state = naive(*inputs)
    torch.testing.assert_close(selective_scan(*inputs), y)
    torch.testing.assert_close(selective_scan(*inputs, return_state=True)[1], state)


def test_prefix_and_rest_give_the_whole(randn):
    inputs = required(randn, 50)
    whole, last = selective_scan(*inputs, return_state=True)

    def cut(part):
        return [x if x.dim() == 2 else x[:, part] for x in inputs]

    head, state = selective_scan(*cut(slice(0, 33)), return_state=True)
    tail, end = selective_scan(*cut(slice(33, None)), initial_state=state, return_state=True)
    torch.testing.assert_close(torch.cat([head, tail], 1), whole)
    torch.testing.assert_close(end, last)


def test_steps_give_the_parallel_form(randn):
    u, delta, A, B, C, D, z, bias, state = *required(randn, 17), *optional(randn, 17)
    whole, last = full(u, delta, A, B, C, D, z, bias, state)
    options = {"D_D": D, "delta_bias_D": bias, "delta_softplus": True}
    steps = [
        selective_scan_step(u[:, t], delta[:, t], A, B[:, t], C[:, t], state, z_BD=z[:, t], **options)
        for t in range(17)
    ]
    torch.testing.assert_close(torch.stack(steps, 1), whole)
    torch.testing.assert_close(state, last)
    for rates, log_A in ((A, False), ((-A).log(), True)):
        bare = torch.zeros_like(state)
        y = selective_scan_step(u[:, 0], delta[:, 0], rates, B[:, 0], C[:, 0], bare, log_A=log_A)
        torch.testing.assert_close(y, selective_scan(u, delta, A, B, C)[:, 0])


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_error_of_each_dtype(randn, gradients, relative_error, dtype):
    inputs = tuple(x.to(dtype) for x in required(randn, 200))
    exact = tuple(x.double() for x in inputs)
    forward, backward = TOLERANCE[dtype]
    y, state = selective_scan(*inputs, return_state=True)
    assert y.dtype == dtype
    assert state.dtype == torch.float32
    assert relative_error(y, naive(*exact)[0]) < forward
    reference = gradients(lambda *x: naive(*x)[0], *exact)
    for ours, other in zip(gradients(selective_scan, *inputs), reference, strict=True):
        assert relative_error(ours, other) < backward


def test_large_norms_in_half_precision(randn, relative_error):
    """Products of delta u and B pass 65504; the output, C being small, does not."""
    u, delta, A, B, C = required(randn, 50)
    inputs = tuple(x.half() for x in (1000 * u, delta, A, 1000 * B, 1e-3 * C))
    assert relative_error(selective_scan(*inputs), naive(*(x.double() for x in inputs))[0]) < 1e-3
