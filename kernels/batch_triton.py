"""`take_batch` and `count_step` in one launch each."""

# mypy: allow-untyped-defs

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024
LOSSES = 8192  # summed at once, by 16 warps: with few a batch of 16,384 is a chain of loads, each waiting for the last


@triton.jit
def take_batch_kernel(
    tables, outs, widths, order, cursor, TABLES: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """A program copies one row of every table."""
    b = tl.program_id(0)
    row = tl.load(order + tl.load(cursor) + b)
    for i in tl.static_range(TABLES):
        width = widths[i]
        for start in range(0, width, BLOCK):
            column = start + tl.arange(0, BLOCK)
            values = tl.load(tables[i] + row * width + column, mask=column < width)
            tl.store(outs[i] + b.to(tl.int64) * width + column, values, mask=column < width)


@triton.jit(do_not_specialize=["size", "count"])
def count_step_kernel(loss, total, cursor, steps, count, size, BLOCK: tl.constexpr):
    """One program: the order of its sum is fixed, and nobody else writes here."""
    column = tl.arange(0, BLOCK)
    sums = tl.zeros([BLOCK], tl.float32)
    for start in range(0, count, BLOCK):
        sums += tl.load(loss + start + column, mask=start + column < count, other=0.0)
    mean = tl.sum(sums, 0) / count
    before, place, taken = tl.load(total), tl.load(cursor), tl.load(steps)
    tl.debug_barrier()  # every thread has read before one of them writes
    tl.store(total, before + mean.to(tl.float64))
    tl.store(cursor, place + size)
    tl.store(steps, taken + 1)


def take_batch(tables: Sequence[Tensor], order_N: Tensor, cursor: Tensor, size: int) -> list[Tensor]:
    """`batch.take_reference` by the kernel above."""
    outs = [torch.empty((size, table.shape[1]), dtype=table.dtype, device=table.device) for table in tables]
    widths = tuple(table.shape[1] for table in tables)
    block = min(BLOCK, triton.next_power_of_2(max(widths)))
    take_batch_kernel[(size,)](
        tuple(tables), tuple(outs), widths, order_N, cursor, TABLES=len(tables), BLOCK=block, num_warps=1
    )
    return outs


def count_step(loss_N: Tensor, total: Tensor, cursor: Tensor, size: int, steps: Tensor) -> None:
    """`batch.count_reference` by the kernel above."""
    block = min(LOSSES, triton.next_power_of_2(max(BLOCK, loss_N.numel())))
    count_step_kernel[(1,)](
        loss_N, total, cursor, steps, loss_N.numel(), size, BLOCK=block, num_warps=16 if block > BLOCK else 4
    )
