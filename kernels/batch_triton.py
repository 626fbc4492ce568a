"""`take_batch` and `count_step` in one launch each."""

# mypy: allow-untyped-defs

import torch
import triton
import triton.language as tl
from torch import Tensor

from .asked import Questions
from .batch import Batch, Tables
from .packing import Packing, starts_of

BLOCK = 1024
LOSSES = 8192  # summed at once, by 16 warps: with few a batch of 16,384 is a chain of loads, each waiting for the last


@triton.jit
def take_batch_kernel(
    tokens, positions, targets, out_tokens, out_positions, out_targets, slots, order, cursor, starts, length, asked,
    PACKED: tl.constexpr, BLOCK: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """A program takes one example; PACKED: see `Packing`."""
    b = tl.program_id(0)
    row = tl.load(order + tl.load(cursor) + b)
    first, own = b.to(tl.int64) * length, length
    if PACKED:
        first = tl.load(starts + b).to(tl.int64)
        own = tl.load(starts + b + 1) - first.to(tl.int32)
    for start in range(0, own, BLOCK):
        column = start + tl.arange(0, BLOCK)
        inside = column < own
        tl.store(out_tokens + first + column, tl.load(tokens + row * length + column, mask=inside), mask=inside)
        tl.store(slots + first + column, tl.full([BLOCK], -1, tl.int32), mask=inside)
    tl.debug_barrier()  # what is asked for is written over what is not
    for start in range(0, asked, BLOCK_K):
        question = start + tl.arange(0, BLOCK_K)
        inside = question < asked
        position = tl.load(positions + row * asked + question, mask=inside, other=0)
        slot = b * asked + question
        tl.store(out_positions + slot, position, mask=inside)
        tl.store(out_targets + slot, tl.load(targets + row * asked + question, mask=inside), mask=inside)
        # An example that is longer than its packing, of another batch than it was made for, is written nowhere else.
        tl.store(slots + first + position, slot, mask=inside & (position < own))


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


def take_batch(tables: Tables, order_N: Tensor, cursor: Tensor, size: int, packing: Packing | None = None) -> Batch:
    """`batch.take_reference` by the kernel above."""
    (tokens, positions, targets), like = tables, tables.tokens_NL
    length, asked = tokens.shape[1], positions.shape[1]
    shape = (size, length) if packing is None else (1, packing.tokens)
    found = torch.empty(shape, dtype=like.dtype, device=like.device)
    slots = torch.empty(shape, dtype=torch.int32, device=like.device)
    rows, answers = (torch.empty((size, asked), dtype=like.dtype, device=like.device) for _ in range(2))
    take_batch_kernel[(size,)](
        tokens, positions, targets, found, rows, answers, slots, order_N, cursor,
        starts_of(packing), length, asked, PACKED=packing is not None,
        BLOCK=min(BLOCK, triton.next_power_of_2(length)), BLOCK_K=min(BLOCK, triton.next_power_of_2(asked)),
        num_warps=1,
    )  # fmt: skip
    return Batch(found, answers, Questions(rows, slots, packing))


def count_step(loss_N: Tensor, total: Tensor, cursor: Tensor, size: int, steps: Tensor) -> None:
    """`batch.count_reference` by the kernel above."""
    block = min(LOSSES, triton.next_power_of_2(max(BLOCK, loss_N.numel())))
    count_step_kernel[(1,)](
        loss_N, total, cursor, steps, loss_N.numel(), size, BLOCK=block, num_warps=16 if block > BLOCK else 4
    )
