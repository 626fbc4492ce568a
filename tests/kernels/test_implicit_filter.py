"""Hyena's filter against its network, position by position."""

import math
from importlib import import_module

import pytest
import torch

from basedbench.kernels import implicit_filter

module = import_module("basedbench.kernels.implicit_filter")  # the package re-exports a function under its name


def parameters(randn, rows, features, units, channels):
    hidden = [x for width in (features, units, units) for x in (randn(units, width), randn(units))]
    return randn(rows, features), hidden, 1 + 0.2 * randn(units), randn(channels, units)


@pytest.mark.parametrize(("rows", "length", "channels"), [(20, 20, 6), (20, 7, 1), (2, 1, 3)])
def test_is_the_network_damped(randn, rows, length, channels):
    features, hidden, frequency, out = parameters(randn, rows, 3, 5, channels)
    taps = implicit_filter(features, hidden, frequency, out, length=length, slowest=2.0, fastest=9.0)
    assert taps.shape == (length, channels)
    for t in range(length):
        h = features[t]
        for weight, bias in zip(hidden[::2], hidden[1::2], strict=True):
            h = torch.sin(frequency * (weight @ h + bias))
        for d in range(channels):
            rate = 2.0 + (9.0 - 2.0) * d / max(1, channels - 1)
            expected = (out[d] @ h).item() * math.exp(-rate * t / (rows - 1))
            assert taps[t, d].item() == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_gradients(randn):
    features, hidden, frequency, out = parameters(randn, 6, 3, 4, 5)
    leaves = [x.requires_grad_() for x in (features, *hidden, frequency, out)]

    def run(features, *others):
        *hidden, frequency, out = others
        return implicit_filter(features, hidden, frequency, out, length=4, slowest=1.0, fastest=3.0)

    assert torch.autograd.gradcheck(run, leaves)


def test_costs():
    sizes = {"length": 10, "features": 3, "units": 4, "channels": 5}
    assert module.flops(**sizes) == 2 * 10 * (3 * 4 + 2 * 16 + 4 * 5)
    assert module.bytes_moved(**sizes) == 4 * ((3 * 4 + 4) + 2 * (16 + 4) + 4 + 20 + 30 + 50)
