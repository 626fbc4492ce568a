"""The second half of a deterministic sum over rows: programs left partial sums, this one adds them in a fixed order.

Gradients of gains, biases and convolution weights are sums over every token. Atomic additions would make them depend
on the order in which programs finish.
"""

# mypy: allow-untyped-defs

from collections.abc import Iterable, Sequence
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
SHIFT = tl.constexpr(4)
WHOLE = 4  # columns, 16 bytes, that are loaded at once where all rows are whole ones


@triton.jit
def _store(outs, which, total, column, width, SUMS: tl.constexpr):
    for i in tl.static_range(SUMS):
        if which == i:
            tl.store(outs[i] + column, total.to(outs[i].dtype.element_ty), mask=column < width)


@triton.jit
def _add_few(
    partials, outs, which, parts, width, block, PARTS: tl.constexpr, COLUMNS: tl.constexpr, SUMS: tl.constexpr
):
    """Every thread has columns of its own: a sum over a tile would go through shared memory."""
    column = block * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros((COLUMNS,), tl.float32)
    for start in range(0, parts, PARTS):
        for part in tl.static_range(PARTS):
            inside = (column < width) & (start + part < parts)
            total += tl.load(partials + (start + part) * width + column, mask=inside, other=0.0)
    _store(outs, which, total, column, width, SUMS)


@triton.jit
def _add_many(
    partials, outs, which, parts, width, block, PARTS: tl.constexpr, COLUMNS: tl.constexpr, SUMS: tl.constexpr
):
    column = block * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros((PARTS, COLUMNS), tl.float32)
    for start in range(0, parts, PARTS):
        part = start + tl.arange(0, PARTS)
        inside = (part < parts)[:, None] & (column < width)[None, :]
        total += tl.load(partials + part[:, None] * width + column[None, :], mask=inside, other=0.0)
    _store(outs, which, tl.sum(total, axis=0), column, width, SUMS)


@triton.jit
def sum_parts_kernel(partials, outs, parts, widths, starts, SUMS: tl.constexpr, UNIT: tl.constexpr):
    """Tuples of several sums, of UNIT times `widths` columns; programs from starts[i] to starts[i + 1] do sum i.

    A program finds its sum's numbers first, so that the additions are there once: written out for each of a dozen sums,
    and again for all that Triton looks for in numbers (`_hidden`), they took longer to compile than all else of a step.
    """
    program = tl.program_id(0)
    which, source, count, units, begin = 0, partials[0], parts[0] >> SHIFT, widths[0] >> SHIFT, 0
    for i in tl.static_range(1, SUMS):
        start = starts[i] >> SHIFT
        later = program >= start
        which, begin = tl.where(later, i, which), tl.where(later, start, begin)
        source, count = tl.where(later, partials[i], source), tl.where(later, parts[i] >> SHIFT, count)
        units = tl.where(later, widths[i] >> SHIFT, units)
    width, block = units * UNIT, program - begin
    if count <= FEW:
        _add_few(source, outs, which, count, width, block, LOW, WIDE, SUMS)
    elif count <= MANY:
        _add_many(source, outs, which, count, width, block, HIGH, NARROW, SUMS)
    else:
        _add_many(source, outs, which, count, width, block, TALL, SLIM, SUMS)


def _hidden(numbers: Iterable[int]) -> tuple[int, ...]:
    """All multiples of 16, and none of them 1: of numbers in tuples Triton makes a kernel for each pattern of such."""
    return tuple(number << SHIFT.value for number in numbers)


def _columns(parts: int) -> int:
    """Of a program."""
    if parts <= FEW.value:
        return WIDE.value
    return NARROW.value if parts <= MANY.value else SLIM.value


def _add_up(sums: Sequence[tuple[Tensor, Tensor]], unit: int) -> None:
    partials, outs = zip(*sums, strict=True)
    parts, widths = zip(*(x.shape for x in partials), strict=True)
    starts = tuple(accumulate(map(triton.cdiv, widths, map(_columns, parts)), initial=0))
    sum_parts_kernel[(starts[-1],)](
        partials, outs, _hidden(parts), _hidden(width // unit for width in widths), _hidden(starts), SUMS=len(sums),
        UNIT=unit, num_warps=8,
    )  # fmt: skip


def add_up(sums: Sequence[tuple[Tensor, Tensor]]) -> None:
    """Sum each (P, W) float32 over P into its (W,), in one launch, or two: rows of whole sixteen bytes have their own.

    How rows are loaded decides the order in which they are added: so that is a sum's own, in any company.
    """
    by_unit: dict[int, list[tuple[Tensor, Tensor]]] = {WHOLE: [], 1: []}
    for given in sums:
        by_unit[1 if given[1].numel() % WHOLE else WHOLE].append(given)
    for unit, some in by_unit.items():
        if some:
            _add_up(some, unit)


def sum_parts(partials_PW: Tensor, dtype: torch.dtype, leaves: Sequence[Tensor | None] = ()) -> Tensor:
    """Sum (P, W) float32 over P -> (W,) in `dtype`; inside `together` later, if it is the gradients of `leaves`."""
    out_W = torch.empty(partials_PW.shape[1], dtype=dtype, device=partials_PW.device)
    if not waits(partials_PW, out_W, leaves):
        add_up([(partials_PW, out_W)])
    return out_W
