"""RWKV-4's weighted mean against its sum over all earlier tokens, in float64."""

import pytest
import torch
from torch import Tensor

from basedbench.kernels import wkv4, wkv4_step
from basedbench.kernels.wkv4 import empty_state

LENGTHS = (1, 2, 3, 17, 64, 100, 257)
# Relative error against float64 on the same (rounded) inputs: outputs and gradients.
TOLERANCE = {torch.float32: (1e-6, 2e-6), torch.float16: (4e-4, 4e-4), torch.bfloat16: (3e-3, 3e-3)}


def naive(k: Tensor, v: Tensor, w: Tensor, u: Tensor) -> Tensor:
    outputs = []
    for t in range(k.shape[1]):
        ages = t - 1 - torch.arange(t, dtype=k.dtype)
        exponents = torch.cat([k[:, :t] + ages[:, None] * w, (u + k[:, t]).unsqueeze(1)], 1)
        outputs.append((exponents.softmax(1) * v[:, : t + 1]).sum(1))
    return torch.stack(outputs, 1) + 0 * w.sum()  # w counts from the third token on


def inputs_of(randn, length, channels=6, batch=2, scale=1.0):
    """k of size `scale`, v, decays from .7 % of a sum a token to nearly all of it, and u."""
    w = -torch.linspace(-5, 3, channels, dtype=torch.float64).exp()
    return scale * randn(batch, length, channels), randn(batch, length, channels), w, randn(channels)


def value(state: Tensor) -> Tensor:
    """The two sums that a state stands for."""
    return state[:, :2] * state[:, 2:].exp()


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("scale", [1.0, 1000.0])
def test_outputs_and_gradients_equal_the_sum(randn, gradients, length, scale):
    """Keys of a thousand: their exponentials are infinite in any precision."""
    inputs = inputs_of(randn, length, scale=scale)
    torch.testing.assert_close(wkv4(*inputs), naive(*inputs))
    for ours, exact in zip(gradients(wkv4, *inputs), gradients(naive, *inputs), strict=True):
        torch.testing.assert_close(ours, exact)


@pytest.mark.parametrize("length", LENGTHS)
def test_the_state_stands_for_the_sums(randn, length):
    k, v, w, u = inputs_of(randn, length)
    _, state = wkv4(k, v, w, u, return_state=True)
    ages = length - 1 - torch.arange(length, dtype=torch.float64)
    exponents = k + ages[:, None] * w
    exact = torch.stack([(exponents.exp() * v).sum(1), exponents.exp().sum(1)], 1)
    torch.testing.assert_close(value(state), exact)
    torch.testing.assert_close(state[:, 2], exponents.amax(1))


@pytest.mark.parametrize("length", [1, 2, 5, 8])
def test_gradcheck_with_states(randn, length):
    k, v, w, u = inputs_of(randn, length, channels=2)
    state = torch.stack([randn(2, 2), 1 + randn(2, 2).abs(), randn(2, 2)], 1)

    def run(k, v, w, u, state):
        y, last = wkv4(k, v, w, u, initial_state=state, return_state=True)
        return y, value(last)  # how the sums are split between factor and exponent has no gradient

    assert torch.autograd.gradcheck(run, [x.requires_grad_() for x in (k, v, w, u, state)])


def test_prefix_and_rest_give_the_whole_and_so_do_steps(randn):
    k, v, w, u = inputs_of(randn, 100, scale=10)
    whole, last = wkv4(k, v, w, u, return_state=True)
    head, state = wkv4(k[:, :70], v[:, :70], w, u, return_state=True)
    tail, end = wkv4(k[:, 70:], v[:, 70:], w, u, initial_state=state, return_state=True)
    torch.testing.assert_close(torch.cat([head, tail], 1), whole)
    torch.testing.assert_close(end, last)
    for start, carried in ((70, state), (0, empty_state(k[:, 0]))):
        steps = [wkv4_step(k[:, t], v[:, t], w, u, carried) for t in range(start, 100)]
        torch.testing.assert_close(torch.stack(steps, 1), whole[:, start:])
        torch.testing.assert_close(carried, last)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("length", [17, 257])
def test_error_of_each_dtype(randn, gradients, relative_error, dtype, length):
    inputs = tuple(x.to(dtype) for x in inputs_of(randn, length))
    exact = tuple(x.double() for x in inputs)
    forward, backward = TOLERANCE[dtype]
    y, state = wkv4(*inputs, return_state=True)
    assert y.dtype == dtype
    assert state.dtype == torch.float32
    assert relative_error(y, naive(*exact)) < forward
    for ours, right in zip(gradients(wkv4, *inputs), gradients(naive, *exact), strict=True):
        assert relative_error(ours, right) < backward


def test_in_float32_large_keys_and_strong_decays_leave_everything_finite(randn, gradients):
    k, v, w, u = (x.float() for x in inputs_of(randn, 300, scale=1e4))
    for result in (wkv4(k, v, 1e3 * w, u), *gradients(wkv4, k, v, 1e3 * w, u)):
        assert torch.isfinite(result).all()


def test_a_bonus_of_plus_and_minus_infinity(randn):
    """The current token alone, and without it the mean of the earlier ones: with decay, nearly the last one."""
    k, v, w, u = inputs_of(randn, 20)
    torch.testing.assert_close(wkv4(k, v, w, u + 1e4), v)
    mean = wkv4(torch.zeros_like(k), v, 0 * w, u - 1e4)[:, 1:]
    counts = torch.arange(1, 20, dtype=torch.float64)[:, None]
    torch.testing.assert_close(mean, v.cumsum(1)[:, :-1] / counts)
