"""Triton kernels of `linear_cross_entropy`: no logit is ever written to memory.

Forward, one pass over the vocabulary per block of positions, as in online softmax (Milakov & Gimelshein,
arXiv 1805.02867): per position the peak logit and where it stands, the target's logit, and over the other words

    rest_n = sum_{v != t} exp(l_nv - peak_n)        expected_n = sum_{v != t} exp(l_nv - peak_n) w_v

The gradient of the loss by x is expected / total - (rest / total) w_target with total = rest + exp(l_nt - peak_n): it
comes from the same pass, so the backward has only the weight left to do. It recomputes the logits block by block: four
products in all, where recomputing in two backward passes would take five. Leaving the target out of the sums keeps the
gradient of a nearly certain answer free of cancellation in every precision.

The loops have no branches around a sum that is being multiplied into: with one, the assembler waits for every single
instruction of the products. So each logit is compared with the target, which most blocks hold for one of their
positions anyway. Which of equal logits comes first is worked out afterwards, where there are any.

bfloat16 of widths 64 and 128 with a multiple of 128 words has kernels of its own on Hopper:
`linear_cross_entropy_gluon`. Other half precision up to D = 256 has kernels with fewer instructions:
`linear_cross_entropy_half_triton`; its forward is for bfloat16 alone. They begin with a launch more in each direction,
which few positions do not repay.

The vocabulary (forward) and the positions (backward) are divided among programs where the grid would be too small for
the device; partial results are added in a fixed order: results are reproducible bit by bit. Sums, exponentials and
partial results are float32. float32 operands are taken apart into bfloat16 pieces, by
torch.get_float32_matmul_precision(): three pieces and six products for "highest", which is as exact as float32; two
and three for "high" (16 bits, where TF32 has 11); one for "medium". Ties go to the lowest index, as torch.max does it.
A NaN among a position's logits, or a target outside the vocabulary, makes its loss NaN and its hit False.
"""

# mypy: allow-untyped-defs

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import linear_cross_entropy_pairs as pairs
from .company import most_programs
from .differentiated import once_differentiable
from .linear_cross_entropy_half_triton import ROWS, launch_forward, launch_weight_gradient, scale_rows
from .partial_sums_triton import sum_parts
from .precision import float32_precision

SPLIT_BLOCK = 1024
MULTIPROCESSORS = 132  # of an H100 or H200
WIDEST = 256  # that half precision is trained with here; `linear_cross_entropy_wide_triton` is faster from there on
WIDEST_JUDGED = 512  # without gradients: by logits that are not rounded, which is what recall is counted by
FINISHED = 4096  # numbers that a warp loads when it puts shares together; half as many of wide rows, or it spills
FEW = 4096  # positions up to which they take longer: by 2 to 15 us with 2,048 and 4,096 positions (docs/log)


class Blocks(NamedTuple):
    """Positions and words of a block, and how a program runs it."""

    positions: int
    words: int
    warps: int
    stages: int
    registers: int | None = None  # at most so many for each thread
    together: int = 2  # programs that a multiprocessor is to run at once


IN_PAIRS = Blocks(pairs.BLOCK, pairs.BLOCK, pairs.WARPS, 6, together=pairs.TOGETHER)  # for shares, and the finish


