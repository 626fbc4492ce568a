"""`add_layer_norm` in Triton: one pass over the rows forward, one backward, and a small sum of partial gradients.

A tile is a few whole rows, so that a row's statistics never leave the registers. The backward's programs, fixed in
number, walk over the tiles and each leave one partial sum of the gain's and the bias's gradients. Saved: r, and mean
and 1 / sqrt(var + eps) of each row in float32.
"""

# mypy: allow-untyped-defs

import torch
import triton
import triton.language as tl
from torch import Tensor

from .dense_rows import dense_rows
from .dependents import dependent
from .dependents_triton import follow
from .differentiated import once_differentiable
from .draws import TOGETHER as GROUP
from .draws import Draws, padded, threshold
from .partial_sums_triton import sum_parts
from .row_walks import walk_of_norm
from .table_rows_triton import columns, kept_rows, table_rows

TILE = 2048  # elements, for four warps: 16 per thread, which leaves room for several programs a multiprocessor
FEW, FEW_WARPS = 512, 8  # up to so many rows, as in a decode step, twice the threads: fewer loads behind one another
TOGETHER = tl.constexpr(GROUP)


@triton.jit
def _drawn(row, steps, seed, threshold, ROWS: tl.constexpr, BLOCK_D: tl.constexpr):
    """Which elements of whole rows stay, as `draws` has it."""
    group = row[:, None] * (BLOCK_D // TOGETHER) + tl.arange(0, BLOCK_D // TOGETHER)[None, :]
    zero = tl.zeros_like(group)
    a, b, c, d = tl.philox(seed, group, zero + tl.load(steps).to(tl.int32), zero, zero)
    numbers = tl.reshape(tl.join(tl.join(a, b), tl.join(c, d)), (ROWS, BLOCK_D))
    return (numbers >> 1).to(tl.int32) < threshold


@triton.jit(do_not_specialize=["seed"])
def add_norm_forward_kernel(
    h, residual, kept, weight, bias, y, r, stats, steps, tokens, rows, scale, eps, seed, threshold, vocabulary,
    D: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr, HAS_RESIDUAL: tl.constexpr, HAS_KEPT: tl.constexpr,
    HAS_BIAS: tl.constexpr, CENTER: tl.constexpr, STORE_R: tl.constexpr, DRAW: tl.constexpr, TABLE: tl.constexpr,
    EARLY: tl.constexpr = False,
):  # fmt: skip
    """With TABLE, h is the row of a table that each token names; NaN for a token that it does not have."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, BLOCK_D)
    gain = tl.load(weight + column, mask=column < D, other=0.0).to(tl.float32)[None, :]
    follow(EARLY)
    inside = (row < rows)[:, None] & (column < D)[None, :]
    at = row.to(tl.int64)[:, None] * D + column[None, :]
    if TABLE:
        x = table_rows(h, tokens, row, column, inside, rows, vocabulary, D)
    else:
        x = tl.load(h + at, mask=inside, other=0.0).to(tl.float32)
    if HAS_KEPT:
        x = tl.where(tl.load(kept + at, mask=inside, other=0) != 0, x * scale, 0.0)
    if DRAW:
        stays = _drawn(row, steps, seed, threshold, ROWS, BLOCK_D)
        tl.store(kept + at, stays.to(tl.uint8), mask=inside)
        x = tl.where(stays, x * scale, 0.0)
    if HAS_RESIDUAL:
        x += tl.load(residual + at, mask=inside, other=0.0).to(tl.float32)
    if STORE_R:
        x = x.to(r.dtype.element_ty)
        tl.store(r + at, x, mask=inside)
        x = x.to(tl.float32)
    if CENTER:
        mean = tl.sum(x, axis=1) / D
        x = tl.where(inside, x - mean[:, None], 0.0)
        tl.store(stats + row, mean, mask=row < rows)
    rstd = 1 / tl.sqrt(tl.sum(x * x, axis=1) / D + eps)
    tl.store(stats + rows + row, rstd, mask=row < rows)
    x = x * rstd[:, None] * gain
    if HAS_BIAS:
        x += tl.load(bias + column, mask=column < D, other=0.0).to(tl.float32)[None, :]
    tl.store(y + at, x.to(y.dtype.element_ty), mask=inside)


@triton.jit
def input_gradient(g, x, gain, rstd, D: tl.constexpr, CENTER: tl.constexpr):
    """Of a norm's input, from the gradient g of its output and its normalised input x."""
    g *= gain
    grad = g - x * (tl.sum(g * x, axis=1) / D)[:, None]
    if CENTER:
        grad -= (tl.sum(g, axis=1) / D)[:, None]
    return grad * rstd[:, None]


@triton.jit
def store_parameters(partials, d_gain, d_bias, column, D: tl.constexpr, HAS_BIAS: tl.constexpr):
    """A program's part of the gradients of gain and bias, from its sums for each row of a tile."""
    part = partials + tl.program_id(0) * (D * (2 if HAS_BIAS else 1)) + column
    tl.store(part, tl.sum(d_gain, axis=0), mask=column < D)
    if HAS_BIAS:
        tl.store(part + D, tl.sum(d_bias, axis=0), mask=column < D)


@triton.jit
def add_norm_backward_kernel(
    dy, dr, r, tokens, kept, weight, stats, dx, dh, partials, rows, scale, vocabulary,
    D: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr, HAS_DR: tl.constexpr, HAS_KEPT: tl.constexpr,
    HAS_BIAS: tl.constexpr, CENTER: tl.constexpr, STORE_DX: tl.constexpr, STORE_DH: tl.constexpr, TABLE: tl.constexpr,
    AHEAD: tl.constexpr,
):  # fmt: skip
    """With TABLE, r is a table: what the forward normalised is taken from it again."""
    column = columns(BLOCK_D, HAS_KEPT)
    gain = tl.load(weight + column, mask=column < D, other=0.0).to(tl.float32)
    d_gain = tl.zeros((ROWS, BLOCK_D), tl.float32)
    d_bias = tl.zeros((ROWS, BLOCK_D), tl.float32)
    for tile in tl.range(tl.program_id(0), tl.cdiv(rows, ROWS), tl.num_programs(0), num_stages=AHEAD):
        row = tile * ROWS + tl.arange(0, ROWS)
        inside = (row < rows)[:, None] & (column < D)[None, :]
        at = row.to(tl.int64)[:, None] * D + column[None, :]
        g = tl.load(dy + at, mask=inside, other=0.0).to(tl.float32)
        if TABLE:
            x = kept_rows(r, tokens, kept, row, at, column, inside, rows, vocabulary, scale, D, HAS_KEPT)
        else:
            x = tl.load(r + at, mask=inside, other=0.0).to(tl.float32)
        rstd = tl.load(stats + rows + row, mask=row < rows, other=0.0)
        if CENTER:
            mean = tl.load(stats + row, mask=row < rows, other=0.0)
            x = tl.where(inside, x - mean[:, None], 0.0)
        x *= rstd[:, None]
        d_gain += g * x
        if HAS_BIAS:
            d_bias += g
        grad = input_gradient(g, x, gain[None, :], rstd, D, CENTER)
        if HAS_DR:
            grad += tl.load(dr + at, mask=inside, other=0.0).to(tl.float32)
        if STORE_DX:
            tl.store(dx + at, grad.to(dx.dtype.element_ty), mask=inside)
        if STORE_DH:
            if HAS_KEPT:
                grad = tl.where(tl.load(kept + at, mask=inside, other=0) != 0, grad * scale, 0.0)
            tl.store(dh + at, grad.to(dh.dtype.element_ty), mask=inside)
    store_parameters(partials, d_gain, d_bias, column, D, HAS_BIAS)


@torch.library.custom_op("basedbench::add_norm", mutates_args=())
def _add_norm(
    h: Tensor, residual: Tensor | None, kept: Tensor | None, steps: Tensor | None, weight: Tensor, bias: Tensor | None,
    seed: int, keep: float, eps: float, center: bool, dtype: torch.dtype | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """y, r (empty where it is h), each row's mean and 1 / sqrt(var + eps), and what of h stays (empty if not drawn)."""
    h, residual, kept = h.contiguous(), _contiguous(residual), _bytes(kept)
    y, r, stats, drawn = outputs = _outputs(h, residual, kept, steps, weight, dtype)
    launch_forward(h, residual, kept, steps, None, weight, bias, seed, keep, eps, center, *outputs)
    return y, r, stats, drawn


def launch_forward(h, residual, kept, steps, tokens, weight, bias, seed, keep, eps, center, y, r, stats, drawn) -> None:
    """Writes y, r, stats and drawn, whichever are not empty. With tokens, h is a table of their rows."""
    width, weight, bias = h.shape[-1], dense_rows(weight), dense_rows(bias)
    if y.numel():
        block = triton.next_power_of_2(width) if steps is None else padded(width)
        tile, rows = max(1, TILE // block), y.numel() // width
        add_norm_forward_kernel[(triton.cdiv(rows, tile),)](
            h, residual, kept if steps is None else drawn, weight, bias, y, r, stats, steps, tokens, rows, 1 / keep,
            eps, seed, threshold(keep), len(h), D=width, BLOCK_D=block, ROWS=tile, HAS_RESIDUAL=residual is not None,
            HAS_KEPT=kept is not None, HAS_BIAS=bias is not None, CENTER=center, STORE_R=r.numel() > 0,
            DRAW=steps is not None, TABLE=tokens is not None,
            num_warps=FEW_WARPS if rows <= FEW and block * tile >= TILE else 4, **dependent(),
        )  # fmt: skip


@_add_norm.register_fake
def _(h, residual, kept, steps, weight, bias, seed, keep, eps, center, dtype):
    return _outputs(h.contiguous(), residual, kept, steps, weight, dtype)


def _outputs(
    h: Tensor, residual: Tensor | None, kept: Tensor | None, steps: Tensor | None, weight: Tensor,
    dtype: torch.dtype | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    stream = h.dtype if residual is None else torch.promote_types(h.dtype, residual.dtype)
    same = residual is None and kept is None and steps is None
    drawn = h.new_empty(0 if steps is None else h.shape, dtype=torch.uint8)
    y = torch.empty_like(h, dtype=dtype or torch.promote_types(stream, weight.dtype))
    r = h.new_empty(0) if same else torch.empty_like(h, dtype=stream)
    return y, r, h.new_empty((2, h.numel() // h.shape[-1]), dtype=torch.float32), drawn


def _contiguous(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.contiguous()


def _bytes(kept: Tensor | None) -> Tensor | None:
    return None if kept is None else kept.contiguous().view(torch.uint8)


@torch.library.custom_op("basedbench::add_norm_backward", mutates_args=())
def backward_operator(
    dy: Tensor, dr: Tensor | None, r: Tensor, tokens: Tensor | None, kept: Tensor | None, weight: Tensor,
    bias: Tensor | None, stats: Tensor, keep: float, residual: bool, center: bool, dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients: of r (empty if nobody asks), of h in `dtype` (empty if that of r), of weight and bias (2 D or D).

    With tokens, r is a table whose rows after dropout are meant.
    """
    dy, dr, r, kept = dy.contiguous(), _contiguous(dr), r.contiguous(), _bytes(kept)
    width = r.shape[-1]
    rows, ways = dy.numel() // width, 1 if bias is None else 2
    dx, dh = _input_gradients(dy, r.dtype, kept, residual, dtype)
    walk = walk_of_norm(rows, width, kept is not None)
    partials = torch.empty((walk.programs, ways * width), dtype=torch.float32, device=r.device)
    add_norm_backward_kernel[(walk.programs,)](
        dy, dr, r, _contiguous(tokens), kept, dense_rows(weight), stats, dx, dh, partials, rows, 1 / keep, len(r),
        D=width, HAS_DR=dr is not None, HAS_KEPT=kept is not None, HAS_BIAS=bias is not None, CENTER=center,
        STORE_DX=dx.numel() > 0, STORE_DH=dh.numel() > 0, TABLE=tokens is not None, **walk.constants,
    )  # fmt: skip
    return dx, dh, sum_parts(partials, weight.dtype, (weight, bias))


@backward_operator.register_fake
def _(
    dy: Tensor, dr: Tensor | None, r: Tensor, tokens: Tensor | None, kept: Tensor | None, weight: Tensor,
    bias: Tensor | None, stats: Tensor, keep: float, residual: bool, center: bool, dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    ways = 1 if bias is None else 2
    return *_input_gradients(dy.contiguous(), r.dtype, kept, residual, dtype), weight.new_empty(ways * r.shape[-1])


def _input_gradients(
    dy: Tensor, stream: torch.dtype, kept: Tensor | None, residual: bool, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    same = kept is None and dtype == stream
    dx = torch.empty_like(dy, dtype=stream) if residual or same else dy.new_empty(0, dtype=stream)
    return dx, dy.new_empty(0, dtype=dtype) if same else torch.empty_like(dy, dtype=dtype)


def _setup(ctx, inputs, output) -> None:
    h, residual, kept, steps, weight, bias, _, ctx.keep, _, ctx.center, _ = inputs
    _, r, stats, drawn = output
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(stats, drawn)
    kept = kept if steps is None else drawn
    ctx.same, ctx.dtype, ctx.has_residual = r.numel() == 0, h.dtype, residual is not None
    ctx.save_for_backward(h if ctx.same else r, kept, weight, bias, stats)


def _gradients(ctx, dy: Tensor | None, dr: Tensor | None, *_: None):
    r, kept, weight, bias, stats = ctx.saved_tensors
    if dy is None:  # only the sum was used
        dy = torch.zeros_like(r)
    options = ctx.keep, ctx.has_residual, ctx.center, ctx.dtype
    dx, dh, parameters = backward_operator(dy, None if ctx.same else dr, r, None, kept, weight, bias, stats, *options)
    d_weight, d_bias = (parameters, None) if bias is None else parameters.view(2, -1)
    d_residual = dx if ctx.has_residual else None
    return dh if dh.numel() else dx, d_residual, None, None, d_weight, d_bias, None, None, None, None, None


_add_norm.register_autograd(_gradients, setup_context=_setup)


class _NormAndStream(torch.autograd.Function):
    """Where r is h itself: an operator may not return it, and autograd would add its gradient in a pass of its own."""

    @staticmethod
    def forward(ctx, h, weight, bias, eps, center, dtype):
        y, _, stats, _ = _add_norm(h, None, None, None, weight, bias, 0, 1.0, eps, center, dtype)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(h, weight, bias, stats)
        ctx.center = center
        return y, h.view_as(h)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy, dr):
        h, weight, bias, stats = ctx.saved_tensors
        if dy is None:
            return dr, None, None, None, None, None
        dh, _, sums = backward_operator(dy, dr, h, None, None, weight, bias, stats, 1.0, False, ctx.center, h.dtype)
        d_weight, d_bias = (sums, None) if bias is None else sums.view(2, -1)
        return dh, d_weight, d_bias, None, None, None


def add_layer_norm(
    h_xD: Tensor, residual_xD: Tensor | None, weight_D: Tensor, bias_D: Tensor | None = None, *,
    eps: float = 1e-5, kept_xD: Tensor | Draws | None = None, keep: float = 1.0, center: bool = True,
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """`add_layer_norm.reference` by the kernels above."""
    if residual_xD is None and kept_xD is None:
        return _NormAndStream.apply(h_xD, weight_D, bias_D, eps, center, dtype)
    mask = kept_xD if isinstance(kept_xD, Tensor) else None
    seed, steps = kept_xD if isinstance(kept_xD, Draws) else (0, None)
    y_xD, r_xD, _, _ = _add_norm(h_xD, residual_xD, mask, steps, weight_D, bias_D, seed, keep, eps, center, dtype)
    return y_xD, r_xD
