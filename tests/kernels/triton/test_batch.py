"""The trainer's bookkeeping kernels: exact copies, and sums against float64."""

import pytest
import torch

from basedbench.kernels.batch import count_reference, take_reference
from basedbench.kernels.batch_triton import count_step, take_batch


@pytest.mark.parametrize(("size", "widths"), [(1, (1,)), (7, (64, 4, 4)), (32, (1500, 256, 256))])
def test_rows_are_copied_in_order(device, size, widths):
    tables = [torch.randint(2**40, (100, width), device=device) for width in widths]
    order, cursor = torch.randperm(100).to(device), torch.tensor(61, device=device)
    ours, expected = take_batch(tables, order, cursor, size), take_reference(tables, order, cursor, size)
    for mine, right in zip(ours, expected, strict=True):
        assert torch.equal(mine, right)


@pytest.mark.parametrize("count", [1, 17, 1024, 4097])
def test_mean_and_cursor(randn, device, count):
    loss = randn(count).abs().float().to(device)
    totals = [torch.tensor(3.0, dtype=torch.float64, device=device) for _ in range(2)]
    cursors = [torch.tensor(5, device=device) for _ in range(2)]
    steps = [torch.tensor(9, device=device) for _ in range(2)]
    for _ in range(3):
        count_step(loss, totals[0], cursors[0], 256, steps[0])
        count_reference(loss.double(), totals[1], cursors[1], 256, steps[1])
    assert totals[0].item() == pytest.approx(totals[1].item(), rel=1e-6)
    assert cursors[0].item() == cursors[1].item() == 5 + 3 * 256
    assert steps[0].item() == steps[1].item() == 9 + 3