@triton.jit
def lce_split_kernel(source, pieces, size, PIECES: tl.constexpr, BLOCK: tl.constexpr):
    """A float32 as a sum of bfloat16 pieces (PIECES, size), the largest first."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    left = tl.load(source + i, mask=i < size, other=0.0)
    for p in tl.static_range(PIECES):
        piece = left.to(tl.bfloat16).to(tl.float32)
        tl.store(pieces + tl.cast(p, tl.int64) * size + i, piece.to(pieces.dtype.element_ty), mask=i < size)
        left -= piece


@triton.jit
def _load(pointers, mask, stride, PIECES: tl.constexpr):
    """All pieces of a block; the missing ones stand for nothing."""
    one = tl.load(pointers, mask=mask, other=0.0)
    two, three = one, one
    if PIECES > 1:
        two = tl.load(pointers + stride, mask=mask, other=0.0)
    if PIECES > 2:
        three = tl.load(pointers + 2 * stride, mask=mask, other=0.0)
    return one, two, three


@triton.jit
def _pieces(values, like, PIECES: tl.constexpr):
    """`lce_split_kernel` in registers, in the dtype of `like`."""
    if PIECES == 1:
        one = values.to(like.dtype)
        return one, one, one
    one = values.to(tl.bfloat16).to(tl.float32)
    values -= one
    two = values.to(tl.bfloat16).to(tl.float32)
    three = values - two
    return one.to(like.dtype), two.to(like.dtype), three.to(tl.bfloat16).to(like.dtype)


@triton.jit
def _product(a, a2, a3, b, b2, b3, total, PIECES: tl.constexpr):
    """total + a b. Six products of three pieces each leave out less than float32 rounds; three of two, 2^-16."""
    if PIECES == 1:
        return tl.dot(a, b, total)
    part = tl.zeros_like(total)  # the matrix units truncate when they add: keep their sums short
    if PIECES > 2:
        part = tl.dot(a, b3, part)
        part = tl.dot(a3, b, part)
        part = tl.dot(a2, b2, part)
    part = tl.dot(a, b2, part)
    part = tl.dot(a2, b, part)
    return total + tl.dot(a, b, part)


@triton.jit
def _exponential(logits, peak, PIECES: tl.constexpr):
    """exp(logits - peak): one fused multiply-add less exact for half-precision products, which cannot tell."""
    if PIECES == 1:
        return tl.exp2(logits * 1.4426950408889634 - peak * 1.4426950408889634)
    return tl.exp(logits - peak)


@triton.jit(do_not_specialize=["N", "words"])
def lce_forward_kernel(
    x, weight, target, rows, expected, N, V, words,
    D: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_D: tl.constexpr,
    PIECES: tl.constexpr, WHOLE: tl.constexpr, EXPECTED: tl.constexpr,
):  # fmt: skip
    """Partial results of one block of positions over one share of the vocabulary: rows (S,4,N), expected (S,N,D)."""
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    d = tl.arange(0, BLOCK_D)
    split = tl.program_id(1)
    mask_ND = (n[:, None] < N) & (d[None, :] < D)
    x_ND, x2_ND, x3_ND = _load(x + n[:, None] * D + d[None, :], mask_ND, N * D, PIECES)
    target_N = tl.load(target + n, mask=n < N, other=-1).to(tl.int32)
    peak_N = tl.full([BLOCK_N], float("-inf"), tl.float32)
    before_N = tl.full([BLOCK_N], float("-inf"), tl.float32)
    rest_N = tl.zeros([BLOCK_N], tl.float32)
    wanted_N = tl.zeros([BLOCK_N], tl.float32)
    sum_ND = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    for start in range(split * words, min(split * words + words, V), BLOCK_V):
        v = start + tl.arange(0, BLOCK_V)
        mask_VD = (v[:, None] < V) & (d[None, :] < D)
        w_VD, w2_VD, w3_VD = _load(weight + v[:, None] * D + d[None, :], mask_VD, V * D, PIECES)
        zeros_NV = tl.zeros([BLOCK_N, BLOCK_V], tl.float32)
        logits_NV = _product(
            x_ND, x2_ND, x3_ND, tl.trans(w_VD), tl.trans(w2_VD), tl.trans(w3_VD), zeros_NV, PIECES
        )  # fmt: skip
        if not WHOLE:
            logits_NV = tl.where(v[None, :] < V, logits_NV, float("-inf"))
        is_target = tl.arange(0, BLOCK_V)[None, :] == target_N[:, None] - start
        wanted_N += tl.sum(tl.where(is_target, logits_NV, 0.0), 1)
        logits_NV = tl.where(is_target, float("-inf"), logits_NV)
        top_N = tl.maximum(peak_N, tl.max(logits_NV, 1))
        before_N = tl.where(target_N >= start + BLOCK_V, top_N, before_N)
        shift_N = tl.where(top_N == float("-inf"), 0.0, top_N)
        others_NV = _exponential(logits_NV, shift_N[:, None], PIECES)
        scale_N = tl.exp(peak_N - shift_N)
        rest_N = rest_N * scale_N + tl.sum(others_NV, 1)
        if EXPECTED:
            p_NV, p2_NV, p3_NV = _pieces(others_NV, w_VD, PIECES)
            sum_ND = sum_ND * scale_N[:, None]
            sum_ND = _product(p_NV, p2_NV, p3_NV, w_VD, w2_VD, w3_VD, sum_ND, PIECES)
        peak_N = top_N
    rows += split.to(tl.int64) * 4 * N + n
    tl.store(rows, peak_N, mask=n < N)
    tl.store(rows + N, rest_N, mask=n < N)
    tl.store(rows + 2 * N, wanted_N, mask=n < N)
    tl.store(rows + 3 * N, before_N, mask=n < N)
    if EXPECTED:
        tl.store(expected + split.to(tl.int64) * N * D + n[:, None] * D + d[None, :], sum_ND, mask=mask_ND)


@triton.jit(do_not_specialize=["N", "splits"])
def lce_finish_kernel(
    x, weight, target, rows, expected, loss, hit, saved, slope, N, V, splits,
    D: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_S: tl.constexpr, EXPECTED: tl.constexpr,
):  # fmt: skip
    """Put the shares of the vocabulary together. saved (3,N): peak, 1 / total, rest / total; slope (N,D): dloss/dx.

    All shares are loaded at once: one after another, waiting for them is all that takes time.
    """
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    d = tl.arange(0, BLOCK_D)
    mask_ND = (n[:, None] < N) & (d[None, :] < D)
    target_N = tl.load(target + n, mask=n < N, other=-1)
    known = (target_N >= 0) & (target_N < V)
    s = tl.arange(0, BLOCK_S)
    mask_SN = (s[:, None] < splits) & (n[None, :] < N)
    rows_SN = rows + s[:, None] * 4 * N + n[None, :]
    others_SN = tl.load(rows_SN, mask=mask_SN, other=float("-inf"))
    rest_SN = tl.load(rows_SN + N, mask=mask_SN, other=0.0)
    others_N = tl.max(others_SN, 0)
    wanted_N = tl.sum(tl.load(rows_SN + 2 * N, mask=mask_SN, other=0.0), 0)
    before_N = tl.max(tl.load(rows_SN + 3 * N, mask=mask_SN, other=float("-inf")), 0)
    peak_N = tl.maximum(others_N, wanted_N)
    peak_N = tl.where(peak_N == float("-inf"), 0.0, peak_N)
    scale_SN = tl.exp(others_SN - peak_N[None, :])
    rest_N = tl.sum(scale_SN * rest_SN, 0)
    total_N = rest_N + tl.exp(wanted_N - peak_N)
    loss_N = tl.where(known, tl.log(total_N) + (peak_N - wanted_N), float("nan"))
    right = (wanted_N >= others_N) & (wanted_N > before_N) & (loss_N == loss_N)
    tied = right & (wanted_N == others_N)
    if tl.max(tied.to(tl.int32), 0) > 0:
        x_ND = tl.load(x + n[:, None] * D + d[None, :], mask=mask_ND, other=0.0).to(tl.float32)
        at_ND = weight + target_N[:, None] * D + d[None, :]
        again_N = tl.sum(x_ND * tl.load(at_ND, mask=mask_ND & tied[:, None], other=0.0).to(tl.float32), 1)
        for step in range(1, BLOCK_V):
            earlier = tied & (target_N % BLOCK_V >= step)
            w_ND = tl.load(at_ND - step * D, mask=mask_ND & earlier[:, None], other=0.0).to(tl.float32)
            right = right & ~(earlier & (tl.sum(x_ND * w_ND, 1) >= again_N))
    tl.store(loss + n, loss_N, mask=n < N)
    tl.store(hit + n, right, mask=n < N)
    tl.store(saved + n, peak_N, mask=n < N)
    tl.store(saved + N + n, 1.0 / total_N, mask=n < N)
    tl.store(saved + 2 * N + n, rest_N / total_N, mask=n < N)
    if EXPECTED:
        part_SN = tl.cast(s, tl.int64)[:, None] * N + n[None, :]
        part_SND = tl.load(
            expected + part_SN[:, :, None] * D + d[None, None, :],
            mask=mask_SN[:, :, None] & (d[None, None, :] < D),
            other=0.0,
        )
        sum_ND = tl.sum(scale_SN[:, :, None] * part_SND, 0)
        w_ND = tl.load(weight + target_N[:, None] * D + d[None, :], mask=mask_ND & known[:, None], other=0.0)
        slope_ND = (sum_ND - rest_N[:, None] * w_ND.to(tl.float32)) / total_N[:, None]
        tl.store(slope + n[:, None] * D + d[None, :], slope_ND, mask=mask_ND)


@triton.jit(do_not_specialize=["N", "positions"])
def lce_weight_kernel(
    x, weight, target, saved, grad_loss, grad_weight, slope, grad_x, N, V, positions,
    D: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_D: tl.constexpr, PIECES: tl.constexpr,
    GRAD_X: tl.constexpr,
):  # fmt: skip
    """One block of words over one share of the positions: grad_weight (S,V,D). And grad_x = grad_loss slope."""
    v = tl.program_id(0) * BLOCK_V + tl.arange(0, BLOCK_V)
    d = tl.arange(0, BLOCK_D)
    split = tl.program_id(1)
    mask_VD = (v[:, None] < V) & (d[None, :] < D)
    w_VD, w2_VD, w3_VD = _load(weight + v[:, None] * D + d[None, :], mask_VD, V * D, PIECES)
    sum_VD = tl.zeros([BLOCK_V, BLOCK_D], tl.float32)
    for start in range(split * positions, min(split * positions + positions, N), BLOCK_N):
        n = start + tl.arange(0, BLOCK_N)
        mask_ND = (n[:, None] < N) & (d[None, :] < D)
        x_ND, x2_ND, x3_ND = _load(x + n[:, None] * D + d[None, :], mask_ND, N * D, PIECES)
        target_N = tl.load(target + n, mask=n < N, other=-1).to(tl.int32)
        grad_N = tl.load(grad_loss + n, mask=n < N, other=0.0)
        peak_N = tl.load(saved + n, mask=n < N, other=0.0)
        others_N = grad_N * tl.load(saved + N + n, mask=n < N, other=0.0)
        wanted_N = -grad_N * tl.load(saved + 2 * N + n, mask=n < N, other=0.0)
        zeros_NV = tl.zeros([BLOCK_N, BLOCK_V], tl.float32)
        logits_NV = _product(
            x_ND, x2_ND, x3_ND, tl.trans(w_VD), tl.trans(w2_VD), tl.trans(w3_VD), zeros_NV, PIECES
        )  # fmt: skip
        slope_NV = _exponential(logits_NV, peak_N[:, None], PIECES) * others_N[:, None]
        # Always true. Where Triton sees one product go into another, it gives every warp whole rows of the first, and
        # has 64 rows worked out twice by 8 warps; it does not see through a branch.
        if N > 0:
            slope_NV = tl.where(v[None, :] == target_N[:, None], wanted_N[:, None], slope_NV)
        p_NV, p2_NV, p3_NV = _pieces(slope_NV, x_ND, PIECES)
        sum_VD = _product(tl.trans(p_NV), tl.trans(p2_NV), tl.trans(p3_NV), x_ND, x2_ND, x3_ND, sum_VD, PIECES)
    grad_weight += split.to(tl.int64) * V * D
    tl.store(grad_weight + v[:, None] * D + d[None, :], sum_VD.to(grad_weight.dtype.element_ty), mask=mask_VD)
    if GRAD_X:
        program = split * tl.num_programs(0) + tl.program_id(0)
        for start in range(program * ROWS, N, tl.num_programs(0) * tl.num_programs(1) * ROWS):
            scale_rows(slope, grad_loss, grad_x, start, N, D, ROWS, BLOCK_D)


def forward_blocks(width: int, pieces: int, differentiable: bool) -> Blocks:
    """Blocks of the forward for a model width."""
    if pieces > 1:
        return Blocks(64, 64 if width <= 128 else 32, 4, 2)
    if width <= 64:
        return Blocks(64, 64, 4, 3, 128, 4)
    if width <= 128:
        return Blocks(64, 64, 4, 3, 168, 3)
    if width <= 256:
        return Blocks(128, 64, 8, 3, None, 1) if differentiable else Blocks(128, 128, 8, 2, None, 1)
    return Blocks(64, 64, 8, 2, None, 1)


def backward_blocks(width: int, pieces: int) -> Blocks:
    """Blocks of the weight's gradient for a model width."""
    if pieces > 1:
        return Blocks(64 if width <= 128 else 32, 64, 4, 2)
    if width <= 64:
        return Blocks(128, 64, 8, 3, 128)
    if width <= 128:
        return Blocks(64, 64, 4, 3)
    return Blocks(64, 128, 8, 3, None, 1)


