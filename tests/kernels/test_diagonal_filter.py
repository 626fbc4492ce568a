"""The filter of a diagonal state space model against its recurrence, run on an impulse."""

import math
from importlib import import_module

import pytest
import torch

from basedbench.kernels import diagonal_filter

module = import_module("basedbench.kernels.diagonal_filter")  # the package re-exports a function under its name


def parameters(randn, heads, modes):
    """As initialised, then moved a little."""
    return [
        math.log(0.03) + randn(heads),
        math.log(0.5) + 0.2 * randn(heads, modes),
        math.pi * torch.arange(modes) + 0.2 * randn(heads, modes),
        randn(heads, modes, 2),
        randn(heads, modes, 2),
    ]


def impulse_response(log_dt, A_log, A_imag, B, C, length):
    """h_t = p h_{t-1} + g x_t,  y_t = 2 Re(C h_t), by the bilinear rule, for x = 1, 0, 0, ..."""
    A, dt = torch.complex(-A_log.exp(), A_imag), log_dt.exp()[:, None]
    p, g = (2 + dt * A) / (2 - dt * A), 2 * dt * torch.view_as_complex(B) / (2 - dt * A)
    h, outputs = torch.zeros_like(p), []
    for t in range(length):
        h = p * h + (g if t == 0 else 0)
        outputs.append(2 * (torch.view_as_complex(C) * h).sum(-1).real)
    return torch.stack(outputs)


@pytest.mark.parametrize("length", [1, 2, 17, 100])
@pytest.mark.parametrize(("heads", "modes"), [(3, 1), (2, 8)])
def test_is_the_impulse_response(randn, length, heads, modes):
    given = parameters(randn, heads, modes)
    torch.testing.assert_close(diagonal_filter(*given, length), impulse_response(*given, length))


def test_gradients(randn):
    given = [parameter.requires_grad_() for parameter in parameters(randn, 2, 3)]
    assert torch.autograd.gradcheck(lambda *x: diagonal_filter(*x, 6), given)


def test_costs():
    assert module.flops(length=10, heads=3, modes=2) == 600
    assert module.flops(length=10, heads=3, modes=2, backward=True) == 1800
    assert module.bytes_moved(length=10, heads=3, modes=2) == 4 * (3 * 13 + 30)
