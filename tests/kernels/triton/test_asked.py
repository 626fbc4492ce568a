"""The kernels that take asked rows and sum biases' gradients, against PyTorch's own indexing and sums."""

import pytest
import torch

from basedbench.kernels.asked import reference, slots_of
from basedbench.kernels.asked_triton import spread_rows, take_rows
from basedbench.kernels.linear_triton import column_sums


@pytest.mark.parametrize(("length", "width", "asked"), [(17, 48, 5), (64, 300, 1), (33, 8, 33)], ids=str)
def test_rows_and_their_gradient_are_copies(randn, device, dtypes, length, width, asked):
    positions = torch.stack([torch.randperm(length, device=device)[:asked] for _ in range(3)])
    slots = slots_of(positions, length)
    for dtype in dtypes:
        whole = randn(3, length, 2 * width).to(device, dtype)
        planes = whole[..., width:].permute(2, 0, 1).contiguous().permute(1, 2, 0)
        for x in (whole[..., :width].clone(), whole[..., width:], planes):
            leaf = x.detach().requires_grad_()
            found = take_rows(leaf, positions, slots)
            assert torch.equal(found, reference(x, positions))
            weights = randn(*found.shape).to(device, dtype)
            (gradient,) = torch.autograd.grad((found * weights).sum(), leaf)
            expected = torch.zeros_like(x).scatter(1, positions[..., None].expand(-1, -1, width), weights)
            assert torch.equal(gradient, expected)
            assert x is not planes or gradient.stride() == x.stride()


def test_a_token_asked_for_twice_is_taken_twice(randn, device):
    positions = torch.tensor([[4, 4, 0], [1, 2, 2]], device=device)
    x = randn(16, 2, 5).to(device).permute(1, 2, 0)
    assert torch.equal(take_rows(x, positions, slots_of(positions, 5)), reference(x, positions))


def test_sums_of_matrices_side_by_side(randn, device):
    few, many = randn(9, 70).to(device), randn(1000, 130).to(device)
    found = column_sums([(few, slice(0, 70)), (many, slice(70, 200))], torch.float32)
    expected = torch.cat([few.double().sum(0), many.double().sum(0)])
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-4)


def test_registration(randn, device):
    positions = torch.tensor([[4, 0], [1, 2]], device=device)
    x = randn(2, 5, 16).to(device).requires_grad_()
    torch.library.opcheck(take_rows, (x, positions, slots_of(positions, 5)))
    torch.library.opcheck(spread_rows, (x[:, :2].detach(), slots_of(positions, 5), True))
