"""The reference of `gated_conv` against torch.nn.functional.conv1d, and its counts."""

from importlib import import_module

import pytest
import torch
import torch.nn.functional as F

from basedbench.kernels import gated_conv

module = import_module("basedbench.kernels.gated_conv")


def formula(u, gate, weight, bias, gate_bias):
    padded = F.pad(u.transpose(1, 2), (weight.shape[1] - 1, 0))
    convolved = F.conv1d(padded, weight.unsqueeze(1), bias, groups=u.shape[2]).transpose(1, 2)
    return convolved * (gate + gate_bias) + u


@pytest.mark.parametrize("taps", [2, 3, 4, 7])
@pytest.mark.parametrize("length", [1, 2, 17])
def test_formula_and_gradients(randn, gradients, length, taps):
    inputs = randn(2, length, 6), randn(2, length, 6), randn(6, taps), randn(6), randn(6)
    torch.testing.assert_close(gated_conv(*inputs), formula(*inputs))
    torch.testing.assert_close(gradients(gated_conv, *inputs), gradients(formula, *inputs))


def test_a_half_precision_gate_leaves_the_stream_in_float32(randn):
    """What autocast brings: the gate's product is in half precision, its bias is not."""
    u, gate, weight, bias, gate_bias = (randn(*s).float() for s in [(2, 9, 6), (2, 9, 6), (6, 3), (6,), (6,)])
    gate = gate.bfloat16()
    y = gated_conv(u, gate, weight, bias, gate_bias)
    assert y.dtype == torch.float32
    torch.testing.assert_close(y, formula(u, gate.float(), weight, bias, gate_bias))


def test_counts():
    shape = {"batch": 2, "length": 100, "channels": 64, "taps": 3}
    assert module.flops(**shape) == 2 * 100 * 64 * 9
    assert module.bytes_moved(**shape) == 4 * (3 * 2 * 100 * 64 + 5 * 64)
    assert module.bytes_moved(**shape, backward=True) == 4 * (8 * 2 * 100 * 64 + 15 * 64)
