"""The kernels of `shift_filter` against float64."""

from importlib import import_module

import pytest
import torch

# The package re-exports a function under the name of this module.
module = import_module("basedbench.kernels.shift_filter")
triton = import_module("basedbench.kernels.shift_filter_triton")


def outputs_and_gradients(function, given, weights):
    leaves = [x.detach().clone().requires_grad_() for x in given]
    taps = function(*leaves)
    return [taps.detach(), *torch.autograd.grad((taps * weights.to(taps)).sum(), leaves)]


@pytest.mark.parametrize(("channels", "taps"), [(3, 1), (5, 16), (2, 23), (4, 64)])
def test_taps_and_gradients(randn, relative_error, device, poisoned, channels, taps):
    given = [randn(channels, taps).float().to(device) for _ in "BC"]
    weights = randn(taps, channels).to(device)
    exact = outputs_and_gradients(module.reference, [x.double() for x in given], weights)
    for mine, true in zip(outputs_and_gradients(triton.shift_filter, given, weights), exact, strict=True):
        assert mine.shape == true.shape
        assert relative_error(mine, true) < 5e-7


def test_registration(randn, device):
    torch.library.opcheck(triton._shift_filter, tuple(randn(3, 5).float().to(device).requires_grad_() for _ in "BC"))
