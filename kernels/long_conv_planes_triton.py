"""`gated_long_conv` by the kernels of `long_conv_toeplitz_triton`: tiles, grids, gradients.

The torch operators take and give planes: x (3 D,B,L), y (D,B,L), filters (H,N), time innermost. As (B,L,3 D), (B,L,D)
and (N,H) these are transposed views; a tensor that does not lie in memory like that is copied. Packed examples are
planes (1,T).
"""

# mypy: allow-untyped-defs

import math
from typing import Any

import torch
import triton
from torch import Tensor

from .company import most_programs
from .dense_rows import dense_rows
from .differentiated import differentiated
from .long_conv_toeplitz_triton import (
    MARGIN,
    backward_kernel,
    forward_kernel,
    plain_kernel,
    products_kernel,
    table_kernel,
    taps_gradient_kernel,
)
from .packing import Packing, length_of, starts_and_longest
from .partial_sums_triton import add_up
from .plane_rows_triton import PlaneRows, plane_rows

# By the channels of a head: tokens of a tile, sources of a block, sequences of a program, its warps and stages. Sums of
# R R products are in registers; with more sequences a tile of the filter is read for more of them.
TILES = {1: (64, 64, 128, 4, 2), 2: (64, 32, 64, 4, 3)}
BACKWARD_TILES = {1: (64, 64, 64, 4, 1), 2: (64, 32, 64, 4, 3)}
SHIFT_TILES, SHIFT_BACKWARD_TILES = (64, 32, 128, 4, 1), (64, 32, 128, 4, 3)
# Of the filter's gradient: lags of a tile, and by the planes of a filter sequences at a time in its sum.
LAGS, LAG_SEQUENCES = 64, {1: 64, 4: 32}
PROGRAMS = 1024  # of the filter's gradient, about; fixed, so that the order of its sums is the same on every device
PRODUCTS = 1024  # tokens of a program that makes products
SMALLEST = 16  # side of a matrix unit's operand


def _fitting(largest: int, count: int) -> int:
    """A power of two: `largest`, or less where there are fewer."""
    return max(SMALLEST, min(largest, triton.next_power_of_2(count)))


def _block(usual: int, sequences: int) -> int:
    """Sequences of a tile: two kinds alone, for the last batch of an epoch should be no other kernel."""
    return usual if sequences > SMALLEST else SMALLEST


def _tiles(rows: PlaneRows, usual: tuple[int, ...]) -> dict[str, Any]:
    """The tiles of a convolution of such sequences, where these are those of many long ones."""
    tile, sources, sequences, warps, stages = usual
    return {
        "UNIT": rows.unit,
        "TILE": _fitting(tile, rows.length),
        "SOURCES": _fitting(sources, rows.length),
        "BLOCK_B": _block(sequences, rows.sequences),
        "num_warps": warps,
        "num_stages": 1 if rows.length <= sources else stages,
    }


def _grid(rows: PlaneRows, heads: int, tiles: dict[str, Any]) -> tuple[int, int, int]:
    return triton.cdiv(rows.length, tiles["TILE"]), heads, triton.cdiv(rows.sequences, tiles["BLOCK_B"])


def _thirds(x: Any, order: str) -> list[Any]:
    """q, k and v of what has their channels in this order."""
    return [None] * 3 if x is None else [x.chunk(3)[order.index(name)] for name in "qkv"]


