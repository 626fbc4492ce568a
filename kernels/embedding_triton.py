"""`embedding` in Triton; its backward goes over positions sorted by token.

Where they were sorted before, a program takes a few tokens and adds up the rows of each. Otherwise the sorted positions
are cut into runs of `RUN`. First, a program per run notes where tokens begin and end, and adds up its rows if they all
belong to one token. Then a program per token adds the rows of its own at the edges, and the sums of the whole runs
between: a token that fills half the batch takes no longer than its share.
"""

# mypy: allow-untyped-defs

import torch
import triton
import triton.language as tl
from torch import Tensor

from .embedding import Places

TOKENS = 4  # of a program, where places are sorted
RUN = 64
ROWS = 8  # of a tile of the second kernel: most tokens occur a few times in a batch
TILE = 4096  # elements of a tile of the forward


@triton.jit
def embedding_forward_kernel(
    tokens, weight, out, count, vocabulary, D: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr
):
    """Rows of the table; NaN for a token that it does not have."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, BLOCK_D)
    token = tl.load(tokens + row, mask=row < count, other=0)
    known = (token >= 0) & (token < vocabulary)
    inside = (row < count)[:, None] & (column < D)[None, :]
    place = token[:, None] * D + column[None, :]
    values = tl.load(weight + place, mask=inside & known[:, None], other=float("nan"))
    tl.store(out + row[:, None] * D + column[None, :], values, mask=inside)


@triton.jit
def embedding_runs_kernel(
    dy, keys, positions, bounds, sums, count, vocabulary,
    D: tl.constexpr, BLOCK_D: tl.constexpr, RUN: tl.constexpr,
):  # fmt: skip
    index = tl.program_id(0) * RUN + tl.arange(0, RUN)
    key = tl.load(keys + index, mask=index < count, other=-1).to(tl.int32)
    before = tl.load(keys + index - 1, mask=(index > 0) & (index < count), other=-1).to(tl.int32)
    begins = (index < count) & (key != before)
    tl.store(bounds + key, index, mask=begins)
    tl.store(bounds + vocabulary + before, index, mask=begins & (before >= 0))
    tl.store(bounds + vocabulary + key, index + 1, mask=index == count - 1)
    if tl.min(key) == tl.max(key):
        column = tl.arange(0, BLOCK_D)
        row = tl.load(positions + index)
        rows = tl.load(dy + row[:, None] * D + column[None, :], mask=(column < D)[None, :], other=0.0).to(tl.float32)
        tl.store(sums + tl.program_id(0) * D + column, tl.sum(rows, axis=0), mask=column < D)


@triton.jit
def embedding_tokens_kernel(
    dy, positions, bounds, sums, out, vocabulary,
    D: tl.constexpr, BLOCK_D: tl.constexpr, RUN: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0)
    first = tl.load(bounds + token)
    last = tl.load(bounds + vocabulary + token)
    whole = tl.cdiv(first, RUN)  # the runs [whole, end) hold nothing but this token
    end = last // RUN
    total = tl.zeros((ROWS, BLOCK_D), tl.float32)
    column = tl.arange(0, BLOCK_D)
    head = tl.minimum(whole * RUN, last)
    for start in range(first, head, ROWS):
        total += _gather(dy, positions, start, head, column, D, ROWS)
    for start in range(whole, end, ROWS):
        run = start + tl.arange(0, ROWS)
        inside = (run < end)[:, None] & (column < D)[None, :]
        total += tl.load(sums + run[:, None] * D + column[None, :], mask=inside, other=0.0)
    for start in range(tl.maximum(end * RUN, head), last, ROWS):
        total += _gather(dy, positions, start, last, column, D, ROWS)
    tl.store(out + token.to(tl.int64) * D + column, tl.sum(total, axis=0).to(out.dtype.element_ty), mask=column < D)


@triton.jit
def _gather(dy, positions, start, stop, column, D: tl.constexpr, ROWS: tl.constexpr):
    """The rows of dy at sorted places start ... stop, at most `ROWS`, the rest zeros."""
    index = start + tl.arange(0, ROWS)
    row = tl.load(positions + index, mask=index < stop, other=0)
    inside = (index < stop)[:, None] & (column < D)[None, :]
    return tl.load(dy + row[:, None] * D + column[None, :], mask=inside, other=0.0).to(tl.float32)


@triton.jit
def embedding_places_kernel(
    dy, order, starts, batches, cursor, out, count, vocabulary,
    D: tl.constexpr, BLOCK_D: tl.constexpr, TOKENS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Places of `count` and more are passed over: those of another batch than dy's."""
    batch = tl.load(batches + tl.load(cursor)).to(tl.int64)
    token = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    column = tl.arange(0, BLOCK_D)
    at = starts + batch * vocabulary + token
    first = tl.load(at, mask=token < vocabulary, other=0)
    last = tl.load(at + 1, mask=token < vocabulary, other=0)
    total = tl.zeros((TOKENS, BLOCK_D), tl.float32)
    for start in range(0, tl.max(last - first), ROWS):
        index = (first + start)[:, None] + tl.arange(0, ROWS)[None, :]
        row = tl.load(order + index, mask=index < last[:, None], other=count)
        inside = (row < count)[:, :, None] & (column < D)[None, None, :]
        rows = tl.load(dy + row.to(tl.int64)[:, :, None] * D + column[None, None, :], mask=inside, other=0.0)
        total += tl.sum(rows.to(tl.float32), axis=1)
    known = (token < vocabulary)[:, None] & (column < D)[None, :]
    place = token.to(tl.int64)[:, None] * D + column[None, :]
    tl.store(out + place, total.to(out.dtype.element_ty), mask=known)


