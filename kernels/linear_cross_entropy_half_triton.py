"""Triton kernels of `linear_cross_entropy` for operands of 16 bits, with few instructions around the products.

The sums are those of `linear_cross_entropy_triton`. A logit costs as many cycles of the exponential's units as of the
matrix units at D = 64, and every other instruction for it comes on top. So what can be, is not done for each logit:

- bfloat16 reaches as far as float32. So exponentials need no running peak: they are taken from a bound,
  |x_n| max_v|w_v|, raised by 2^LIFT, and nothing is ever rescaled. Where the bound lies so far above all logits of a
  share of words that the sums lose small terms (below 2^-LOST), the program starts again with a running peak.
- The peak is wanted only at the end: threads keep the largest of every eighth column, without exchanges.
- Targets are looked for in blocks that hold one. Which do is worked out before, and which have words or positions
  beyond the end. Nothing but products touches the sums, so the branch makes no product wait.
- The weight's gradient is sum_n p_nv x_n with p_nv = exp(l_nv + height_n), height_n including the size of grad_loss.
  Heights come as three pieces of 16 bits, by a product with ones: no thread loads any. Signs and targets are put right
  in the blocks that have any. Words are the rows of its logits, which stay in registers from one product to the next.
"""

# mypy: allow-untyped-defs

import torch
import triton
import triton.language as tl
from torch import Tensor

from .exponentials_triton import LOG2E

LIFT = tl.constexpr(100.0)
LOST = tl.constexpr(90.0)
NORM_BLOCK = 64
CHECKED = tl.constexpr(128)  # blocks that are looked through at once
PIECES = tl.constexpr(16)  # of a height, most of them zeros: the least that a product sums over
NOTHING = tl.constexpr(-1e4)  # the logarithm of no slope: finite in float16
ROWS = tl.constexpr(16)  # of grad_x, written at once


