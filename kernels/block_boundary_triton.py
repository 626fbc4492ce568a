"""`block_boundary` in Triton: one pass over the rows forward, one backward, and a small sum of partial gradients.

A row lives in registers. Saved: r in the stream's dtype and the statistics of both norms; the backward forms the rest
again. As in `add_layer_norm`, the backward's programs are fixed in number and leave one partial sum each of the gains'
and biases' gradients. With slots of asked tokens the forward also writes their rows there;
the backward adds what comes back for them to the rows that they are copies of. A stream that is rows of a table
(`Rows`) is read from the table, by the backward too: it lies in the L2 cache, and neither r nor the stream is written.
"""

# mypy: allow-untyped-defs

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .add_layer_norm_triton import input_gradient
from .asked import Asked, Questions
from .block_boundary import Norm
from .dense_rows import dense_rows
from .embedding import Rows
from .partial_sums_triton import sum_parts
from .row_walks import walk_of_boundary
from .table_rows_triton import columns, kept_rows

TILE = 2048  # elements of a tile of the forward, for four warps


@triton.jit
def _residual(
    residual, tokens, kept, row, at, column, inside, rows, vocabulary, scale, D: tl.constexpr, HAS_TABLE: tl.constexpr,
    HAS_KEPT: tl.constexpr,
):  # fmt: skip
    """Rows of the stream; with HAS_TABLE those of a table after dropout."""
    if HAS_TABLE:
        return kept_rows(residual, tokens, kept, row, at, column, inside, rows, vocabulary, scale, D, HAS_KEPT)
    return tl.load(residual + at, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def _parameters(weight, bias, column, D: tl.constexpr, HAS_BIAS: tl.constexpr):
    gain = tl.load(weight + column, mask=column < D, other=0.0).to(tl.float32)
    shift = tl.zeros_like(gain)
    if HAS_BIAS:
        shift = tl.load(bias + column, mask=column < D, other=0.0).to(tl.float32)
    return gain[None, :], shift[None, :]


@triton.jit
def _normalised(x, inside, eps, D: tl.constexpr, CENTER: tl.constexpr):
    """x without mean, over its standard deviation; and both statistics, one per row."""
    mean = tl.zeros([x.shape[0]], tl.float32)
    if CENTER:
        mean = tl.sum(x, axis=1) / D
        x = tl.where(inside, x - mean[:, None], 0.0)
    rstd = 1 / tl.sqrt(tl.sum(x * x, axis=1) / D + eps)
    return x * rstd[:, None], mean, rstd


@triton.jit
def _normalised_again(x, stats, row, rows, inside, CENTER: tl.constexpr):
    """`_normalised` from the statistics of the forward."""
    rstd = tl.load(stats + rows + row, mask=row < rows, other=0.0)
    if CENTER:
        mean = tl.load(stats + row, mask=row < rows, other=0.0)
        x = tl.where(inside, x - mean[:, None], 0.0)
    return x * rstd[:, None], rstd


@triton.jit
def boundary_forward_kernel(
    h, residual, tokens, kept, slots, first_weight, first_bias, weight, bias, y, s, r, at_rows, stats, rows,
    vocabulary, scale, eps, D: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr, HAS_TABLE: tl.constexpr,
    HAS_KEPT: tl.constexpr, HAS_SLOTS: tl.constexpr, HAS_FIRST: tl.constexpr, HAS_BIAS: tl.constexpr,
    CENTER: tl.constexpr, STORE_R: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = columns(BLOCK_D, HAS_KEPT)
    inside = (row < rows)[:, None] & (column < D)[None, :]
    at = row.to(tl.int64)[:, None] * D + column[None, :]
    x = tl.load(h + at, mask=inside, other=0.0).to(tl.float32)
    x += _residual(
        residual, tokens, kept, row, at, column, inside, rows, vocabulary, scale, D, HAS_TABLE, HAS_KEPT
    )  # fmt: skip
    x = x.to(s.dtype.element_ty)
    if STORE_R:
        tl.store(r + at, x, mask=inside)
    if HAS_FIRST:
        x = x.to(tl.float32)
        gain, shift = _parameters(first_weight, first_bias, column, D, True)
        normalised, mean, rstd = _normalised(x, inside, eps, D, True)
        tl.store(stats + 2 * rows + row, mean, mask=row < rows)
        tl.store(stats + 3 * rows + row, rstd, mask=row < rows)
        x = (x + normalised * gain + shift).to(s.dtype.element_ty)
    gain, shift = _parameters(weight, bias, column, D, HAS_BIAS)
    normalised, mean, rstd = _normalised(x.to(tl.float32), inside, eps, D, CENTER)
    tl.store(stats + row, mean, mask=row < rows)
    tl.store(stats + rows + row, rstd, mask=row < rows)
    out = (normalised * gain + shift).to(y.dtype.element_ty)
    tl.store(y + at, out, mask=inside)
    if HAS_SLOTS:
        slot = tl.load(slots + row, mask=row < rows, other=-1)
        to = slot.to(tl.int64)[:, None] * D + column[None, :]
        taken = inside & (slot >= 0)[:, None]
        tl.store(at_rows + to, out, mask=taken)
        tl.store(s + to, x, mask=taken)
    else:
        tl.store(s + at, x, mask=inside)


@triton.jit
def boundary_backward_kernel(
    dy, ds, d_at_rows, r, table, tokens, kept, slots, first_weight, first_bias, weight, stats, dresidual, dh, partials,
    rows, vocabulary, scale, D: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr, HAS_TABLE: tl.constexpr,
    HAS_KEPT: tl.constexpr, HAS_SLOTS: tl.constexpr, HAS_FIRST: tl.constexpr, HAS_BIAS: tl.constexpr,
    CENTER: tl.constexpr, HAS_DS: tl.constexpr, HAS_AT: tl.constexpr, STORE_DH: tl.constexpr, AHEAD: tl.constexpr,
):  # fmt: skip
    """With HAS_TABLE, r is h: the stream that it was added to is taken from the table again."""
    column = columns(BLOCK_D, HAS_KEPT)
    gain, _ = _parameters(weight, weight, column, D, False)
    first_gain, first_shift = _parameters(first_weight, first_bias, column, D, HAS_FIRST)
    d_gain = tl.zeros((ROWS, BLOCK_D), tl.float32)
    d_shift = tl.zeros((ROWS, BLOCK_D), tl.float32)
    d_first_gain = tl.zeros((ROWS, BLOCK_D), tl.float32)
    d_first_shift = tl.zeros((ROWS, BLOCK_D), tl.float32)
    for tile in tl.range(tl.program_id(0), tl.cdiv(rows, ROWS), tl.num_programs(0), num_stages=AHEAD):
        row = tile * ROWS + tl.arange(0, ROWS)
        inside = (row < rows)[:, None] & (column < D)[None, :]
        at = row.to(tl.int64)[:, None] * D + column[None, :]
        given, back = at, inside
        if HAS_SLOTS:
            slot = tl.load(slots + row, mask=row < rows, other=-1)
            given = slot.to(tl.int64)[:, None] * D + column[None, :]
            back = inside & (slot >= 0)[:, None]
        g = tl.load(dy + at, mask=inside, other=0.0).to(tl.float32)
        if HAS_AT:
            g += tl.load(d_at_rows + given, mask=back, other=0.0).to(tl.float32)
        x = tl.load(r + at, mask=inside, other=0.0).to(tl.float32)
        if HAS_TABLE:
            x += kept_rows(table, tokens, kept, row, at, column, inside, rows, vocabulary, scale, D, HAS_KEPT)
        s = x
        if HAS_FIRST:
            x, first_rstd = _normalised_again(x, stats + 2 * rows, row, rows, inside, True)
            s += x * first_gain + first_shift
            if not HAS_TABLE:  # whose stream is float32
                s = s.to(dresidual.dtype.element_ty).to(tl.float32)
        normalised, rstd = _normalised_again(s, stats, row, rows, inside, CENTER)
        d_gain += g * normalised
        d_shift += g
        grad = input_gradient(g, normalised, gain, rstd, D, CENTER)
        if HAS_DS:
            grad += tl.load(ds + given, mask=back, other=0.0).to(tl.float32)
        if HAS_FIRST:
            d_first_gain += grad * x
            d_first_shift += grad
            grad += input_gradient(grad, x, first_gain, first_rstd, D, True)
        tl.store(dresidual + at, grad.to(dresidual.dtype.element_ty), mask=inside)
        if STORE_DH:
            tl.store(dh + at, grad.to(dh.dtype.element_ty), mask=inside)
    part = partials + tl.program_id(0) * (D * (4 if HAS_FIRST else 2)) + column
    tl.store(part, tl.sum(d_gain, axis=0), mask=column < D)
    tl.store(part + D, tl.sum(d_shift, axis=0), mask=column < D)
    if HAS_FIRST:
        tl.store(part + 2 * D, tl.sum(d_first_gain, axis=0), mask=column < D)
        tl.store(part + 3 * D, tl.sum(d_first_shift, axis=0), mask=column < D)


@torch.library.custom_op("basedbench::block_boundary", mutates_args=())
def _boundary(
    h: Tensor, residual: Tensor, table: Tensor | None, tokens: Tensor | None, kept: Tensor | None,
    slots: Tensor | None, asked: int, first_weight: Tensor | None, first_bias: Tensor | None, weight: Tensor,
    bias: Tensor | None, keep: float, center: bool, eps: float, dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """y, s, y at the `asked` rows that have slots, r (empty where it is s, or can be had again from the table), each
    row's mean and 1 / sqrt(var + eps) of both norms. With slots s is there only; without, y there is empty.
    """
    h = h.contiguous()
    stream = residual.contiguous() if table is None else table.contiguous()
    found = _outputs(
        h, residual, table, tokens, kept, slots, asked, first_weight, first_bias, weight, bias, keep, center, eps, dtype
    )
    y, s, at_rows, r, stats = found
    width, rows = h.shape[-1], stats.shape[1]
    block = triton.next_power_of_2(width)
    tile = max(1, TILE // block)
    if rows:
        boundary_forward_kernel[(triton.cdiv(rows, tile),)](
            h, stream, _contiguous(tokens), kept, _contiguous(slots), dense_rows(first_weight), dense_rows(first_bias),
            dense_rows(weight), dense_rows(bias), y, s, r, at_rows, stats, rows, len(stream), 1 / keep, eps, D=width,
            BLOCK_D=block, ROWS=tile, HAS_TABLE=table is not None, HAS_KEPT=kept is not None,
            HAS_SLOTS=slots is not None, HAS_FIRST=first_weight is not None, HAS_BIAS=bias is not None,
            CENTER=center, STORE_R=r.numel() > 0,
        )  # fmt: skip
    return found


@_boundary.register_fake
def _outputs(
    h: Tensor, residual: Tensor, table: Tensor | None, tokens: Tensor | None, kept: Tensor | None,
    slots: Tensor | None, asked: int, first_weight: Tensor | None, first_bias: Tensor | None, weight: Tensor,
    bias: Tensor | None, keep: float, center: bool, eps: float, dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    stream, width = _stream(h, residual, table), h.shape[-1]
    given = h.shape if slots is None else (asked, width)
    s = h.new_empty(given, dtype=stream)
    at_rows = h.new_empty((0,) if slots is None else given, dtype=dtype)
    again = table is not None or (slots is None and first_weight is None)
    r = h.new_empty((0,) if again else h.shape, dtype=stream)
    stats = h.new_empty((2 if first_weight is None else 4, h.shape[:-1].numel()), dtype=torch.float32)
    return h.new_empty(h.shape, dtype=dtype), s, at_rows, r, stats


def _stream(h: Tensor, residual: Tensor, table: Tensor | None) -> torch.dtype:
    """The dtype of the stream; with a table, residual has no numbers, and the dtype of its gradient."""
    return torch.promote_types(h.dtype, (residual if table is None else table).dtype)


def _contiguous(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.contiguous()


@torch.library.custom_op("basedbench::block_boundary_backward", mutates_args=())
def _boundary_backward(
    dy: Tensor, ds: Tensor | None, d_at_rows: Tensor | None, r: Tensor, table: Tensor | None, tokens: Tensor | None,
    kept: Tensor | None, slots: Tensor | None, first_weight: Tensor | None, first_bias: Tensor | None, weight: Tensor,
    bias: Tensor | None, stats: Tensor, stream: torch.dtype, dtype: torch.dtype, keep: float, center: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of residual and h (empty where it is the same), and of the 2 or 4 parameters. With a table, r is h."""
    dy, ds, d_at_rows, r = dy.contiguous(), _contiguous(ds), _contiguous(d_at_rows), r.contiguous()
    dresidual = torch.empty(r.shape, dtype=stream, device=r.device)
    dh = torch.empty(r.shape if dtype != stream else (0,), dtype=dtype, device=r.device)
    width, rows = r.shape[-1], stats.shape[1]
    walk = walk_of_boundary(rows, width, kept is not None)
    ways = 2 if first_weight is None else 4
    partials = torch.empty((walk.programs, ways * width), dtype=torch.float32, device=r.device)
    weight = dense_rows(weight)
    first = (weight, weight) if first_weight is None else (dense_rows(first_weight), dense_rows(first_bias))
    boundary_backward_kernel[(walk.programs,)](
        dy, ds, d_at_rows, r, _contiguous(table), _contiguous(tokens), kept, _contiguous(slots), *first, weight, stats,
        dresidual, dh, partials, rows, 0 if table is None else len(table), 1 / keep, D=width,
        HAS_TABLE=table is not None, HAS_KEPT=kept is not None, HAS_SLOTS=slots is not None,
        HAS_FIRST=first_weight is not None, HAS_BIAS=bias is not None, CENTER=center, HAS_DS=ds is not None,
        HAS_AT=d_at_rows is not None and d_at_rows.numel() > 0, STORE_DH=dh.numel() > 0, **walk.constants,
    )  # fmt: skip
    sums = sum_parts(partials, weight.dtype, (weight, bias, first_weight, first_bias))
    return dresidual, dh, sums.view(ways, width)


@_boundary_backward.register_fake
def _(
    dy: Tensor, ds: Tensor | None, d_at_rows: Tensor | None, r: Tensor, table: Tensor | None, tokens: Tensor | None,
    kept: Tensor | None, slots: Tensor | None, first_weight: Tensor | None, first_bias: Tensor | None, weight: Tensor,
    bias: Tensor | None, stats: Tensor, stream: torch.dtype, dtype: torch.dtype, keep: float, center: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    dh = r.new_empty(r.shape if dtype != stream else (0,), dtype=dtype)
    parameters = weight.new_empty((2 if first_weight is None else 4, r.shape[-1]))
    return r.new_empty(r.shape, dtype=stream), dh, parameters


def _setup(ctx, inputs, output) -> None:
    h, residual, *rows, slots, _, first_weight, first_bias, weight, bias, ctx.keep, ctx.center, _, _ = inputs
    _, s, _, r, stats = output
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(r, stats)
    ctx.dtypes = residual.dtype, h.dtype
    kept = h if rows[0] is not None else r if r.numel() else s
    ctx.save_for_backward(kept, *rows, slots, first_weight, first_bias, weight, bias, stats)


def _gradients(ctx, dy: Tensor | None, ds: Tensor | None, d_at_rows: Tensor | None, *_: None):
    r, *_, bias, _ = saved = ctx.saved_tensors
    if dy is None:  # only the stream was used
        dy = torch.zeros_like(r)
    dresidual, dh, parameters = _boundary_backward(dy, ds, d_at_rows, *saved, *ctx.dtypes, ctx.keep, ctx.center)
    d_first = parameters[2:].unbind() if len(parameters) == 4 else (None, None)
    d_bias = None if bias is None else parameters[1]
    d_h = dh if dh.numel() else dresidual
    return d_h, dresidual, None, None, None, None, None, *d_first, parameters[0], d_bias, None, None, None, None


_boundary.register_autograd(_gradients, setup_context=_setup)


def block_boundary(h_xD: Tensor, residual_xD: Tensor, norm: Norm, **options: Any) -> tuple[Tensor, Tensor]:
    """`block_boundary.reference` by the kernels above."""
    y, s, *_ = _apply(h_xD, residual_xD, norm, None, 0, **options)
    return y, s


def last_boundary(
    h_BLD: Tensor, residual_BLD: Tensor, norm: Norm, questions: Questions, **options: Any
) -> tuple[Tensor, Asked, Tensor]:
    """`block_boundary.last_reference` by the kernels above."""
    shape = questions.positions_BK.shape
    y, s, at_rows, *_ = _apply(h_BLD, residual_BLD, norm, questions.slots_BL, shape.numel(), **options)
    at_BKD, s_BKD = (x.view(*shape, -1) for x in (at_rows, s))
    return y, Asked(questions, at_BKD), s_BKD


def _apply(
    h: Tensor, residual: Tensor, norm: Norm, slots: Tensor | None, asked: int, *, rows: Rows | None = None,
    first: Norm | None = None, center: bool = True, eps: float = 1e-5, dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    stream = _stream(h, residual, None if rows is None else rows.table_VD)
    pair = (None, None) if first is None else first
    dtype = dtype or torch.promote_types(stream, norm[0].dtype)
    *looked, keep = rows or (None, None, None, 1.0)
    found: tuple[Tensor, Tensor, Tensor, Tensor, Tensor] = _boundary(
        h, residual, *looked, slots, asked, *pair, *norm, keep, center, eps, dtype
    )
    return found
