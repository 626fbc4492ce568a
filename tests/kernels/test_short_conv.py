"""The short convolution against an explicit loop over taps, and against torch.nn.functional.conv1d."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from basedbench.kernels import short_conv, short_conv_step

# Relative error against float64 on the same (rounded) inputs: outputs and gradients.
TOLERANCE = {torch.float32: (5e-7, 1e-6), torch.float16: (4e-4, 4e-4), torch.bfloat16: (3e-3, 3e-3)}


def naive(x: Tensor, weight: Tensor, bias: Tensor | None, state: Tensor | None = None) -> Tensor:
    """Sum over taps, each reaching so many tokens back, into the state where the sequence begins."""
    taps, length = weight.shape[1], x.shape[1]
    state = x.new_zeros(x.shape[0], x.shape[2], taps - 1) if state is None else state
    outputs = []
    for t in range(length):
        y = x.new_zeros(x.shape[0], x.shape[2]) if bias is None else bias.expand(x.shape[0], -1)
        for back in range(taps):
            source = x[:, t - back] if back <= t else state[:, :, taps - 1 - (back - t)]
            y = y + weight[:, taps - 1 - back] * source
        outputs.append(y)
    return torch.stack(outputs, 1)


def library(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    padded = F.pad(x.transpose(1, 2), (weight.shape[1] - 1, 0))
    return F.conv1d(padded, weight.unsqueeze(1), bias, groups=x.shape[2]).transpose(1, 2)


def shapes(randn, length, taps, channels=6, batch=2):
    """x, weight, bias, state."""
    return (
        randn(batch, length, channels),
        randn(channels, taps),
        randn(channels),
        randn(batch, channels, taps - 1),
    )


@pytest.mark.parametrize("taps", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("length", [1, 2, 17, 1000])
def test_forward_equals_the_loop_and_conv1d(randn, length, taps):
    x, weight, bias, _ = shapes(randn, length, taps)
    if length < 100:
        torch.testing.assert_close(short_conv(x, weight, bias), naive(x, weight, bias))
        torch.testing.assert_close(short_conv(x, weight), naive(x, weight, None))
    torch.testing.assert_close(short_conv(x, weight, bias), library(x, weight, bias))
    expected = F.silu(library(x, weight, bias))
    torch.testing.assert_close(short_conv(x, weight, bias, activation="silu"), expected)


@pytest.mark.parametrize("taps", [2, 4])
@pytest.mark.parametrize("length", [1, 17])
def test_gradcheck_with_states(randn, length, taps):
    inputs = [x.requires_grad_() for x in shapes(randn, length, taps, channels=2)]

    def run(x, weight, bias, state):
        return short_conv(x, weight, bias, activation="silu", initial_state=state, return_state=True)

    assert torch.autograd.gradcheck(run, inputs)


@pytest.mark.parametrize("taps", [1, 2, 3, 4])
@pytest.mark.parametrize("length", [1, 2, 3, 17])
def test_states_hold_the_last_inputs_oldest_first(randn, length, taps):
    """Also where the sequence is shorter than the state."""
    x, weight, bias, state = shapes(randn, length, taps)
    y, last = short_conv(x, weight, bias, initial_state=state, return_state=True)
    torch.testing.assert_close(y, naive(x, weight, bias, state))
    seen = torch.cat([state.transpose(1, 2), x], 1)
    assert torch.equal(last, seen[:, seen.shape[1] - taps + 1 :].transpose(1, 2))
    _, first = short_conv(x, weight, bias, return_state=True)
    assert torch.equal(first, F.pad(x, (0, 0, taps - 1, 0))[:, length:].transpose(1, 2))


@pytest.mark.parametrize("taps", [1, 2, 4])
@pytest.mark.parametrize("activation", [None, "silu"])
def test_steps_give_the_parallel_form(randn, taps, activation):
    x, weight, bias, state = shapes(randn, 9, taps)
    whole, last = short_conv(x, weight, bias, activation=activation, initial_state=state, return_state=True)
    steps = [short_conv_step(x[:, t], weight, bias, state, activation=activation) for t in range(9)]
    torch.testing.assert_close(torch.stack(steps, 1), whole)
    assert torch.equal(state, last)
    zeros = torch.zeros_like(state)
    torch.testing.assert_close(short_conv_step(x[:, 0], weight, None, zeros), short_conv(x, weight)[:, 0])


def test_the_state_is_a_tensor_of_its_own(randn):
    """Writing to it, as steps do, must not reach the inputs of a backward still to come."""
    x, weight, bias, state = shapes(randn, 9, 2, channels=1)
    _, last = short_conv(x, weight, bias, initial_state=state, return_state=True)
    before = x.clone()
    last.fill_(0)
    assert torch.equal(x, before)
    assert last.is_contiguous()


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_error_of_each_dtype(randn, gradients, relative_error, dtype):
    inputs = tuple(x.to(dtype) for x in shapes(randn, 200, 4)[:3])
    exact = tuple(x.double() for x in inputs)
    forward, backward = TOLERANCE[dtype]
    y = short_conv(*inputs)
    assert y.dtype == dtype
    assert relative_error(y, library(*exact)) < forward
    for ours, other in zip(gradients(short_conv, *inputs), gradients(library, *exact), strict=True):
        assert relative_error(ours, other) < backward


def test_an_unknown_activation_is_refused(randn):
    x, weight, bias, state = shapes(randn, 4, 3)
    with pytest.raises(ValueError, match="activation must be None or 'silu', not 'relu'"):
        short_conv(x, weight, bias, activation="relu")
    before = state.clone()
    with pytest.raises(ValueError, match="activation"):
        short_conv_step(x[:, 0], weight, bias, state, activation="relu")
    assert torch.equal(state, before)