@triton.jit
def _eighths(values):
    """(N, V) as (N, V / 8, 8): a thread of the matrix units holds the middle whole."""
    return tl.reshape(values, (values.shape[0], values.shape[1] // 8, 8))


@triton.jit
def _rows(source, i, count, D: tl.constexpr, BLOCK_D: tl.constexpr, WHOLE: tl.constexpr):
    """Rows i of (count, D); zeros beyond the end, unless the blocks are WHOLE."""
    d = tl.arange(0, BLOCK_D)
    if WHOLE:
        return tl.load(source + i[:, None] * D + d[None, :])
    return tl.load(source + i[:, None] * D + d[None, :], mask=(i[:, None] < count) & (d[None, :] < D), other=0.0)


@triton.jit
def _mark_blocks(flags, target_N, mark, V, blocks, BLOCK_V: tl.constexpr):
    """flags (blocks,) of these positions: 1 for blocks of words that hold a target, plus the mark."""
    place_N = tl.where((target_N >= 0) & (target_N < V), target_N // BLOCK_V, -1)
    for first in range(0, blocks, CHECKED):
        block = first + tl.arange(0, CHECKED)
        holds = tl.max((place_N[:, None] == block[None, :]).to(tl.int32), 0)
        tl.store(flags + block, holds + mark, mask=block < blocks)


@triton.jit(do_not_specialize=["N"])
def lce_bound_kernel(
    weight, target, norms, flags, N, V, blocks,
    D: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_D: tl.constexpr, WORDS: tl.constexpr,
):  # fmt: skip
    """The largest |w|^2 of each WORDS words, norms; flags (blocks of positions, blocks of words)."""
    i = tl.program_id(0)
    n = i * BLOCK_N + tl.arange(0, BLOCK_N)
    if i * BLOCK_N < N:
        target_N = tl.load(target + n, mask=n < N, other=-1).to(tl.int32)
        _mark_blocks(flags + i * blocks, target_N, 0, V, blocks, BLOCK_V)
    if i * WORDS < V:
        v, d = i * WORDS + tl.arange(0, WORDS), tl.arange(0, BLOCK_D)
        mask_VD = (v[:, None] < V) & (d[None, :] < D)
        w_VD = tl.load(weight + v[:, None] * D + d[None, :], mask=mask_VD, other=0.0).to(tl.float32)
        tl.store(norms + i, tl.max(tl.sum(w_VD * w_VD, 1), 0))


@triton.jit
def _bounded_sums(
    x_ND, bound_N, target_N, weight, flags, first, last, V,
    D: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_D: tl.constexpr, WHOLE: tl.constexpr, EXPECTED: tl.constexpr,
):  # fmt: skip
    """Of a share of words: peak, sum and expected of the others, both from bound_N; the target's logit; the peak of
    the words in blocks before the target's.
    """
    BLOCK_N: tl.constexpr = x_ND.shape[0]
    peak_N8 = tl.full([BLOCK_N, 8], float("-inf"), tl.float32)
    rest_N8 = tl.zeros([BLOCK_N, 8], tl.float32)
    before_N = tl.full([BLOCK_N], float("-inf"), tl.float32)
    wanted_N = tl.zeros([BLOCK_N], tl.float32)
    sum_ND = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    flag = tl.load(flags + first // BLOCK_V)
    for start in range(first, last, BLOCK_V):
        v = start + tl.arange(0, BLOCK_V)
        w_VD = _rows(weight, v, V, D, BLOCK_D, WHOLE)
        logits_NV = tl.dot(x_ND, tl.trans(w_VD))
        special = flag != 0
        flag = tl.load(flags + start // BLOCK_V + 1, mask=start + BLOCK_V < last, other=0)
        if not WHOLE:
            logits_NV = tl.where(v[None, :] < V, logits_NV, float("-inf"))
        if special:
            at_N = target_N - start
            is_target = tl.arange(0, BLOCK_V)[None, :] == at_N[:, None]
            wanted_N += tl.sum(tl.where(is_target, logits_NV, 0.0), 1)
            before_N = tl.where((at_N >= 0) & (at_N < BLOCK_V), tl.max(peak_N8, 1), before_N)
            logits_NV = tl.where(is_target, float("-inf"), logits_NV)
        others_NV = tl.exp2(logits_NV * LOG2E - bound_N[:, None])
        peak_N8 = tl.maximum(peak_N8, tl.max(_eighths(logits_NV), 1))
        rest_N8 += tl.sum(_eighths(others_NV), 1)
        if EXPECTED:
            sum_ND = tl.dot(others_NV.to(w_VD.dtype), w_VD, sum_ND)
    peak_N = tl.max(peak_N8, 1)
    before_N = tl.where(target_N >= last, peak_N, before_N)
    return peak_N, tl.sum(rest_N8, 1), wanted_N, before_N, sum_ND


@triton.jit
def _running_sums(
    x_ND, target_N, weight, first, last, V,
    D: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_D: tl.constexpr, WHOLE: tl.constexpr, EXPECTED: tl.constexpr,
):  # fmt: skip
    """The same with a running peak, from which the sums are then."""
    BLOCK_N: tl.constexpr = x_ND.shape[0]
    peak_N = tl.full([BLOCK_N], float("-inf"), tl.float32)
    before_N = tl.full([BLOCK_N], float("-inf"), tl.float32)
    rest_N = tl.zeros([BLOCK_N], tl.float32)
    wanted_N = tl.zeros([BLOCK_N], tl.float32)
    sum_ND = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    for start in tl.range(first, last, BLOCK_V, num_stages=1):
        v = start + tl.arange(0, BLOCK_V)
        w_VD = _rows(weight, v, V, D, BLOCK_D, WHOLE)
        logits_NV = tl.dot(x_ND, tl.trans(w_VD))
        is_target = v[None, :] == target_N[:, None]
        wanted_N += tl.sum(tl.where(is_target, logits_NV, 0.0), 1)
        logits_NV = tl.where(is_target | (v[None, :] >= V), float("-inf"), logits_NV)
        top_N = tl.maximum(peak_N, tl.max(logits_NV, 1))
        before_N = tl.where(target_N >= start + BLOCK_V, top_N, before_N)
        shift_N = tl.where(top_N == float("-inf"), 0.0, top_N)
        others_NV = tl.exp2(logits_NV * LOG2E - shift_N[:, None] * LOG2E)
        scale_N = tl.exp(peak_N - shift_N)
        rest_N = rest_N * scale_N + tl.sum(others_NV, 1)
        if EXPECTED:
            sum_ND = tl.dot(others_NV.to(w_VD.dtype), w_VD, sum_ND * scale_N[:, None])
        peak_N = top_N
    return peak_N, rest_N, wanted_N, before_N, sum_ND


@triton.jit
def _store_shares(
    rows, expected, n, N, peak_N, rest_N, wanted_N, before_N, sum_ND, D: tl.constexpr, EXPECTED: tl.constexpr
):
    tl.store(rows + n, peak_N, mask=n < N)
    tl.store(rows + N + n, rest_N, mask=n < N)
    tl.store(rows + 2 * N + n, wanted_N, mask=n < N)
    tl.store(rows + 3 * N + n, before_N, mask=n < N)
    if EXPECTED:
        d = tl.arange(0, sum_ND.shape[1])
        tl.store(expected + n[:, None] * D + d[None, :], sum_ND, mask=(n[:, None] < N) & (d[None, :] < D))


@triton.jit(do_not_specialize=["N", "words"])
def lce_bounded_kernel(
    x, weight, target, norms, flags, rows, expected, N, V, words, blocks,
    D: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_D: tl.constexpr,
    WORDS: tl.constexpr, WHOLE: tl.constexpr, EXPECTED: tl.constexpr,
):  # fmt: skip
    """`lce_forward_kernel` for bfloat16: rows (S,4,N), expected (S,N,D)."""
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    d = tl.arange(0, BLOCK_D)
    split = tl.program_id(1)
    x_ND = tl.load(x + n[:, None] * D + d[None, :], mask=(n[:, None] < N) & (d[None, :] < D), other=0.0)
    target_N = tl.load(target + n, mask=n < N, other=-1).to(tl.int32)
    first, last = split * words, min(split * words + words, V)
    largest = tl.zeros([CHECKED], tl.float32)
    for i in range(0, tl.cdiv(V, WORDS), CHECKED):
        block = i + tl.arange(0, CHECKED)
        largest = tl.maximum(largest, tl.load(norms + block, mask=block < tl.cdiv(V, WORDS), other=0.0))
    square_N = tl.sum(x_ND.to(tl.float32) * x_ND.to(tl.float32), 1)
    bound_N = tl.sqrt(square_N * tl.max(largest, 0)) * LOG2E - LIFT
    peak_N, rest_N, wanted_N, before_N, sum_ND = _bounded_sums(
        x_ND, bound_N, target_N, weight, flags + tl.program_id(0) * blocks, first, last, V,
        D, BLOCK_V, BLOCK_D, WHOLE, EXPECTED,
    )  # fmt: skip
    rows += split.to(tl.int64) * 4 * N
    expected += split.to(tl.int64) * N * D
    sound = tl.min((rest_N >= tl.exp2(-LOST)).to(tl.int32), 0) > 0
    if sound:
        half_N = tl.exp2((bound_N - peak_N * LOG2E) * 0.5)  # the whole may overflow
        rest_N = rest_N * half_N * half_N
        sum_ND = sum_ND * half_N[:, None] * half_N[:, None]
        _store_shares(rows, expected, n, N, peak_N, rest_N, wanted_N, before_N, sum_ND, D, EXPECTED)
    else:
        peak_N, rest_N, wanted_N, before_N, sum_ND = _running_sums(
            x_ND, target_N, weight, first, last, V, D, BLOCK_V, BLOCK_D, WHOLE, EXPECTED
        )
        _store_shares(rows, expected, n, N, peak_N, rest_N, wanted_N, before_N, sum_ND, D, EXPECTED)


@triton.jit
def scale_rows(slope, grad_loss, grad_x, first, N, D: tl.constexpr, ROWS: tl.constexpr, BLOCK_D: tl.constexpr):
    """grad_x = grad_loss slope, for ROWS positions from `first`."""
    n, d = first + tl.arange(0, ROWS), tl.arange(0, BLOCK_D)
    at = n[:, None] * D + d[None, :]
    mask_ND = (n[:, None] < N) & (d[None, :] < D)
    grad_N = tl.load(grad_loss + n, mask=n < N, other=0.0)
    slope_ND = tl.load(slope + at, mask=mask_ND, other=0.0) * grad_N[:, None]
    tl.store(grad_x + at, slope_ND.to(grad_x.dtype.element_ty), mask=mask_ND)


@triton.jit(do_not_specialize=["N"])
def lce_height_kernel(
    target, saved, grad_loss, heights, rows, flags, slope, grad_x, N, V, blocks,
    BLOCK_N: tl.constexpr, BLOCK_V: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, GRAD_X: tl.constexpr,
):  # fmt: skip
    """heights (positions of whole blocks, PIECES): log(|grad_loss| / total) - peak; rows (3, the same): the target, its
    slope, grad_loss. flags (blocks of positions, blocks of words): 1 for a target, 2 for a negative grad_loss. And
    grad_x = grad_loss slope.
    """
    i = tl.program_id(0)
    n = i * BLOCK_N + tl.arange(0, BLOCK_N)
    target_N = tl.load(target + n, mask=n < N, other=-1).to(tl.int32)
    grad_N = tl.load(grad_loss + n, mask=n < N, other=0.0)
    size_N = tl.abs(grad_N) * tl.load(saved + N + n, mask=n < N, other=0.0)
    left_N = tl.where(size_N == 0.0, NOTHING, tl.log(tl.where(size_N == 0.0, 1.0, size_N)))
    left_N -= tl.load(saved + n, mask=n < N, other=0.0)
    for p in tl.static_range(PIECES):
        piece_N = (
            left_N.to(heights.dtype.element_ty)
            if p < 3
            else tl.zeros([BLOCK_N], tl.float32).to(heights.dtype.element_ty)
        )
        tl.store(heights + n * PIECES + p, piece_N)
        left_N -= piece_N.to(tl.float32)
    size = tl.num_programs(0) * BLOCK_N
    tl.store(rows + n, target_N.to(tl.float32, bitcast=True))
    tl.store(rows + size + n, -grad_N * tl.load(saved + 2 * N + n, mask=n < N, other=0.0))
    tl.store(rows + 2 * size + n, grad_N)
    negative = 2 * tl.max((grad_N < 0).to(tl.int32), 0)
    _mark_blocks(flags + i * blocks, target_N, negative, V, blocks, BLOCK_V)
    if GRAD_X:
        for first in range(i * BLOCK_N, i * BLOCK_N + BLOCK_N, ROWS):
            scale_rows(slope, grad_loss, grad_x, first, N, D, ROWS, BLOCK_D)


@triton.jit(do_not_specialize=["N", "positions"])
def lce_slopes_kernel(
    x, weight, heights, rows, flags, grad_weight, N, V, size, positions, blocks,
    D: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_D: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """One block of words over one share of the positions: grad_weight (S,V,D) of heights and rows (3, size)."""
    v = tl.program_id(0) * BLOCK_V + tl.arange(0, BLOCK_V)
    d = tl.arange(0, BLOCK_D)
    split = tl.program_id(1)
    w_VD = _rows(weight, v, V, D, BLOCK_D, False)
    ones_VP = tl.full([BLOCK_V, PIECES], 1.0, tl.float32).to(w_VD.dtype)
    sum_VD = tl.zeros([BLOCK_V, BLOCK_D], tl.float32)
    first, last = split * (positions // BLOCK_N), tl.cdiv(min(split * positions + positions, N), BLOCK_N)
    flags += tl.program_id(0)
    flag = tl.load(flags + first * blocks)
    for block in range(first, last):
        n = block * BLOCK_N + tl.arange(0, BLOCK_N)
        x_ND = _rows(x, n, N, D, BLOCK_D, WHOLE)
        height_NP = _rows(heights, n, N, PIECES, PIECES, True)
        logits_VN = tl.dot(w_VD, tl.trans(x_ND), tl.dot(ones_VP, tl.trans(height_NP)))
        slope_VN = tl.exp2(logits_VN * LOG2E)
        now = flag
        flag = tl.load(flags + (block + 1) * blocks, mask=block + 1 < last, other=0)
        if now > 0:
            if now > 1:
                slope_VN = tl.where((tl.load(rows + 2 * size + n) < 0)[None, :], -slope_VN, slope_VN)
            target_N = tl.load(rows + n).to(tl.int32, bitcast=True) - tl.program_id(0) * BLOCK_V
            is_target = tl.arange(0, BLOCK_V)[:, None] == target_N[None, :]
            slope_VN = tl.where(is_target, tl.load(rows + size + n)[None, :], slope_VN)
        sum_VD = tl.dot(slope_VN.to(x_ND.dtype), x_ND, sum_VD)
    grad_weight += split.to(tl.int64) * V * D
    mask_VD = (v[:, None] < V) & (d[None, :] < D)
    tl.store(grad_weight + v[:, None] * D + d[None, :], sum_VD.to(grad_weight.dtype.element_ty), mask=mask_VD)


def launch_forward(
    x: Tensor, weight: Tensor, target: Tensor, rows: Tensor, expected: Tensor, words: int, *, differentiable: bool,
    blocks: tuple[int, int, int], **how: int | None,
) -> None:  # fmt: skip
    """Partial results of shares of `words`, by blocks (positions, words, padded width)."""
    (N, D), V = x.shape, len(weight)
    positions, per_block, width = blocks
    rows_of_blocks, columns, norms = triton.cdiv(N, positions), triton.cdiv(V, per_block), triton.cdiv(V, NORM_BLOCK)
    flags = rows.new_empty(rows_of_blocks, columns, dtype=torch.int32)
    largest = rows.new_empty(norms)
    sizes = {"D": D, "BLOCK_N": positions, "BLOCK_V": per_block, "BLOCK_D": width, "WORDS": NORM_BLOCK}
    lce_bound_kernel[(max(rows_of_blocks, norms),)](weight, target, largest, flags, N, V, columns, **sizes)
    lce_bounded_kernel[(rows_of_blocks, len(rows))](
        x, weight, target, largest, flags, rows, expected, N, V, words, columns,
        **sizes, WHOLE=V % per_block == 0 and width == D, EXPECTED=differentiable, **how,
    )  # fmt: skip


def launch_weight_gradient(
    x: Tensor, weight: Tensor, target: Tensor, saved: Tensor, slope: Tensor, grad_loss: Tensor, grad_x: Tensor,
    parts: Tensor, splits: int, share: int, *, blocks: tuple[int, int, int], **how: int | None,
) -> None:  # fmt: skip
    """Partial gradients of `splits` shares of positions, by blocks (positions, words, padded width); and `grad_x`."""
    (N, D), V = x.shape, len(weight)
    positions, per_block, width = blocks
    rows_of_blocks, columns = triton.cdiv(N, positions), triton.cdiv(V, per_block)
    flags = saved.new_empty(rows_of_blocks, columns, dtype=torch.int32)
    size = rows_of_blocks * positions
    heights, of_rows = x.new_empty(size, PIECES.value), saved.new_empty(3, size)
    sizes = {"BLOCK_N": positions, "BLOCK_V": per_block}
    lce_height_kernel[(rows_of_blocks,)](
        target, saved, grad_loss, heights, of_rows, flags, slope, grad_x, N, V, columns,
        **sizes, D=D, BLOCK_D=width, GRAD_X=slope.numel() > 0,
    )  # fmt: skip
    lce_slopes_kernel[(columns, splits)](
        x, weight, heights, of_rows, flags, parts, N, V, size, share, columns,
        **sizes, D=D, BLOCK_D=width, WHOLE=N % positions == 0 and width == D, **how,
    )  # fmt: skip
