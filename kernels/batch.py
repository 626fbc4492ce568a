"""The small steps around a training step: fetch the next examples, and count what was done.

    rows_b = order_(cursor + b);   tokens_b, positions_b, targets_b = those of example rows_b

and, when the step is over, total += mean(loss), cursor += size and steps += 1. Plain copies and sums; as PyTorch calls
they are more than a dozen launches of a few microseconds each, as long as the mixer of a small model.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from .asked import Questions, slots_of
from .packing import Packing


class Batch(NamedTuple):
    """tokens_BL int64, with a packing (1,T); targets_BK int64, the answers to `questions`."""

    tokens_BL: Tensor
    targets_BK: Tensor
    questions: Questions


class Tables(NamedTuple):
    """Examples: tokens_NL, positions_NK of the asked tokens and targets_NK, their answers; all int64."""

    tokens_NL: Tensor
    positions_NK: Tensor
    targets_NK: Tensor


def take_reference(tables: Tables, order_N: Tensor, cursor: Tensor, size: int, packing: Packing | None = None) -> Batch:
    """`take_batch` in PyTorch, any device."""
    rows = order_N.index_select(0, cursor + torch.arange(size, device=order_N.device))
    tokens, positions, targets = (table.index_select(0, rows) for table in tables)
    slots = slots_of(positions, tokens.shape[1])
    if packing is not None:
        tokens, slots = (packing.gather(x) for x in (tokens, slots))
    return Batch(tokens, targets, Questions(positions, slots, packing))


def take_batch(tables: Tables, order_N: Tensor, cursor: Tensor, size: int, packing: Packing | None = None) -> Batch:
    """The next `size` examples from `cursor` () int64 on in the order `order_N` int64.

    With `packing`, of as many examples, what lies behind each one's length is left out.
    """
    if order_N.is_cuda:
        from .batch_triton import take_batch as by_triton

        return by_triton(tables, order_N, cursor, size, packing)
    return take_reference(tables, order_N, cursor, size, packing)


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
