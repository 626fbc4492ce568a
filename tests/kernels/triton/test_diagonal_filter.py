"""The kernels of `diagonal_filter` against float64, beside the reference in float32."""

import math
from importlib import import_module

import pytest
import torch

# The package re-exports a function under the name of this module.
module = import_module("basedbench.kernels.diagonal_filter")
triton = import_module("basedbench.kernels.diagonal_filter_triton")


def parameters(randn, device, heads, modes):
    """As initialised, then moved a little."""
    given = [
        math.log(0.03) + randn(heads),
        math.log(0.5) + 0.2 * randn(heads, modes),
        math.pi * torch.arange(modes) + 0.2 * randn(heads, modes),
        randn(heads, modes, 2),
        randn(heads, modes, 2),
    ]
    return [x.float().to(device) for x in given]


def outputs_and_gradients(function, given, length, weights):
    leaves = [x.detach().clone().requires_grad_() for x in given]
    taps = function(*leaves, length)
    return [taps.detach(), *torch.autograd.grad((taps * weights.to(taps)).sum(), leaves)]


@pytest.mark.parametrize(("heads", "modes", "length"), [(3, 5, 70), (4, 8, 1), (2, 1, 33), (3, 4, 300), (1, 32, 1024)])
def test_taps_and_gradients(randn, relative_error, device, heads, modes, length):
    given, weights = parameters(randn, device, heads, modes), randn(length, heads).to(device)
    exact = outputs_and_gradients(module.reference, [x.double() for x in given], length, weights)
    expected = outputs_and_gradients(module.reference, given, length, weights)
    ours = outputs_and_gradients(triton.diagonal_filter, given, length, weights)
    for mine, theirs, true in zip(ours, expected, exact, strict=True):
        assert mine.dtype == theirs.dtype
        assert relative_error(mine, true) <= 2 * relative_error(theirs, true) + 1e-6


def test_everything_is_written(randn, device, poisoned):
    leaves = [x.requires_grad_() for x in parameters(randn, device, 3, 5)]
    taps = triton.diagonal_filter(*leaves, 20)
    for x in (taps, *torch.autograd.grad(taps.sum(), leaves)):
        assert torch.isfinite(x).all()


def test_registration(randn, device):
    leaves = [x.requires_grad_() for x in parameters(randn, device, 2, 3)]
    torch.library.opcheck(triton._diagonal_filter, (*leaves, 9))
