"""`gated_long_conv` by the kernels of `long_conv_toeplitz_triton`: tiles, grids, gradients.

The torch operators take and give planes: x (3 D,B,L), y (D,B,L), filters (H,N), time innermost. As (B,L,3 D), (B,L,D)
and (N,H) these are transposed views; a tensor that does not lie in memory like that is copied.
"""

# mypy: allow-untyped-defs

import math
from typing import Any

import torch
import triton
from torch import Tensor

from .dense_rows import dense_rows
from .differentiated import differentiated
from .long_conv_toeplitz_triton import (
    MARGIN,
    backward_kernel,
    forward_kernel,
    plain_kernel,
    table_kernel,
    taps_gradient_kernel,
)
from .partial_sums_triton import sum_parts

# By the channels of a head: tokens of a tile, sources of a block, sequences of a program, its warps and stages. Sums of
# R R products are in registers; with more sequences a tile of the filter is read for more of them.
TILES = {1: (64, 32, 64, 4, 2), 2: (64, 32, 32, 4, 3)}
BACKWARD_TILES = TILES | {1: (64, 64, 64, 4, 1)}
SHIFT_BACKWARD_TILES = (32, 32, 64, 4, 2)
LAGS, LAG_SEQUENCES = 64, {1: 64, 2: 32}  # of a tile of the filter's gradient, and at a time in its sum
PROGRAMS = 1024  # of the filter's gradient, about; fixed, so that the order of its sums is the same on every device
LAG_WARPS, LAG_STAGES = 4, {1: 2, 2: 1}
SMALLEST = 16  # side of a matrix unit's operand


def _fitting(largest: int, count: int) -> int:
    """A power of two: `largest`, or less where there are fewer."""
    return max(SMALLEST, min(largest, triton.next_power_of_2(count)))


def _rows(usual: int, sequences: int) -> int:
    """Sequences of a tile: two kinds alone, for the last batch of an epoch should be no other kernel."""
    return usual if sequences > SMALLEST else SMALLEST


def _tiles(x: Tensor, usual: tuple[int, ...]) -> dict[str, Any]:
    """The tiles of a convolution of planes like x, where these are those of large ones."""
    tile, sources, sequences, warps, stages = usual
    return {
        "TILE": _fitting(tile, x.shape[2]),
        "SOURCES": _fitting(sources, x.shape[2]),
        "BLOCK_B": _rows(sequences, x.shape[1]),
        "num_warps": warps,
        "num_stages": stages,
    }


def _grid(x: Tensor, heads: int, tiles: dict[str, Any]) -> tuple[int, int, int]:
    return triton.cdiv(x.shape[2], tiles["TILE"]), heads, triton.cdiv(x.shape[1], tiles["BLOCK_B"])


def _thirds(x: Any, order: str) -> list[Any]:
    """q, k and v of what has their channels in this order."""
    return [None] * 3 if x is None else [x.chunk(3)[order.index(name)] for name in "qkv"]


