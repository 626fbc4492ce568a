"""Sums of partial sums against float64."""

import pytest
import torch

from basedbench.kernels.partial_sums_triton import sum_parts


@pytest.mark.parametrize(("parts", "width"), [(1, 70), (3, 2100), (16, 130), (33, 17), (600, 40)])
def test_few_and_many_parts(randn, relative_error, device, parts, width):
    partials = randn(parts, width).float().to(device)
    total = sum_parts(partials, torch.float32)
    assert total.shape == (width,)
    assert relative_error(total, partials.double().sum(0)) < 1e-6
    assert torch.equal(total, sum_parts(partials, torch.float32))
