"""The trainer's bookkeeping kernels: exact copies, and sums against float64."""

import pytest
import torch

from basedbench.kernels.batch import Tables, count_reference, take_reference
from basedbench.kernels.batch_triton import count_step, take_batch
from basedbench.kernels.packing import packing_of


def make_tables(device, length, asked):
    """Of 100 examples; positions in any order."""
    positions = torch.rand(100, length).argsort(1)[:, :asked]
    return Tables(*(x.contiguous().to(device) for x in (torch.randint(2**40, (100, length)), positions, positions * 7)))


def same(ours, expected):
    assert torch.equal(ours.tokens_BL, expected.tokens_BL)
    assert torch.equal(ours.targets_BK, expected.targets_BK)
    assert torch.equal(ours.questions.positions_BK, expected.questions.positions_BK)
    assert torch.equal(ours.questions.slots_BL, expected.questions.slots_BL)
    assert ours.questions.packing is expected.questions.packing


@pytest.mark.parametrize(("size", "length", "asked"), [(1, 1, 1), (7, 64, 4), (32, 1500, 256)])
def test_rows_are_copied_in_order(device, size, length, asked):
    tables = make_tables(device, length, asked)
    order, cursor = torch.randperm(100).to(device), torch.tensor(61, device=device)
    ours, expected = take_batch(tables, order, cursor, size), take_reference(tables, order, cursor, size)
    same(ours, expected)
    rows = order[61 : 61 + size]
    assert torch.equal(ours.tokens_BL, tables.tokens_NL[rows])
    for b, k in [(0, 0), (size - 1, asked - 1)]:
        assert ours.questions.slots_BL[b, tables.positions_NK[rows[b], k]] == b * asked + k


@pytest.mark.parametrize("lengths", [[24, 24, 16, 8], [64, 8, 8]], ids=str)
def test_packed_examples_are_cut(device, lengths):
    """Questions before each end, whose slots are in the packed row."""
    tables, packing = make_tables(device, 64, 5), packing_of(lengths, device)
    order, cursor = torch.randperm(100).to(device), torch.tensor(61, device=device)
    for b, length in enumerate(lengths):
        tables.positions_NK[order[61 + b]] = torch.randperm(length, device=device)[:5]
    ours = take_batch(tables, order, cursor, len(lengths), packing)
    same(ours, take_reference(tables, order, cursor, len(lengths), packing))
    rows = [tables.tokens_NL[row, :length] for row, length in zip(order[61:], lengths, strict=False)]
    assert torch.equal(ours.tokens_BL, torch.cat(rows)[None])
    slots = ours.questions.slots_BL[0]
    assert torch.equal(
        slots[slots >= 0].sort().values, torch.arange(5 * len(lengths), device=device, dtype=torch.int32)
    )


def test_a_question_behind_the_end_is_written_nowhere(device):
    """Of another batch than the packing was made for, in which examples may be longer."""
    tables, packing = make_tables(device, 64, 64), packing_of([8, 8], device)
    slots = take_batch(tables, torch.arange(100, device=device), torch.tensor(0, device=device), 2, packing)[2][1][0]
    inside = tables.positions_NK[:2] < 8
    expected = torch.arange(128, device=device).view(2, 64)[inside].int()
    assert torch.equal(slots.sort().values, expected)


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
