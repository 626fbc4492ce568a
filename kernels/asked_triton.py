"""`take_rows` in Triton: a launch forward, a launch backward that writes rows and zeros alike.

What has time innermost, planes (D,B,L), is read and written along time, in tiles that change places on the way.
"""

# mypy: allow-untyped-defs

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .dense_rows import dense_rows
from .plane_rows_triton import plane_rows

TILE = 2048  # elements
TOKENS, CHANNELS = 64, 32  # of a tile of planes


@triton.jit
def take_rows_kernel(
    x, positions, out, rows, asked, batch_stride, row_stride, D: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr
):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, BLOCK_D)
    inside = (row < rows)[:, None] & (column < D)[None, :]
    at = tl.load(positions + row, mask=row < rows, other=0)
    source = (row // asked).to(tl.int64) * batch_stride + at * row_stride
    values = tl.load(x + source[:, None] + column[None, :], mask=inside, other=0.0)
    tl.store(out + row.to(tl.int64)[:, None] * D + column[None, :], values, mask=inside)


@triton.jit
def spread_rows_kernel(rows_given, slots, out, tokens, D: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr):
    """Row `slots` of what is given for every token, zeros where there is none."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, BLOCK_D)
    inside = (row < tokens)[:, None] & (column < D)[None, :]
    slot = tl.load(slots + row, mask=row < tokens, other=-1)
    given = inside & (slot >= 0)[:, None]
    values = tl.load(rows_given + slot.to(tl.int64)[:, None] * D + column[None, :], mask=given, other=0.0)
    tl.store(out + row.to(tl.int64)[:, None] * D + column[None, :], values, mask=inside)


@triton.jit(do_not_specialize=["length", "units"])
def take_from_planes_kernel(
    planes, positions, out, rows, asked, length, units, D: tl.constexpr, UNIT: tl.constexpr, ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
):  # fmt: skip
    """`length`: tokens of a sequence. Rows are the tile's last dimension where they are read: neighbouring threads'."""
    row, d = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    at = tl.load(positions + row, mask=row < rows, other=0) + (row // asked).to(tl.int64) * length
    place = planes + (d.to(tl.int64) * (units.to(tl.int64) * UNIT))[:, None] + at[None, :]
    tile = tl.load(place, mask=(d < D)[:, None] & (row < rows)[None, :], other=0.0)
    target = out + row.to(tl.int64)[:, None] * D + d[None, :]
    tl.store(target, tl.trans(tile), mask=(row < rows)[:, None] & (d < D)[None, :])


@triton.jit(do_not_specialize=["units"])
def spread_to_planes_kernel(
    rows_given, slots, planes, units, D: tl.constexpr, UNIT: tl.constexpr, TOKENS: tl.constexpr, CHANNELS: tl.constexpr
):
    """`spread_rows_kernel` to planes."""
    t, d = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS), tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    size = units.to(tl.int64) * UNIT
    slot = tl.load(slots + t, mask=t < size, other=-1)
    given = (slot >= 0)[:, None] & (d < D)[None, :]
    values = tl.load(rows_given + slot.to(tl.int64)[:, None] * D + d[None, :], mask=given, other=0.0)
    place = planes + d.to(tl.int64)[None, :] * size + t[:, None]
    tl.store(place, values, mask=(t < size)[:, None] & (d < D)[None, :])


def _take_from_planes(planes: Tensor, positions: Tensor, out: Tensor) -> None:
    """From (D,B,L), by positions (B,K)."""
    sizes, width = plane_rows(planes), len(planes)
    take_from_planes_kernel[(triton.cdiv(positions.numel(), TOKENS), triton.cdiv(width, CHANNELS))](
        planes, positions, out, positions.numel(), positions.shape[1], planes.shape[2], sizes.units, D=width,
        UNIT=sizes.unit, ROWS=TOKENS, CHANNELS=CHANNELS,
    )  # fmt: skip


def _spread_to_planes(rows: Tensor, slots: Tensor, planes: Tensor) -> None:
    """To (D,B,L), by slots (B,L)."""
    sizes, width = plane_rows(planes), len(planes)
    spread_to_planes_kernel[(triton.cdiv(sizes.tokens, TOKENS), triton.cdiv(width, CHANNELS))](
        rows, slots, planes, sizes.units, D=width, UNIT=sizes.unit, TOKENS=TOKENS, CHANNELS=CHANNELS
    )


def _planes(x: Tensor) -> bool:
    """Whether x (B,L,D) lies in memory as (D,B,L)."""
    return not x.is_contiguous() and x.permute(2, 0, 1).is_contiguous()


def _shape(width: int) -> dict[str, int]:
    block = triton.next_power_of_2(width)
    return {"D": width, "BLOCK_D": block, "ROWS": max(1, TILE // block)}


@torch.library.custom_op("basedbench::take_rows", mutates_args=())
def take_rows(x: Tensor, positions: Tensor, slots: Tensor) -> Tensor:
    """`asked.take_rows` by the kernel above."""
    out, positions = _rows(x, positions, slots), positions.contiguous()
    if _planes(x) and out.numel():
        _take_from_planes(x.permute(2, 0, 1), positions, out)
        return out
    x = dense_rows(x)
    shape = _shape(x.shape[-1])
    if out.numel():
        take_rows_kernel[(triton.cdiv(positions.numel(), shape["ROWS"]),)](
            x, positions, out, positions.numel(), positions.shape[1], x.stride(0), x.stride(1), **shape
        )
    return out


@take_rows.register_fake
def _rows(x: Tensor, positions: Tensor, slots: Tensor) -> Tensor:
    return x.new_empty((*positions.shape, x.shape[-1]))


@torch.library.custom_op("basedbench::spread_rows", mutates_args=())
def spread_rows(rows_BKD: Tensor, slots_BL: Tensor, planes: bool = False) -> Tensor:
    """(B,K,D) to where they were taken from, (B,L,D) with zeros elsewhere; `planes`: in memory as (D,B,L)."""
    rows_BKD, slots_BL = rows_BKD.contiguous(), slots_BL.contiguous()
    out = _spread(rows_BKD, slots_BL, planes)
    if planes and out.numel():
        _spread_to_planes(rows_BKD, slots_BL, out.permute(2, 0, 1))
        return out
    shape = _shape(out.shape[-1])
    if out.numel():
        spread_rows_kernel[(triton.cdiv(slots_BL.numel(), shape["ROWS"]),)](
            rows_BKD, slots_BL, out, slots_BL.numel(), **shape
        )
    return out


@spread_rows.register_fake
def _spread(rows: Tensor, slots: Tensor, planes: bool = False) -> Tensor:
    if planes:
        return rows.new_empty((rows.shape[-1], *slots.shape)).permute(1, 2, 0)
    return rows.new_empty((*slots.shape, rows.shape[-1]))


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(inputs[2])
    ctx.planes = _planes(inputs[0])


def _gradient(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
    (slots,) = ctx.saved_tensors
    return spread_rows(grad, slots, ctx.planes), None, None


take_rows.register_autograd(_gradient, setup_context=_keep)
