"""The reference of conv_gate: PyTorch's conv1d, steps, prefixes."""

import pytest
import torch
import torch.nn.functional as F

from basedbench.kernels import conv_gate, conv_gate_step
from basedbench.kernels.conv_gate import bytes_moved, flops


def by_conv1d(x, weight, bias):
    width, taps = weight.shape
    u, gate = x[..., :width].transpose(1, 2), x[..., width:]
    c = F.conv1d(F.pad(u, (taps - 1, 0)), weight.unsqueeze(1), bias, groups=width)
    return F.silu(c.transpose(1, 2)) * gate


@pytest.mark.parametrize("taps", [1, 3, 4, 6])
@pytest.mark.parametrize("with_bias", [True, False])
def test_forward_and_gradients(randn, gradients, relative_error, taps, with_bias):
    tensors = [randn(2, 9, 20), randn(10, taps)] + [randn(10)] * with_bias
    bias = tensors[2:] or [None]
    assert relative_error(conv_gate(*tensors), by_conv1d(*tensors[:2], *bias)) < 1e-13
    ours = gradients(conv_gate, *tensors)
    theirs = gradients(lambda x, w, b=None: by_conv1d(x, w, b), *tensors)
    for mine, other in zip(ours, theirs, strict=True):
        assert relative_error(mine, other) < 1e-12


@pytest.mark.parametrize("taps", [1, 3])
def test_steps_and_prefixes_give_the_whole(randn, taps):
    x, weight, bias = randn(2, 8, 20), randn(10, taps), randn(10)
    whole, last = conv_gate(x, weight, bias, return_state=True)
    before, state = conv_gate(x[:, :3], weight, bias, return_state=True)
    after, continued = conv_gate(x[:, 3:], weight, bias, initial_state=state, return_state=True)
    torch.testing.assert_close(torch.cat([before, after], 1), whole)
    assert torch.equal(continued, last)
    for t in range(3, 8):
        torch.testing.assert_close(conv_gate_step(x[:, t], weight, bias, state), whole[:, t])
    assert torch.equal(state, last)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float16, 4e-4), (torch.bfloat16, 3e-3)])
def test_half_precision_is_rounded_once(randn, relative_error, dtype, bound):
    x, weight = randn(2, 30, 64).to(dtype), randn(32, 3).to(dtype)
    y, state = conv_gate(x, weight, return_state=True)
    assert y.dtype == state.dtype == dtype
    assert relative_error(y, conv_gate(x.double(), weight.double())) < bound
    step = conv_gate_step(x[:, 0], weight, None, torch.zeros(2, 32, 2, dtype=dtype))
    assert torch.equal(step, y[:, 0])


def test_costs():
    shape = {"batch": 2, "channels": 8, "taps": 3}
    assert flops(**shape, length=5) == 2 * 5 * 8 * 7
    assert bytes_moved(**shape, length=5) == 2 * (2 * 5 * 8 * 3 + 8 * 4)
    assert bytes_moved(**shape, length=1, state=True) == 2 * (2 * 8 * 3 + 8 * 4 + 2 * 2 * 8 * 2)