def _new_table(taps: Tensor | None, x: Tensor) -> Tensor:
    """Room for filters (H,N) as the convolutions' tiles read them, (parts,H,8,row); nothing without filters."""
    if taps is None:
        return x.new_empty(0)
    parts, row = 2 if x.element_size() < 4 else 1, -(-(taps.shape[1] + 3 * MARGIN.value) // 16) * 16
    return x.new_empty((parts, len(taps), 8, row))


def _fill(table: Tensor, taps: Tensor, skip: Tensor | None) -> None:
    heads, reach = taps.shape
    table_kernel[(heads, 8)](taps, skip, table, reach, table.shape[3], H=heads, PARTS=len(table), BLOCK=256)


def _taps_gradient(
    dy: Tensor, x: Tensor, x_bias: Tensor | None, taps: Tensor, gates: tuple[Any, ...] | None = None
) -> Tensor:
    """Of the taps (H,N), in memory as (N,H): the first ones, a skip's gradient, are dense.

    gates: q, v and their biases.
    """
    (heads, reach), (width, sequences, length) = taps.shape, dy.shape
    parts_of_head = width // heads if gates else 1
    tile, rows = _fitting(LAGS, length), _rows(LAG_SEQUENCES[parts_of_head], sequences)
    blocks = min(triton.cdiv(reach - 1, tile) + 1, triton.cdiv(length, tile))
    parts = max(1, min(triton.cdiv(sequences, rows), PROGRAMS // (blocks * heads)))
    partials = torch.empty((parts * 2, reach * heads), dtype=torch.float32, device=x.device)
    q, v, q_bias, v_bias = gates or (dy, x, None, None)
    taps_gradient_kernel[(blocks, heads, parts)](
        dy, q, q_bias, x, x_bias, v, v_bias, partials, sequences, length, reach, H=heads, R=parts_of_head,
        GATED=gates is not None, TILE=tile, BLOCK_B=rows, num_warps=LAG_WARPS,
        num_stages=LAG_STAGES[parts_of_head],
    )  # fmt: skip
    return sum_parts(partials, torch.float32).view(reach, heads).t()


def _outputs(x: Tensor, taps: Tensor, shift: Tensor | None, save: bool) -> tuple[Tensor, ...]:
    """y; the convolution of every product (D R,B,L), if it is to be saved; the shifted k; both filters' tables."""
    width, sequences, length = x.shape[0] // 3, *x.shape[1:]
    y = x.new_empty((width, sequences, length))
    c = x.new_empty((width * (width // len(taps)), sequences, length) if save else 0)
    return y, c, x.new_empty(0 if shift is None else y.shape), _new_table(taps, x), _new_table(shift, x)


@torch.library.custom_op("basedbench::gated_planes", mutates_args=())
def _gated(
    x: Tensor,
    bias: Tensor | None,
    taps: Tensor,
    skip: Tensor | None,
    shift: Tensor | None,
    shift_skip: Tensor | None,
    order: str,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """y (D,B,L), and for the backward what else `_outputs` makes; empty what there is none of."""
    (q, k, v), (q_bias, k_bias, v_bias) = _thirds(x, order), _thirds(bias, order)
    y, c, shifted, table, shift_table = _outputs(x, taps, shift, save)
    width, sequences, length = y.shape
    if not y.numel():
        return y, c, shifted, table, shift_table
    if shift is not None:
        tiles = _tiles(y, TILES[1])
        _fill(shift_table, shift, shift_skip)
        plain_kernel[_grid(y, width, tiles)](
            k, k_bias, shift_table, shifted, None, sequences, length, shift.shape[1], shift_table.shape[3], 0,
            D=width, REVERSED=False, PARTS=len(shift_table), **tiles,
        )  # fmt: skip
        k, k_bias = shifted, None
    heads, reach = taps.shape
    tiles = _tiles(y, TILES[width // heads])
    _fill(table, taps, skip)
    forward_kernel[_grid(y, heads, tiles)](
        q, q_bias, k, k_bias, v, v_bias, table, y, c, sequences, length, reach, table.shape[3], H=heads,
        R=width // heads, SAVE=save, PARTS=len(table), **tiles,
    )  # fmt: skip
    return y, c, shifted, table, shift_table


@_gated.register_fake
def _(x, bias, taps, skip, shift, shift_skip, order, save):
    return _outputs(x, taps, shift, save)


@torch.library.custom_op("basedbench::gated_planes_backward", mutates_args=())
def _gated_backward(
    dy: Tensor,
    x: Tensor,
    bias: Tensor | None,
    taps: Tensor,
    shift: Tensor | None,
    c: Tensor,
    shifted: Tensor,
    table: Tensor,
    shift_table: Tensor,
    order: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of x, of its bias (empty without one), of the taps, and of the shift (empty without one)."""
    dx, d_bias, d_taps, d_shift = _gradients_like(x, bias, taps, shift)
    if not dx.numel():
        return dx, d_bias.zero_(), d_taps.zero_(), d_shift.zero_()
    width, sequences, length = dy.shape
    heads, reach = taps.shape
    tiles = _tiles(dy, BACKWARD_TILES[width // heads])
    grid = _grid(dy, heads, tiles)
    (q, k, v), (dq, dk, dv), (q_bias, k_bias, v_bias) = (_thirds(part, order) for part in (x, dx, bias))
    (dq_sums, dk_sums, dv_sums), sums = _bias_sums(grid, bias, order)
    inner, inner_bias, d_inner = (k, k_bias, dk) if shift is None else (shifted, None, x.new_empty(shifted.shape))
    backward_kernel[grid](
        dy, q, q_bias, inner, inner_bias, v, v_bias, c, table, dq, d_inner, dv, dq_sums,
        dk_sums if shift is None else None, dv_sums, sequences, length, reach, table.shape[3], len(x), H=heads,
        R=width // heads, PARTS=len(table), **tiles,
    )  # fmt: skip
    d_taps = _taps_gradient(dy, inner, inner_bias, taps, (q, v, q_bias, v_bias))
    if shift is not None:
        # There is room for the bias's sums of as many tiles as the kernel before had.
        own = _tiles(dy, SHIFT_BACKWARD_TILES)
        if math.prod(_grid(dy, heads, own)) == math.prod(grid):
            tiles = own
        plain_kernel[_grid(dy, width, tiles)](
            d_inner, None, shift_table, dk, dk_sums, sequences, length, shift.shape[1], shift_table.shape[3], len(x),
            D=width, REVERSED=True, PARTS=len(table), **tiles,
        )  # fmt: skip
        d_shift = _taps_gradient(d_inner, k, k_bias, shift)
    return dx, d_bias if sums is None else sum_parts(sums, d_bias.dtype), d_taps, d_shift


def _bias_sums(grid: tuple[int, ...], bias: Tensor | None, order: str) -> tuple[list[Any], Tensor | None]:
    """A row for each tile of a channel: those of q, k and v, and all, or nothing without a bias."""
    if bias is None:
        return [None] * 3, None
    sums = torch.empty((grid[0] * grid[2], len(bias)), dtype=torch.float32, device=bias.device)
    return _thirds(sums.t(), order), sums


def _gradients_like(
    x: Tensor, bias: Tensor | None, taps: Tensor, shift: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    d_bias = taps.new_empty(0) if bias is None else bias.new_empty(bias.shape)
    d_shift = taps.new_empty(0) if shift is None else _turned(shift)
    return x.new_empty(x.shape), d_bias, _turned(taps), d_shift


def _turned(taps: Tensor) -> Tensor:
    """Room for the gradient of taps (H,N), in memory as (N,H)."""
    return taps.new_empty(taps.shape[::-1], dtype=torch.float32).t()


@_gated_backward.register_fake
def _(dy, x, bias, taps, shift, c, shifted, table, shift_table, order):
    return _gradients_like(x, bias, taps, shift)


def _setup(ctx, inputs, output) -> None:
    x, bias, taps, _, shift, _, ctx.order, ctx.saved = inputs
    ctx.given = [part is not None for part in inputs[:6]]
    ctx.save_for_backward(x, bias, taps, shift, *output[1:])
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)  # otherwise zeros as large as what is saved would be written


def _gradients(ctx, dy: Tensor, *_: Tensor | None):
    if not ctx.saved:
        raise RuntimeError("gated_long_conv was called for its output alone.")
    dx, d_bias, d_taps, d_shift = _gated_backward(dy.contiguous(), *ctx.saved_tensors, ctx.order)
    _, has_bias, _, has_skip, has_shift, has_shift_skip = ctx.given
    return (
        dx,
        d_bias if has_bias else None,
        d_taps,
        d_taps[:, 0] if has_skip else None,
        d_shift if has_shift else None,
        d_shift[:, 0] if has_shift_skip else None,
        None,
        None,
    )


_gated.register_autograd(_gradients, setup_context=_setup)


def _planes(taps_NH: Tensor | None, length: int) -> Tensor | None:
    """Of the taps those that a sequence of this length meets, (H,N)."""
    if taps_NH is None:
        return None
    return (taps_NH[:length] if len(taps_NH) > length else taps_NH).t().contiguous()


def gated_long_conv(
    x_BLE: Tensor,
    taps_NH: Tensor,
    skip_H: Tensor | None,
    shift_ND: Tensor | None,
    shift_skip_D: Tensor | None,
    *,
    order: str,
    bias_E: Tensor | None = None,
) -> Tensor:
    """`long_conv.gated_reference` by the kernels above, for heads of one or two channels."""
    length, x_EBL = x_BLE.shape[1], x_BLE.permute(2, 0, 1).contiguous()
    bias_E, skip_H, shift_skip_D = dense_rows(bias_E), dense_rows(skip_H), dense_rows(shift_skip_D)
    given = (x_EBL, bias_E, _planes(taps_NH, length), skip_H, _planes(shift_ND, length), shift_skip_D)
    save = differentiated(*given)
    return _gated(*given, order, save)[0].permute(1, 2, 0)
