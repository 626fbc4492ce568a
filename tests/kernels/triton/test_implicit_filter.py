"""The kernels of `implicit_filter` against float64, beside the reference in float32."""

from importlib import import_module

import pytest
import torch

# The package re-exports a function under the name of this module.
module = import_module("basedbench.kernels.implicit_filter")
triton = import_module("basedbench.kernels.implicit_filter_triton")
RATES = {"slowest": 3.0, "fastest": 15.0}


def parameters(randn, device, rows, features, units, channels):
    """Of a scale that lets sines bend."""
    given = [randn(rows, features)]
    for width in (features, units, units):
        given += [randn(units, width) * width**-0.5, randn(units)]
    given += [1 + 0.3 * randn(units), randn(channels, units)]
    return [x.float().to(device) for x in given]


def outputs_and_gradients(function, given, length, weights):
    leaves = [x.detach().clone().requires_grad_() for x in given]
    features, *hidden, frequency, out = leaves
    taps = function(features, hidden, frequency, out, length=length, **RATES)
    return [taps.detach(), *torch.autograd.grad((taps * weights.to(taps)).sum(), leaves)]


@pytest.mark.parametrize(
    ("rows", "length", "features", "units", "channels"),
    [(20, 20, 3, 64, 70), (40, 17, 5, 7, 4), (2, 1, 3, 16, 1), (300, 130, 17, 24, 64)],
)
def test_taps_and_gradients(randn, relative_error, device, rows, length, features, units, channels):
    given = parameters(randn, device, rows, features, units, channels)
    weights = randn(length, channels).to(device)
    exact = outputs_and_gradients(module.reference, [x.double() for x in given], length, weights)
    expected = outputs_and_gradients(module.reference, given, length, weights)
    ours = outputs_and_gradients(triton.implicit_filter, given, length, weights)
    for mine, theirs, true in zip(ours, expected, exact, strict=True):
        assert mine.shape == theirs.shape
        assert relative_error(mine, true) <= 2 * relative_error(theirs, true) + 2e-6


def test_everything_is_written(randn, device, poisoned, monkeypatch):
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *a, **k: empty(*a, **k).fill_(torch.nan))
    leaves = [x.requires_grad_() for x in parameters(randn, device, 20, 3, 8, 70)]
    features, *hidden, frequency, out = leaves
    taps = triton.implicit_filter(features, hidden, frequency, out, length=18, **RATES)
    for x in (taps, *torch.autograd.grad(taps.sum(), leaves)):
        assert torch.isfinite(x).all()


def test_registration(randn, device):
    features, *hidden, frequency, out = (x.requires_grad_() for x in parameters(randn, device, 9, 3, 8, 6))
    torch.library.opcheck(triton._filter, (features, hidden, frequency, out, 7, 3.0, 15.0))
