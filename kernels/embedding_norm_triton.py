"""`embedding_norm` by the kernels of `add_layer_norm` and `embedding`; its backward by one of its own where it can be.

Where the places of each token are known and the stream is rows of the table, the gradient of a row of the table is a
sum over its token's places, of what the norm and dropout make of dy there. One kernel does both: what it adds up never
goes through memory, and the row that was normalised is loaded once for all places.
"""

# mypy: allow-untyped-defs, disable-error-code="assignment,misc,var-annotated"

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import add_layer_norm_triton as norms
from . import embedding_triton as tables
from .add_layer_norm_triton import input_gradient, store_parameters
from .block_boundary import Norm
from .company import most_programs
from .dense_rows import dense_rows
from .differentiated import once_differentiable
from .draws import Draws
from .embedding import Places, Rows
from .partial_sums_triton import sum_parts

TILE = 256  # elements of a token's places that a program has at a time, for one warp: it waits for no other
# Columns of a thread, which has one row. With more rows the assembler loads one, and computes, before the next.
ALIKE = tl.constexpr(8)
PROGRAMS = 2048  # fixed, so that sums are made in one order on every device
WORDS = 4  # tokens, at most, over whose places a program walks in one loop
AHEAD = 3  # stages: two tiles are under way to shared memory while one is summed
# A thread's, by the columns of a row: so many programs run at once that 2,048 are there together on an H200.
REGISTERS = {64: 112, 128: 112, 256: 128}


@triton.jit
def embedding_norm_places_kernel(
    dy, dr, table, kept, weight, stats, order, starts, batches, cursor, out, partials, count, vocabulary, scale,
    D: tl.constexpr, BLOCK_D: tl.constexpr, PLACES: tl.constexpr, WORDS: tl.constexpr, AHEAD: tl.constexpr,
    HAS_DR: tl.constexpr, HAS_KEPT: tl.constexpr, HAS_BIAS: tl.constexpr, CENTER: tl.constexpr,
):  # fmt: skip
    """Places of `count` and more are passed over: those of another batch than dy's.

    A program walks over the tiles of WORDS neighbouring tokens in one loop, a token without places having one. Which
    places a tile has follows from its number and from where tokens' places begin, so that no load waits for a sum and
    the next token's are under way before this one's are complete.
    """
    begin = starts + tl.load(batches + tl.load(cursor)).to(tl.int64) * vocabulary
    column = tl.max_contiguous(tl.arange(0, BLOCK_D), min(ALIKE, BLOCK_D))
    lane = tl.arange(0, PLACES)
    gain = tl.load(weight + column, mask=column < D, other=0.0).to(tl.float32)[None, :]
    d_gain = tl.zeros((PLACES, BLOCK_D), tl.float32)
    d_bias = tl.zeros((PLACES, BLOCK_D), tl.float32)
    total = tl.zeros((PLACES, BLOCK_D), tl.float32)
    for token in range(tl.program_id(0) * WORDS, vocabulary, tl.num_programs(0) * WORDS):
        edge, first = (tl.load(begin + token),), (0,)
        for k in tl.static_range(WORDS):
            edge += (tl.load(begin + min(token + k + 1, vocabulary)),)
            tiles = tl.where(token + k < vocabulary, max(tl.cdiv(edge[k + 1] - edge[k], PLACES), 1), 0)
            first += (first[k] + tiles,)
        word, begun, until = token, 0, first[1]  # of the token whose sum is made; below, of the one that is loaded
        named = tl.zeros((PLACES, BLOCK_D), tl.float32)
        for tile in tl.range(0, first[WORDS], num_stages=AHEAD):
            loaded, since, start, stop = token, 0, edge[0], edge[1]
            for k in tl.static_range(1, WORDS):
                later = tile >= first[k]
                loaded, since = tl.where(later, token + k, loaded), tl.where(later, first[k], since)
                start, stop = tl.where(later, edge[k], start), tl.where(later, edge[k + 1], stop)
            index = start + (tile - since) * PLACES + lane
            row = tl.load(order + index, mask=index < stop, other=count)
            inside = (row < count)[:, None] & (column < D)[None, :]
            at = row.to(tl.int64)[:, None] * D + column[None, :]
            g = tl.load(dy + at, mask=inside, other=0.0).to(tl.float32)
            if HAS_DR:
                given = tl.load(dr + at, mask=inside, other=0.0)
            if HAS_KEPT:
                kept_here = tl.load(kept + at, mask=inside, other=0)
            if CENTER:
                mean = tl.load(stats + row, mask=row < count, other=0.0)
            rstd = tl.load(stats + count + row, mask=row < count, other=0.0)
            wanted = (column < D) & (tile == since)
            new = tl.load(table + tl.cast(loaded, tl.int64) * D + column, mask=wanted, other=0.0).to(tl.float32)
            if HAS_KEPT:
                new *= scale
            named = tl.where(tile == begun, tl.broadcast_to(new[None, :], (PLACES, BLOCK_D)), named)
            x = named
            if HAS_KEPT:
                stays = kept_here != 0
                x = tl.where(stays, x, 0.0)
            if CENTER:
                x -= mean[:, None]
            x *= rstd[:, None]
            if not HAS_KEPT or (CENTER and D < BLOCK_D):  # else zero already: nothing stays there, nor is a mean
                x = tl.where((rstd != 0)[:, None] & (column < D)[None, :], x, 0.0)
            d_gain += g * x
            if HAS_BIAS:
                d_bias += g
            grad = input_gradient(g, x, gain, rstd, D, CENTER)
            if HAS_DR:
                grad += given.to(tl.float32)
            if HAS_KEPT:
                grad = tl.where(stays, grad, 0.0)
            total += grad
            if tile + 1 == until:
                d_word = tl.sum(total, axis=0)
                if HAS_KEPT:
                    d_word *= scale
                tl.store(out + tl.cast(word, tl.int64) * D + column, d_word.to(out.dtype.element_ty), mask=column < D)
                total = tl.zeros((PLACES, BLOCK_D), tl.float32)
                word += 1
                for k in tl.static_range(1, WORDS):
                    if word == token + k:
                        until = first[k + 1]
                begun = tile + 1
    store_parameters(partials, d_gain, d_bias, column, D, HAS_BIAS)


