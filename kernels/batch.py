"""The small steps around a training step: fetch the next examples, and count what was done.

    rows_b = order_(cursor + b);   out_b = table_(rows_b) for every table

and, when the step is over, total += mean(loss), cursor += size and steps += 1. Plain copies and sums; as PyTorch calls
they are eleven launches of a few microseconds each, as long as the mixer of a small model.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def take_reference(tables: Sequence[Tensor], order_N: Tensor, cursor: Tensor, size: int) -> list[Tensor]:
    """`take_batch` in PyTorch, any device."""
    rows = order_N.index_select(0, cursor + torch.arange(size, device=order_N.device))
    return [table.index_select(0, rows) for table in tables]


def take_batch(tables: Sequence[Tensor], order_N: Tensor, cursor: Tensor, size: int) -> list[Tensor]:
    """The next `size` rows of each table (N, width) int64, from `cursor` () int64 on in the order `order_N` int64."""
    if order_N.is_cuda:
        from .batch_triton import take_batch as by_triton

        return by_triton(tables, order_N, cursor, size)
    return take_reference(tables, order_N, cursor, size)


def count_reference(loss_N: Tensor, total: Tensor, cursor: Tensor, size: int, steps: Tensor) -> None:
    """`count_step` in PyTorch, any device."""
    total.add_(loss_N.mean())
    cursor.add_(size)
    steps.add_(1)


def count_step(loss_N: Tensor, total: Tensor, cursor: Tensor, size: int, steps: Tensor) -> None:
    """Add the mean loss to `total` () float64, `size` to `cursor` () int64 and 1 to `steps` () int64, all in place."""
    if loss_N.is_cuda:
        from .batch_triton import count_step as by_triton

        by_triton(loss_N, total, cursor, size, steps)
    else:
        count_reference(loss_N, total, cursor, size, steps)
