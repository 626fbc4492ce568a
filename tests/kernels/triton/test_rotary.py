"""The rotary kernels against the reference in float64: outputs, gradients, angles, layouts."""

import importlib

import pytest
import torch

from basedbench.kernels import rotary_triton as kernels

rotary = importlib.import_module("basedbench.kernels.rotary")
FLOOR = {torch.float32: 2e-7, torch.float16: 1e-4, torch.bfloat16: 1e-3}
# Batch, length, query heads, key heads, width, turned numbers.
SIZES = [
    (2, 17, 2, 2, 64, 64),
    (3, 1, 3, 1, 70, 35),
    (1, 5, 20, 5, 48, 24),
    (2, 3, 1, 2, 112, 112),
    (1, 20, 1, 1, 128, 6),
]


def projections(randn, device, dtype, batch, length, heads, groups, width):
    parts = randn(batch, length, (heads + groups) * width).to(device, dtype).split([heads * width, groups * width], -1)
    return [x.unflatten(-1, (-1, width)) for x in parts]


def angles_of(position, rotated):
    return rotary.angles_reference(position, rotated)


def results(function, tensors, angles):
    leaves = [x.detach().clone().requires_grad_() for x in tensors]
    outputs = function(*leaves, angles)
    signs = [torch.arange(y.numel(), device=y.device).remainder(3).sub(1).view(y.shape).to(y.dtype) for y in outputs]
    return [*(y.detach() for y in outputs), *torch.autograd.grad(outputs, leaves, signs)]


@pytest.mark.parametrize("size", SIZES)
def test_outputs_and_gradients(randn, relative_error, device, dtypes, size):
    *shape, rotated = size
    angles = angles_of(torch.arange(1, 1 + shape[1], device=device), rotated)
    for dtype in dtypes:
        tensors = projections(randn, device, dtype, *shape)
        exact = results(rotary.reference, [x.double() for x in tensors], tuple(x.double() for x in angles))
        theirs = results(rotary.reference, tensors, angles)
        for mine, other, truth in zip(results(kernels.rotary, tensors, angles), theirs, exact, strict=True):
            assert mine.dtype == other.dtype
            assert relative_error(mine, truth) <= 2 * relative_error(other, truth) + FLOOR[dtype]


def test_one_token_each(randn, device):
    """(B,H,K) at a position of each sequence's own, slices of one projection."""
    q, k = (x.squeeze(1) for x in projections(randn, device, torch.float32, 3, 1, 2, 1, 16))
    angles = angles_of(torch.tensor([5, 0, 70], device=device), 16)
    for mine, other in zip(kernels.rotary(q, k, angles), rotary.reference(q, k, angles), strict=True):
        torch.testing.assert_close(mine, other)


@pytest.mark.usefixtures("poisoned")
def test_every_element_is_written(randn, device):
    q, k = projections(randn, device, torch.float32, 1, 3, 5, 3, 70)
    angles = angles_of(torch.arange(3, device=device), 35)
    assert all(y.isfinite().all() for y in kernels.rotary(q, k, angles))


@pytest.mark.parametrize(("width", "base"), [(64, 10000.0), (35, 500.0), (1, 10000.0)])
def test_angles(device, width, base):
    """Absolute errors of some units in the last place of the largest angle, which float32 positions have anyway."""
    position = torch.tensor([0, 1, 17, 1000, 16383], dtype=torch.int32, device=device)
    exact = rotary.angles_reference(position, width, base=base, dtype=torch.float64)
    found = kernels.angles_operator(position, width, base)
    for mine, truth in zip(found, exact, strict=True):
        assert mine.dtype == torch.float32
        assert ((mine - truth).abs() <= 1e-6 + 2e-7 * position.unsqueeze(-1)).all()
    shared = torch.tensor(17, dtype=torch.int32, device=device).expand(2)
    cos, sin = kernels.angles_operator(shared, width, base)
    assert torch.equal(cos, found[0][[2, 2]])
    assert torch.equal(sin, found[1][[2, 2]])


def test_registration(randn, device):
    q, k = (x.requires_grad_() for x in projections(randn, device, torch.float32, 1, 3, 2, 1, 16))
    position = torch.arange(3, device=device)
    torch.library.opcheck(kernels.rotary_operator, (q, k, *angles_of(position, 8), False))
    torch.library.opcheck(kernels.angles_operator, (position, 8, 100.0))
