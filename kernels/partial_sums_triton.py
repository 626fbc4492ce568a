"""The second half of a deterministic sum over rows: programs left partial sums, this one adds them in a fixed order.

Gradients of gains, biases and convolution weights are sums over every token. Atomic additions would make them depend
on the order in which programs finish.
"""

# mypy: allow-untyped-defs

from collections.abc import Sequence
from itertools import accumulate

import torch
import triton
import triton.language as tl
from torch import Tensor

from .partial_sums import waits

FEW, MANY = tl.constexpr(32), tl.constexpr(1024)
# Parts loaded at once and columns of a program, of few parts, of more and of many: enough in flight to hide memory's
# latency.
LOW, WIDE = tl.constexpr(4), tl.constexpr(1024)
HIGH, NARROW = tl.constexpr(512), tl.constexpr(16)
TALL, SLIM = tl.constexpr(1024), tl.constexpr(8)


@triton.jit
def _add_few(partials, out, parts, width, block, PARTS: tl.constexpr, COLUMNS: tl.constexpr):
    """Every thread has columns of its own: a sum over a tile would go through shared memory."""
    column = block * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros((COLUMNS,), tl.float32)
    for start in range(0, parts, PARTS):
        for part in tl.static_range(PARTS):
            inside = (column < width) & (start + part < parts)
            total += tl.load(partials + (start + part) * width + column, mask=inside, other=0.0)
    tl.store(out + column, total.to(out.dtype.element_ty), mask=column < width)


@triton.jit
def _add_many(partials, out, parts, width, block, PARTS: tl.constexpr, COLUMNS: tl.constexpr):
    column = block * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros((PARTS, COLUMNS), tl.float32)
    for start in range(0, parts, PARTS):
        part = start + tl.arange(0, PARTS)
        inside = (part < parts)[:, None] & (column < width)[None, :]
        total += tl.load(partials + part[:, None] * width + column[None, :], mask=inside, other=0.0)
    tl.store(out + column, tl.sum(total, axis=0).to(out.dtype.element_ty), mask=column < width)


@triton.jit
def sum_parts_kernel(partials, outs, parts, widths, starts, SUMS: tl.constexpr):
    """Tuples of several sums; programs from starts[i] to starts[i + 1] do sum i."""
    program = tl.program_id(0)
    for i in tl.static_range(SUMS):
        block = program - starts[i]
        if (block >= 0) & (program < starts[i + 1]):
            if parts[i] <= FEW:
                _add_few(partials[i], outs[i], parts[i], widths[i], block, LOW, WIDE)
            elif parts[i] <= MANY:
                _add_many(partials[i], outs[i], parts[i], widths[i], block, HIGH, NARROW)
            else:
                _add_many(partials[i], outs[i], parts[i], widths[i], block, TALL, SLIM)


def _columns(parts: int) -> int:
    """Of a program."""
    if parts <= FEW.value:
        return WIDE.value
    return NARROW.value if parts <= MANY.value else SLIM.value


def add_up(sums: Sequence[tuple[Tensor, Tensor]]) -> None:
    """Sum each (P, W) float32 over P into its (W,), in one launch."""
    partials, outs = zip(*sums, strict=True)
    parts, widths = zip(*(x.shape for x in partials), strict=True)
    starts = tuple(accumulate(map(triton.cdiv, widths, map(_columns, parts)), initial=0))
    sum_parts_kernel[(starts[-1],)](partials, outs, parts, widths, starts, SUMS=len(sums), num_warps=8)


def sum_parts(partials_PW: Tensor, dtype: torch.dtype, leaves: Sequence[Tensor | None] = ()) -> Tensor:
    """Sum (P, W) float32 over P -> (W,) in `dtype`; inside `together` later, if it is the gradients of `leaves`."""
    out_W = torch.empty(partials_PW.shape[1], dtype=dtype, device=partials_PW.device)
    if not waits(partials_PW, out_W, leaves):
        add_up([(partials_PW, out_W)])
    return out_W