@torch.library.custom_op("basedbench::embedding_norm_backward", mutates_args=())
def _backward_by_places(
    dy: Tensor, dr: Tensor | None, table: Tensor, kept: Tensor | None, weight: Tensor, bias: Tensor | None,
    stats: Tensor, order: Tensor, starts: Tensor, batches: Tensor, cursor: Tensor, keep: float, center: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Gradients of the table and of weight and bias (2 D or D)."""
    dy, dr, table = dy.contiguous(), None if dr is None else dr.contiguous(), table.contiguous()
    (vocabulary, width), ways = table.shape, 1 if bias is None else 2
    block = triton.next_power_of_2(width)
    words = min(WORDS, triton.cdiv(vocabulary, PROGRAMS))
    programs = min(most_programs(PROGRAMS), triton.cdiv(vocabulary, words))
    out = torch.empty_like(table)
    partials = torch.empty((programs, ways * width), dtype=torch.float32, device=dy.device)
    embedding_norm_places_kernel[(programs,)](
        dy, dr, table, kept, dense_rows(weight), stats, order, starts, batches, cursor, out, partials,
        dy.numel() // width, vocabulary, 1 / keep, D=width, BLOCK_D=block, PLACES=max(1, TILE // block), WORDS=words,
        AHEAD=AHEAD, HAS_DR=dr is not None, HAS_KEPT=kept is not None, HAS_BIAS=bias is not None, CENTER=center,
        num_warps=1, maxnreg=REGISTERS.get(block),
    )  # fmt: skip
    return out, sum_parts(partials, weight.dtype, (weight, bias))


@_backward_by_places.register_fake
def _(dy, dr, table, kept, weight, bias, stats, order, starts, batches, cursor, keep, center):
    return torch.empty_like(table), weight.new_empty((1 if bias is None else 2) * table.shape[1])


class _EmbeddingNorm(torch.autograd.Function):
    """Keeps the stream, or the table that it can be had from again, the statistics and what stays."""

    @staticmethod
    def forward(ctx, tokens, table, weight, bias, draws, places, keep, eps, center, dtype, stream, written):
        seed, steps = draws or (0, None)
        shape = (*tokens.shape, table.shape[1])
        y, r = table.new_empty(shape, dtype=dtype), table.new_empty(shape if written else 0, dtype=stream)
        stats = table.new_empty((2, tokens.numel()), dtype=torch.float32)
        drawn = None if steps is None else table.new_empty(shape, dtype=torch.uint8)
        given = table.contiguous(), None, None, steps, tokens.contiguous(), weight, bias
        norms.launch_forward(*given, seed, keep, eps, center, y, r, stats, drawn)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(tokens, r if written else table, drawn, weight, bias, stats, *(places or ()))
        ctx.table, ctx.options = (len(table), table.dtype), (keep, False, center, table.dtype)
        ctx.written, ctx.outputs = written, (shape, dtype)
        if drawn is not None:
            ctx.mark_non_differentiable(drawn)
        # Unwritten, it has the shape and the dtype that its gradient will have, and no memory. That gradient is y's
        # and h's, which have dtype: in float32 beside them it would be twice the bytes for the same numbers.
        return y, r if written else table.new_empty((), dtype=dtype).expand(shape), drawn

    @staticmethod
    @once_differentiable
    def backward(ctx, dy, dr, _):
        tokens, r, drawn, weight, bias, stats, *places = ctx.saved_tensors
        shape, dtype = ctx.outputs
        dy = torch.zeros(shape, dtype=dtype, device=r.device) if dy is None else dy
        if places and not ctx.written:
            keep, _, center, _ = ctx.options
            d_table, sums = _backward_by_places(dy, dr, r, drawn, weight, bias, stats, *places, keep, center)
        else:
            named = None if ctx.written else tokens
            dx, dh, sums = norms.backward_operator(dy, dr, r, named, drawn, weight, bias, stats, *ctx.options)
            d_table = tables.table_gradient(dh if dh.numel() else dx, tokens, places or None, *ctx.table)
        d_weight, d_bias = (sums, None) if bias is None else sums.view(2, -1)
        return None, d_table, d_weight, d_bias, None, None, None, None, None, None, None, None


def embedding_norm(
    tokens_x: Tensor, weight_VD: Tensor, norm: Norm, *, places: Places | None, eps: float, kept_xD: Draws | None,
    keep: float, center: bool, dtype: torch.dtype | None, stream: torch.dtype | None = None, written: bool = True,
) -> tuple[Tensor, Tensor, Rows | None]:  # fmt: skip
    """`embedding_norm.reference` by the kernels above, or `unwritten_embedding_norm`."""
    stream = stream or weight_VD.dtype
    dtype = dtype or torch.promote_types(stream, norm[0].dtype)
    options = kept_xD, places, keep, eps, center, dtype, stream, written
    y_xD, r_xD, kept = _EmbeddingNorm.apply(tokens_x, weight_VD, *norm, *options)
    return y_xD, r_xD, None if written else Rows(weight_VD.detach(), tokens_x, kept, keep)