def bounded_blocks(width: int) -> Blocks:
    """Blocks of the forward without a running peak."""
    if width <= 64:
        return Blocks(64, 64, 4, 3, 128, 4)
    return Blocks(64, 64, 4, 3, 168, 3) if width <= 128 else Blocks(128, 64, 8, 3, None, 1)


def slopes_blocks(width: int) -> Blocks:
    """Blocks of the weight's gradient whose logits stay in registers."""
    if width <= 64:
        return Blocks(64, 64, 4, 3, 128, 4)
    return Blocks(64, 64, 4, 3, 168, 3) if width <= 128 else Blocks(64, 128, 8, 3, None, 1)


def shares(blocks: int, length: int, block: int, together: int = 2) -> tuple[int, int]:
    """Into how many shares, of which length, `length` is divided, so that `blocks` programs become enough."""
    wanted = max(1, min(most_programs(MULTIPROCESSORS * together) // blocks, 16, triton.cdiv(length, 2 * block)))
    share = triton.cdiv(triton.cdiv(length, wanted), block) * block
    return triton.cdiv(length, share), share


def finish_plan(positions: int, width: int, shares: int) -> tuple[int, int]:
    """Positions that one program finishes, and its warps: a thread holds so many numbers of all shares as it may.

    With several shares a warp for two positions is fastest, for what waits is a program.
    """
    numbers = padded(width) * triton.next_power_of_2(shares)
    if shares > 1:
        most = FINISHED if padded(width) <= 128 else FINISHED // 2
        rows = 2 if 2 * numbers <= most else 1
        return rows, max(1, rows * numbers // most)
    enough = triton.next_power_of_2(positions // (2 * MULTIPROCESSORS) + 1)
    return max(1, min(16, 1024 // padded(width), enough)), 4


def pieces_of(dtype: torch.dtype) -> int:
    """Into how many bfloat16 pieces the operands are taken apart: PyTorch's setting for float32, else none."""
    return {"highest": 3, "high": 2, "medium": 1}[float32_precision()] if dtype == torch.float32 else 1


def split(operand: Tensor, pieces: int) -> Tensor:
    """A float32 operand in bfloat16 pieces, (pieces, ...); others as they are."""
    if operand.dtype != torch.float32:
        return operand
    # The interpreter multiplies bfloat16 wrongly: there, float32 holds the same values.
    dtype = torch.bfloat16 if operand.is_cuda else torch.float32
    parts = operand.new_empty(pieces, *operand.shape, dtype=dtype)
    size = operand.numel()
    lce_split_kernel[(triton.cdiv(size, SPLIT_BLOCK),)](operand, parts, size, PIECES=pieces, BLOCK=SPLIT_BLOCK)
    return parts


def padded(width: int) -> int:
    """The width of a block: a power of two that the matrix units take."""
    return max(16, triton.next_power_of_2(width))


@torch.library.custom_op("basedbench::linear_cross_entropy", mutates_args=())
def forward_operator(
    x: Tensor, weight: Tensor, target: Tensor, differentiable: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """loss (N,), hit (N,), saved (3,N) and, if differentiable by x, dloss/dx (N,D) float32, else an empty tensor."""
    x, weight, target = x.contiguous(), weight.contiguous(), target.contiguous()
    (N, D), V = x.shape, len(weight)
    pieces = pieces_of(x.dtype)
    in_pairs = pairs.taken(x, weight)
    bounded = x.dtype == torch.bfloat16 and D <= WIDEST and N > FEW
    blocks = bounded_blocks(D) if bounded else forward_blocks(D, pieces, differentiable)
    if in_pairs:
        blocks = IN_PAIRS
    splits, words = shares(triton.cdiv(N, blocks.positions), V, blocks.words * (1 + in_pairs), blocks.together)
    loss, hit, saved, slope = outputs(x, weight, target, differentiable)
    rows = loss.new_empty(splits, 4, N)
    expected = loss.new_empty(splits, N, D) if differentiable else loss
    how: dict[str, Any] = {"num_warps": blocks.warps, "num_stages": blocks.stages, "maxnreg": blocks.registers}
    if in_pairs:
        pairs.launch_forward(x, weight, target, rows, expected, words, differentiable=differentiable)
    elif bounded:
        tile = blocks.positions, blocks.words, padded(D)
        launch_forward(x, weight, target, rows, expected, words, differentiable=differentiable, blocks=tile, **how)
    else:
        lce_forward_kernel[(triton.cdiv(N, blocks.positions), splits)](
            split(x, pieces), split(weight, pieces), target, rows, expected, N, V, words,
            D=D, BLOCK_N=blocks.positions, BLOCK_V=blocks.words, BLOCK_D=padded(D), PIECES=pieces,
            WHOLE=V % blocks.words == 0, EXPECTED=differentiable, **how,
        )  # fmt: skip
    finished, warps = finish_plan(N, D, splits)
    lce_finish_kernel[(triton.cdiv(N, finished),)](
        x, weight, target, rows, expected, loss, hit, saved, slope, N, V, splits,
        D=D, BLOCK_N=finished, BLOCK_V=blocks.words, BLOCK_D=padded(D),
        BLOCK_S=triton.next_power_of_2(splits), EXPECTED=differentiable, num_warps=warps,
    )  # fmt: skip
    return loss, hit, saved, slope


@forward_operator.register_fake
def outputs(x: Tensor, weight: Tensor, target: Tensor, differentiable: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The outputs, not yet written."""
    N, D = x.shape
    loss = x.new_empty(N, dtype=torch.float32)
    slope = loss.new_empty((N, D) if differentiable else (0, D))
    return loss, loss.new_empty(N, dtype=torch.bool), loss.new_empty(3, N), slope


@torch.library.custom_op("basedbench::linear_cross_entropy_gradients", mutates_args=())
def gradient_operator(
    x: Tensor, weight: Tensor, target: Tensor, saved: Tensor, slope: Tensor, grad_loss: Tensor
) -> tuple[Tensor, Tensor]:
    """The gradients by x (N,D), empty without a slope, and by the weight (V,D)."""
    x, weight, target, grad_loss = x.contiguous(), weight.contiguous(), target.contiguous(), grad_loss.contiguous()
    (N, D), V = x.shape, len(weight)
    pieces = pieces_of(x.dtype)
    in_pairs = pairs.taken(x, weight)
    half = x.dtype.itemsize == 2 and N > FEW
    blocks = slopes_blocks(D) if half else backward_blocks(D, pieces)
    if in_pairs:
        blocks = IN_PAIRS
    splits, positions = shares(triton.cdiv(V, blocks.words), N, blocks.positions * (1 + in_pairs), blocks.together)
    parts = saved.new_empty(splits, V, D) if splits > 1 else torch.empty_like(weight)
    grad_x = x.new_empty(slope.shape)
    how: dict[str, Any] = {"num_warps": blocks.warps, "num_stages": blocks.stages, "maxnreg": blocks.registers}
    given = x, weight, target, saved, slope, grad_loss, grad_x
    if in_pairs:
        pairs.launch_weight_gradient(*given, parts, splits, positions)
    elif half:
        tile = blocks.positions, blocks.words, padded(D)
        launch_weight_gradient(*given, parts, splits, positions, blocks=tile, **how)
    else:
        lce_weight_kernel[(triton.cdiv(V, blocks.words), splits)](
            split(x, pieces), split(weight, pieces), target, saved, grad_loss, parts, slope, grad_x, N, V, positions,
            D=D, BLOCK_N=blocks.positions, BLOCK_V=blocks.words, BLOCK_D=padded(D), PIECES=pieces,
            GRAD_X=slope.numel() > 0, **how,
        )  # fmt: skip
    if splits == 1:
        return grad_x, parts
    return grad_x, sum_parts(parts.view(splits, V * D), weight.dtype, (weight,)).view(V, D)


@gradient_operator.register_fake
def _(x, weight, target, saved, slope, grad_loss):
    return x.new_empty(slope.shape), weight.new_empty(weight.shape)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, weight, target, _ = inputs
    _, hit, saved, slope = output
    ctx.save_for_backward(x, weight, target, saved, slope)
    ctx.mark_non_differentiable(hit, saved, slope)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad_loss: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
    if grad_loss is None:
        return None, None, None, None
    x, weight, target, saved, slope = ctx.saved_tensors
    if ctx.needs_input_grad[1]:
        grad_x, grad_weight = gradient_operator(x, weight, target, saved, slope, grad_loss)
        return grad_x if ctx.needs_input_grad[0] else None, grad_weight, None, None
    # Rounded where it is worked out: in one pass.
    return torch.mul(slope, grad_loss.unsqueeze(-1), out=torch.empty_like(x)), None, None, None


forward_operator.register_autograd(once_differentiable(_backward), setup_context=_keep)


def supported(x: Tensor, weight: Tensor) -> bool:
    """Whether the kernels take these inputs, and were seen on a GPU to be right and faster than the reference there.

    docs/log/linear_cross_entropy.md has the measurements: "high" and "medium" products of float32 are still to be
    timed there.
    """
    trained = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
    if x.dtype == torch.float32:
        seen = float32_precision() == "highest" and x.shape[-1] <= (128 if trained else 256)
    else:
        seen = x.dtype in (torch.float16, torch.bfloat16) and x.shape[-1] <= (WIDEST if trained else WIDEST_JUDGED)
    offsets = len(x) < 2**24 and max(x.numel(), weight.numel()) < 2**30  # 32 bits wide
    return seen and offsets and len(x) > 0 and x.dim() == weight.dim() == 2 and x.dtype == weight.dtype


def linear_cross_entropy(x_ND: Tensor, weight_VD: Tensor, target_N: Tensor) -> tuple[Tensor, Tensor]:
    """The public function's operands, already in the dtype of the product -> loss (N,) float32, hit (N,) bool."""
    loss, hit, _, _ = forward_operator(x_ND, weight_VD, target_N, torch.is_grad_enabled() and x_ND.requires_grad)
    return loss, hit