@torch.library.custom_op("basedbench::embedding", mutates_args=())
def _embedding(
    tokens: Tensor, weight: Tensor, order: Tensor | None, starts: Tensor | None, batches: Tensor | None,
    cursor: Tensor | None,
) -> Tensor:  # fmt: skip
    """The rest is for the backward."""
    vocabulary, width = weight.shape
    out = weight.new_empty((*tokens.shape, width))
    block = triton.next_power_of_2(width)
    rows, count = max(1, TILE // block), tokens.numel()
    if count:
        embedding_forward_kernel[(triton.cdiv(count, rows),)](
            tokens.contiguous(), weight.contiguous(), out, count, vocabulary, D=width, BLOCK_D=block, ROWS=rows
        )
    return out


@_embedding.register_fake
def _(tokens, weight, order, starts, batches, cursor):
    return weight.new_empty((*tokens.shape, weight.shape[1]))


@torch.library.custom_op("basedbench::embedding_backward", mutates_args=())
def _embedding_backward(dy: Tensor, tokens: Tensor, vocabulary: int, dtype: torch.dtype) -> Tensor:
    """The gradient (V,D) of the table."""
    width, count, dy = dy.shape[-1], tokens.numel(), dy.contiguous()
    if not count:
        return dy.new_zeros((vocabulary, width), dtype=dtype)
    narrow = torch.int16 if vocabulary <= 2**15 else torch.int32
    keys, positions = torch.sort(tokens.flatten().to(narrow), stable=True)
    runs = triton.cdiv(count, RUN)
    bounds = torch.zeros((2, vocabulary), dtype=torch.int32, device=dy.device)
    sums = torch.empty((runs, width), dtype=torch.float32, device=dy.device)
    out = torch.empty((vocabulary, width), dtype=dtype, device=dy.device)
    shape = {"D": width, "BLOCK_D": triton.next_power_of_2(width), "RUN": RUN}
    embedding_runs_kernel[(runs,)](dy, keys, positions, bounds, sums, count, vocabulary, **shape)
    embedding_tokens_kernel[(vocabulary,)](
        dy, positions, bounds, sums, out, vocabulary, **shape, ROWS=ROWS, num_warps=2
    )
    return out


@_embedding_backward.register_fake
def _(dy: Tensor, tokens: Tensor, vocabulary: int, dtype: torch.dtype) -> Tensor:
    return dy.new_empty((vocabulary, dy.shape[-1]), dtype=dtype)


@torch.library.custom_op("basedbench::embedding_backward_by_places", mutates_args=())
def _backward_by_places(
    dy: Tensor, order: Tensor, starts: Tensor, batches: Tensor, cursor: Tensor, vocabulary: int, dtype: torch.dtype
) -> Tensor:
    """The gradient (V,D) of the table, in one launch."""
    width, dy = dy.shape[-1], dy.contiguous()
    out = torch.empty((vocabulary, width), dtype=dtype, device=dy.device)
    embedding_places_kernel[(triton.cdiv(vocabulary, TOKENS),)](
        dy, order, starts, batches, cursor, out, dy.numel() // width, vocabulary,
        D=width, BLOCK_D=triton.next_power_of_2(width), TOKENS=TOKENS, ROWS=ROWS, num_warps=4,
    )  # fmt: skip
    return out


@_backward_by_places.register_fake
def _(dy, order, starts, batches, cursor, vocabulary, dtype):
    return dy.new_empty((vocabulary, dy.shape[-1]), dtype=dtype)


def _setup(ctx, inputs, output) -> None:
    tokens, weight, *places = inputs
    ctx.vocabulary, ctx.dtype = len(weight), weight.dtype
    ctx.save_for_backward(tokens, *places)


def _gradients(ctx, dy: Tensor):
    tokens, *places = ctx.saved_tensors
    d_weight = table_gradient(dy, tokens, None if places[0] is None else places, ctx.vocabulary, ctx.dtype)
    return None, d_weight, None, None, None, None


def table_gradient(dy: Tensor, tokens: Tensor, places: list[Tensor] | None, vocabulary: int, dtype: torch.dtype):
    """The gradient (V,D) of the table, by whichever kernels."""
    if places is None:
        return _embedding_backward(dy, tokens, vocabulary, dtype)
    return _backward_by_places(dy, *places, vocabulary, dtype)


_embedding.register_autograd(_gradients, setup_context=_setup)


def embedding(tokens_x: Tensor, weight_VD: Tensor, places: Places | None = None) -> Tensor:
    """`embedding.reference`, with the kernels above in its backward."""
    return _embedding(tokens_x, weight_VD, *(places or (None, None, None, None)))
