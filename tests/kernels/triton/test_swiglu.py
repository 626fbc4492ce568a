"""The kernels of swiglu against the reference in float64: outputs and gradients."""

import importlib

import pytest
import torch

from basedbench.kernels import swiglu_triton as kernels

reference = importlib.import_module("basedbench.kernels.swiglu").reference
FLOOR = {torch.float32: 2e-7, torch.float16: 1e-4, torch.bfloat16: 1e-3}


def results(function, x, signs):
    leaf = x.detach().clone().requires_grad_()
    y = function(leaf)
    return y.detach(), *torch.autograd.grad(y, leaf, signs.to(y.dtype))


@pytest.mark.parametrize("shape", [(1, 2), (3, 2 * 48), (2, 17, 2 * 112), (1, 5, 2 * 70)])
def test_outputs_and_gradients(randn, relative_error, device, dtypes, shape):
    signs = randn(*shape[:-1], shape[-1] // 2).sign().to(device)
    for dtype in dtypes:
        x = randn(*shape, scale=4.0).to(device, dtype)
        exact, theirs = results(reference, x.double(), signs), results(reference, x, signs)
        for mine, other, truth in zip(results(kernels.swiglu, x, signs), theirs, exact, strict=True):
            assert mine.dtype == other.dtype
            assert relative_error(mine, truth) <= 2 * relative_error(other, truth) + FLOOR[dtype]


def test_parts_of_a_wider_tensor(randn, device):
    wide = randn(3, 4, 100).to(device, torch.float32)
    for view in (wide[..., 5:65], wide[:, 1], wide[..., ::2], wide.transpose(0, 1), wide[:0]):
        torch.testing.assert_close(kernels.swiglu(view), reference(view))


def test_large_inputs_stay_finite(device):
    x = torch.tensor([[3.0, 3.0, -200.0, 200.0]], device=device)
    assert torch.equal(kernels.swiglu(x).abs(), torch.tensor([[0.0, 600.0]], device=device))


def test_registration(randn, device):
    torch.library.opcheck(kernels.operator, (randn(3, 10).to(device, torch.float32).requires_grad_(),))
