"""The bias gradient's sum against float64."""

from importlib import import_module

import pytest
import torch

from basedbench.kernels.linear_triton import column_sum

module = import_module("basedbench.kernels.linear")


@pytest.mark.parametrize(("rows", "width"), [(1, 1), (17, 48), (1000, 112), (8300, 72)])
def test_sums_of_rows(randn, relative_error, device, dtypes, rows, width):
    for dtype in dtypes:
        x = randn(rows, width + 8).to(device, dtype)[:, :width]
        ours = column_sum(x, torch.float32)
        assert relative_error(ours, x.double().sum(0)) < 3e-7
        assert torch.equal(ours, column_sum(x, torch.float32))


def test_gradients_are_those_of_a_linear_layer(randn, device, monkeypatch):
    x, weight, bias = (randn(*s).float().to(device).requires_grad_() for s in [(3, 5, 16), (24, 16), (24,)])
    dy = randn(3, 5, 24).float().to(device)
    y = module._BiasGradient.apply(torch.nn.functional.linear(x, weight, bias.detach()), bias)
    expected = module.reference(x, weight, bias)
    torch.testing.assert_close(y, expected)
    ours, theirs = (torch.autograd.grad(out, [x, weight, bias], dy) for out in (y, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