def _new_table(taps: Tensor | None, x: Tensor) -> Tensor:
    """Room for filters (H,N) as the convolutions' tiles read them, (H,8,row); nothing without filters."""
    if taps is None:
        return x.new_empty(0)
    return x.new_empty((len(taps), 8, -(-(taps.shape[1] + 3 * MARGIN.value) // 16) * 16))


def _fill(table: Tensor, taps: Tensor, skip: Tensor | None) -> None:
    heads, reach = taps.shape
    table_kernel[(heads, 8)](taps, skip, table, reach, table.shape[2], BLOCK=256)


def _products(
    left: Tensor, left_bias: Tensor | None, right: Tensor, right_bias: Tensor | None, out: Tensor,
    gate: tuple[Tensor, Tensor, Tensor | None] | None = None,
) -> None:  # fmt: skip
    """out (D R,...): those of every channel of left (D,...) with every one of right in its head.

    gate: what left gates, and where its gradient belongs, with its sums or none (`products_kernel`).
    """
    width, rows = len(left), plane_rows(left)
    of_head = len(out) // width
    heads = width // of_head
    products_kernel[_product_grid(rows, heads)](
        left, left_bias, right, right_bias, out, *(gate or [None] * 3), rows.units, width, H=heads, R=of_head,
        UNIT=rows.unit, BLOCK=PRODUCTS,
    )  # fmt: skip


def _product_grid(rows: PlaneRows, heads: int) -> tuple[int, int, int]:
    return triton.cdiv(rows.tokens, PRODUCTS), heads, 1


def _taps_gradient(
    e: Tensor, x: Tensor, x_bias: Tensor | None, taps: Tensor, d_taps: Tensor, rows: PlaneRows
) -> tuple[Tensor, Tensor]:
    """Of taps (H,N), from planes (P H,B,L): partial sums, and the memory of `d_taps` where their sum belongs."""
    heads, reach = taps.shape
    planes, tile = len(e) // heads, _fitting(LAGS, rows.length)
    sequences = _block(LAG_SEQUENCES[planes], rows.sequences)
    blocks = min(triton.cdiv(reach - 1, tile) + 1, triton.cdiv(rows.length, tile))
    parts = max(1, min(triton.cdiv(rows.sequences, sequences), most_programs(PROGRAMS) // (blocks * heads)))
    partials = torch.empty((parts * 2, (1 + reach) * heads), dtype=torch.float32, device=x.device)
    taps_gradient_kernel[(blocks, heads, parts)](
        e, x, x_bias, partials, *rows.arguments, reach, H=heads, PLANES=planes, UNIT=rows.unit, TILE=tile,
        BLOCK_B=sequences, num_warps=4, num_stages=2 if rows.length > tile else 1,
    )  # fmt: skip
    return partials, d_taps.t().view(-1)


def _outputs(x: Tensor, taps: Tensor, shift: Tensor | None, save: bool) -> tuple[Tensor, ...]:
    """y; the products of k and v (D R,B,L) and, if it is to be saved, their convolution; the shifted k; both tables."""
    width, sequences, length = x.shape[0] // 3, *x.shape[1:]
    y = x.new_empty((width, sequences, length))
    w = x.new_empty((width * (width // len(taps)), sequences, length))
    c = x.new_empty(w.shape if save else 0)
    return y, w, c, x.new_empty(0 if shift is None else y.shape), _new_table(taps, x), _new_table(shift, x)


@torch.library.custom_op("basedbench::gated_planes", mutates_args=())
def _gated(
    x: Tensor,
    bias: Tensor | None,
    taps: Tensor,
    skip: Tensor | None,
    shift: Tensor | None,
    shift_skip: Tensor | None,
    starts: Tensor | None,
    longest: int,
    order: str,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """y (D,B,L), and for the backward what else `_outputs` makes; empty what there is none of."""
    (q, k, v), (q_bias, k_bias, v_bias) = _thirds(x, order), _thirds(bias, order)
    y, w, c, shifted, table, shift_table = _outputs(x, taps, shift, save)
    if not y.numel():
        return y, w, c, shifted, table, shift_table
    width, rows = len(y), plane_rows(x, starts, longest)
    if shift is not None:
        tiles = _tiles(rows, SHIFT_TILES)
        _fill(shift_table, shift, shift_skip)
        plain_kernel[_grid(rows, width, tiles)](
            k, k_bias, shift_table, shifted, None, *rows.arguments, shift.shape[1], shift_table.shape[2], 0, D=width,
            REVERSED=False, **tiles,
        )  # fmt: skip
        k, k_bias = shifted, None
    heads, reach = taps.shape
    tiles = _tiles(rows, TILES[width // heads])
    _products(k, k_bias, v, v_bias, w)
    _fill(table, taps, skip)
    forward_kernel[_grid(rows, heads, tiles)](
        q, q_bias, w, table, y, c, *rows.arguments, reach, table.shape[2], H=heads, R=width // heads, SAVE=save, **tiles
    )
    return y, w, c, shifted, table, shift_table


@_gated.register_fake
def _(x, bias, taps, skip, shift, shift_skip, starts, longest, order, save):
    return _outputs(x, taps, shift, save)


@torch.library.custom_op("basedbench::gated_planes_backward", mutates_args=())
def _gated_backward(
    dy: Tensor,
    x: Tensor,
    bias: Tensor | None,
    taps: Tensor,
    shift: Tensor | None,
    starts: Tensor | None,
    w: Tensor,
    c: Tensor,
    shifted: Tensor,
    table: Tensor,
    shift_table: Tensor,
    longest: int,
    order: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of x, of its bias, and those of the taps and the shift as `_turned`; empty what is not there."""
    dx, d_bias, d_taps, d_shift = _gradients_like(x, bias, taps, shift)
    if not dx.numel():
        return dx, d_bias.zero_(), d_taps.zero_(), d_shift.zero_()
    rows, width = plane_rows(x, starts, longest), len(dy)
    heads, reach = taps.shape
    (q, k, v), (dq, dk, dv), (q_bias, k_bias, v_bias) = (_thirds(part, order) for part in (x, dx, bias))
    sums = _BiasSums(bias, order, x.device)
    inner, inner_bias, d_inner = (k, k_bias, dk) if shift is None else (shifted, None, x.new_empty(shifted.shape))
    e = x.new_empty(w.shape)
    _products(q, q_bias, dy, None, e, (c, dq, sums.room("q", _product_grid(rows, heads))))
    tiles = _tiles(rows, BACKWARD_TILES[width // heads])
    grid = _grid(rows, heads, tiles)
    backward_kernel[grid](
        e, inner, inner_bias, v, v_bias, table, d_inner, dv, sums.room("k", grid) if shift is None else None,
        sums.room("v", grid), *rows.arguments, reach, table.shape[2], width, H=heads, R=width // heads, **tiles,
    )  # fmt: skip
    found = [_taps_gradient(e, w, None, taps, d_taps, rows)]
    if shift is not None:
        tiles = _tiles(rows, SHIFT_BACKWARD_TILES)
        grid = _grid(rows, width, tiles)
        plain_kernel[grid](
            d_inner, None, shift_table, dk, sums.room("k", grid), *rows.arguments, shift.shape[1],
            shift_table.shape[2], width, D=width, REVERSED=True, **tiles,
        )  # fmt: skip
        found.append(_taps_gradient(d_inner, k, k_bias, shift, d_shift, rows))
    add_up(found + sums.all(d_bias))
    return dx, d_bias, d_taps, d_shift


class _BiasSums:
    """Sums that programs leave of the gradients of q, k and v; none without a bias."""

    def __init__(self, bias: Tensor | None, order: str, device: torch.device) -> None:
        self.bias, self.order, self.device = bias, order, device
        self.partials: dict[str, Tensor] = {}

    def room(self, name: str, grid: tuple[int, ...]) -> Tensor | None:
        """(P,D): a row for each of the grid's programs of a head."""
        if self.bias is None:
            return None
        shape = math.prod(grid) // grid[1], len(self.bias) // 3
        return self.partials.setdefault(name, torch.empty(shape, dtype=torch.float32, device=self.device))

    def all(self, d_bias: Tensor) -> list[tuple[Tensor, Tensor]]:
        """With the places in the bias's gradient where they belong."""
        if self.bias is None:
            return []
        return [(self.partials[name], out) for name, out in zip("qkv", _thirds(d_bias, self.order), strict=True)]


def _gradients_like(
    x: Tensor, bias: Tensor | None, taps: Tensor, shift: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    d_bias = taps.new_empty(0) if bias is None else bias.new_empty(bias.shape)
    d_shift = taps.new_empty(0) if shift is None else _turned(shift)
    return x.new_empty(x.shape), d_bias, _turned(taps), d_shift


def _turned(taps: Tensor) -> Tensor:
    """Room for the gradients of a skip (H), and behind it of taps (H,N): (H,1 + N), in memory as (1 + N,H), rows dense.

    Not one row for both: who adds to a gradient in place would add to the other.
    """
    heads, reach = taps.shape
    return taps.new_empty((1 + reach, heads), dtype=torch.float32).t()


@_gated_backward.register_fake
def _(dy, x, bias, taps, shift, starts, w, c, shifted, table, shift_table, longest, order):
    return _gradients_like(x, bias, taps, shift)


def _setup(ctx, inputs, output) -> None:
    x, bias, taps, _, shift, _, starts, ctx.longest, ctx.order, ctx.saved = inputs
    ctx.given = [part is not None for part in inputs[:6]]
    ctx.save_for_backward(x, bias, taps, shift, starts, *output[1:])
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)  # otherwise zeros as large as what is saved would be written


def _gradients(ctx, dy: Tensor, *_: Tensor | None):
    if not ctx.saved:
        raise RuntimeError("gated_long_conv was called for its output alone.")
    dx, d_bias, d_taps, d_shift = _gated_backward(dy.contiguous(), *ctx.saved_tensors, ctx.longest, ctx.order)
    _, has_bias, _, has_skip, has_shift, has_shift_skip = ctx.given
    return (
        dx,
        d_bias if has_bias else None,
        d_taps[:, 1:],
        d_taps[:, 0] if has_skip else None,
        d_shift[:, 1:] if has_shift else None,
        d_shift[:, 0] if has_shift_skip else None,
        *[None] * 4,
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
    packing: Packing | None = None,
) -> Tensor:
    """`long_conv.gated_reference` by the kernels above, for heads of one or two channels."""
    length, x_EBL = length_of(x_BLE, packing), x_BLE.permute(2, 0, 1).contiguous()
    bias_E, skip_H, shift_skip_D = dense_rows(bias_E), dense_rows(skip_H), dense_rows(shift_skip_D)
    given = (x_EBL, bias_E, _planes(taps_NH, length), skip_H, _planes(shift_ND, length), shift_skip_D)
    save = differentiated(*given)
    return _gated(*given, *starts_and_longest(packing), order, save)[0].permute(1, 2, 0)
