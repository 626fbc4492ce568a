"""Triton kernels of `sliding_window`: flash attention over the band i - window ... i, and nothing outside it.

Forward: a program takes a block of queries and walks over the blocks of keys that its band touches, with an online
softmax (FlashAttention-2, arXiv 2307.08691); it leaves the logarithm of each row's sum (base 2, float32). Backward, two
kernels that recompute the weights from it: one by blocks of queries for dq, which also computes delta = dy . y, and one
by blocks of keys for dk and dv. Every output element is written by one program, in a fixed order of additions: results
are reproducible bit by bit.

Scores, softmax and sums are float32. A float32 product is three TF32 products whatever PyTorch's setting: with one, the
error was three to four times that of PyTorch's single product. In half precision the weights
are rounded to the inputs' dtype before their products.
"""

# mypy: allow-untyped-defs

import math
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .dense_rows import dense_rows
from .offsets import fit
from .slices import gradients_like

LARGEST_HEAD = 128
SMALL_WINDOW = 32
MOST = 65_535  # programs along the second axis of a launch
PRECISION = "tf32x3"  # of float32 products
NEVER = tl.constexpr(-1e30)  # a peak below every score: unlike -inf, it can be subtracted from -inf


class Blocks(NamedTuple):
    """Queries and keys of a block, and how a program runs it."""

    queries: int
    keys: int
    warps: int
    stages: int


@triton.jit
def _load(x, row, rows, stride, column, columns):
    inside = (row < rows)[:, None] & (column < columns)[None, :]
    return tl.load(x + row[:, None] * stride + column[None, :], mask=inside, other=0.0)


@triton.jit
def _store(x, value, row, rows, stride, column, columns):
    inside = (row < rows)[:, None] & (column < columns)[None, :]
    tl.store(x + row[:, None] * stride + column[None, :], value.to(x.dtype.element_ty), mask=inside)


@triton.jit
def _reads(query, key, L, WINDOW: tl.constexpr):
    """Whether a query reads a key, for index tensors that broadcast."""
    return (key <= query) & (query - key <= WINDOW) & (query < L)


@triton.jit
def _own_block(H, SIZE: tl.constexpr, AXIS: tl.constexpr):
    """The first token of a program's block, and its sequence (of B H), example and head. AXIS: of sequences."""
    sequence = tl.program_id(AXIS)
    b, h = (sequence // H).to(tl.int64), (sequence % H).to(tl.int64)
    return tl.program_id(1 - AXIS) * SIZE, sequence.to(tl.int64), b, h


@triton.jit
def _forward(
    q, k, v, y, sums, L, H, factor, batch_q, row_q, head_q, batch_k, row_k, head_k, batch_v, row_v, head_v,
    K: tl.constexpr, V: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr, WINDOW: tl.constexpr,
    QUERIES: tl.constexpr, KEYS: tl.constexpr, PRECISION: tl.constexpr, AXIS: tl.constexpr,
):  # fmt: skip
    """factor = scale * log2(e): scores are in base 2."""
    first, sequence, b, h = _own_block(H, QUERIES, AXIS)
    q += b * batch_q + h * head_q
    k += b * batch_k + h * head_k
    v += b * batch_v + h * head_v
    i = first + tl.arange(0, QUERIES)
    c_K = tl.arange(0, BLOCK_K)
    c_V = tl.arange(0, BLOCK_V)
    q_IK = _load(q, i, L, row_q, c_K, K)
    peak_I = tl.full([QUERIES], NEVER, tl.float32)
    sum_I = tl.zeros([QUERIES], tl.float32)
    y_IV = tl.zeros([QUERIES, BLOCK_V], tl.float32)
    for start in range(tl.maximum(first - WINDOW, 0) // KEYS * KEYS, tl.minimum(first + QUERIES, L), KEYS):
        j = start + tl.arange(0, KEYS)
        k_JK = _load(k, j, L, row_k, c_K, K)
        v_JV = _load(v, j, L, row_v, c_V, V)
        s_IJ = tl.dot(q_IK, tl.trans(k_JK), input_precision=PRECISION) * factor
        s_IJ = tl.where(_reads(i[:, None], j[None, :], L, WINDOW), s_IJ, float("-inf"))
        top_I = tl.maximum(peak_I, tl.max(s_IJ, 1))
        p_IJ = tl.exp2(s_IJ - top_I[:, None])
        shrink_I = tl.exp2(peak_I - top_I)
        sum_I = sum_I * shrink_I + tl.sum(p_IJ, 1)
        y_IV = tl.dot(p_IJ.to(v_JV.dtype), v_JV, y_IV * shrink_I[:, None], input_precision=PRECISION)
        peak_I = top_I
    y += (b * L * H + h) * V
    _store(y, y_IV / sum_I[:, None], i, L, H * V, c_V, V)
    tl.store(sums + sequence * L + i, peak_I + tl.log2(sum_I), mask=i < L)


@triton.jit
def _query_gradient(
    q, k, v, y, dy, sums, delta, dq, L, H, factor, scale,
    batch_q, row_q, head_q, batch_k, row_k, head_k, batch_v, row_v, head_v, batch_dq, row_dq, head_dq,
    K: tl.constexpr, V: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr, WINDOW: tl.constexpr,
    QUERIES: tl.constexpr, KEYS: tl.constexpr, PRECISION: tl.constexpr, AXIS: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """dq and delta = dy . y; y and dy are contiguous.

    EXACT: delta is summed again from its terms. The y of a small window is about as large as they are, so that its
    rounding to half precision would show in dq and dk.
    """
    first, sequence, b, h = _own_block(H, QUERIES, AXIS)
    q += b * batch_q + h * head_q
    k += b * batch_k + h * head_k
    v += b * batch_v + h * head_v
    i = first + tl.arange(0, QUERIES)
    c_K = tl.arange(0, BLOCK_K)
    c_V = tl.arange(0, BLOCK_V)
    q_IK = _load(q, i, L, row_q, c_K, K)
    own = (b * L * H + h) * V
    dy_IV = _load(dy + own, i, L, H * V, c_V, V)
    if not EXACT:
        y_IV = _load(y + own, i, L, H * V, c_V, V)
        delta_I = tl.sum(dy_IV.to(tl.float32) * y_IV.to(tl.float32), 1)
    row = sequence * L
    if not EXACT:
        tl.store(delta + row + i, delta_I, mask=i < L)
    sums_I = tl.load(sums + row + i, mask=i < L, other=0.0)
    if EXACT:
        delta_I = tl.zeros([QUERIES], tl.float32)
        for start in range(tl.maximum(first - WINDOW, 0) // KEYS * KEYS, tl.minimum(first + QUERIES, L), KEYS):
            j = start + tl.arange(0, KEYS)
            k_JK = _load(k, j, L, row_k, c_K, K)
            v_JV = _load(v, j, L, row_v, c_V, V)
            s_IJ = tl.dot(q_IK, tl.trans(k_JK), input_precision=PRECISION) * factor
            s_IJ = tl.where(_reads(i[:, None], j[None, :], L, WINDOW), s_IJ - sums_I[:, None], float("-inf"))
            dp_IJ = tl.dot(dy_IV, tl.trans(v_JV), input_precision=PRECISION)
            delta_I += tl.sum(tl.exp2(s_IJ) * dp_IJ, 1)
        tl.store(delta + row + i, delta_I, mask=i < L)
    dq_IK = tl.zeros([QUERIES, BLOCK_K], tl.float32)
    for start in range(tl.maximum(first - WINDOW, 0) // KEYS * KEYS, tl.minimum(first + QUERIES, L), KEYS):
        j = start + tl.arange(0, KEYS)
        k_JK = _load(k, j, L, row_k, c_K, K)
        v_JV = _load(v, j, L, row_v, c_V, V)
        s_IJ = tl.dot(q_IK, tl.trans(k_JK), input_precision=PRECISION) * factor
        s_IJ = tl.where(_reads(i[:, None], j[None, :], L, WINDOW), s_IJ - sums_I[:, None], float("-inf"))
        dp_IJ = tl.dot(dy_IV, tl.trans(v_JV), input_precision=PRECISION)
        ds_IJ = tl.exp2(s_IJ) * (dp_IJ - delta_I[:, None])
        dq_IK = tl.dot(ds_IJ.to(k_JK.dtype), k_JK, dq_IK, input_precision=PRECISION)
    _store(dq + b * batch_dq + h * head_dq, dq_IK * scale, i, L, row_dq, c_K, K)


@triton.jit
def _key_value_gradient(
    q, k, v, dy, sums, delta, dk, dv, L, H, factor, scale,
    batch_q, row_q, head_q, batch_k, row_k, head_k, batch_v, row_v, head_v, batch_dk, row_dk, head_dk,
    batch_dv, row_dv, head_dv,
    K: tl.constexpr, V: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr, WINDOW: tl.constexpr,
    QUERIES: tl.constexpr, KEYS: tl.constexpr, PRECISION: tl.constexpr, AXIS: tl.constexpr,
):  # fmt: skip
    """dk and dv of one block of keys; the scores are transposed, (keys, queries)."""
    first, sequence, b, h = _own_block(H, KEYS, AXIS)
    q += b * batch_q + h * head_q
    k += b * batch_k + h * head_k
    v += b * batch_v + h * head_v
    dy += (b * L * H + h) * V
    row = sequence * L
    j = first + tl.arange(0, KEYS)
    c_K = tl.arange(0, BLOCK_K)
    c_V = tl.arange(0, BLOCK_V)
    k_JK = _load(k, j, L, row_k, c_K, K)
    v_JV = _load(v, j, L, row_v, c_V, V)
    dk_JK = tl.zeros([KEYS, BLOCK_K], tl.float32)
    dv_JV = tl.zeros([KEYS, BLOCK_V], tl.float32)
    for start in range(first // QUERIES * QUERIES, tl.minimum(first + KEYS + WINDOW, L), QUERIES):
        i = start + tl.arange(0, QUERIES)
        q_IK = _load(q, i, L, row_q, c_K, K)
        dy_IV = _load(dy, i, L, H * V, c_V, V)
        sums_I = tl.load(sums + row + i, mask=i < L, other=0.0)
        delta_I = tl.load(delta + row + i, mask=i < L, other=0.0)
        s_JI = tl.dot(k_JK, tl.trans(q_IK), input_precision=PRECISION) * factor
        s_JI = tl.where(_reads(i[None, :], j[:, None], L, WINDOW), s_JI - sums_I[None, :], float("-inf"))
        p_JI = tl.exp2(s_JI)
        dv_JV = tl.dot(p_JI.to(dy_IV.dtype), dy_IV, dv_JV, input_precision=PRECISION)
        dp_JI = tl.dot(v_JV, tl.trans(dy_IV), input_precision=PRECISION)
        ds_JI = p_JI * (dp_JI - delta_I[None, :])
        dk_JK = tl.dot(ds_JI.to(q_IK.dtype), q_IK, dk_JK, input_precision=PRECISION)
    _store(dk + b * batch_dk + h * head_dk, dk_JK * scale, j, L, row_dk, c_K, K)
    _store(dv + b * batch_dv + h * head_dv, dv_JV, j, L, row_dv, c_V, V)


def blocks(width: int, window: int, dtype: torch.dtype, *, backward: bool = False) -> Blocks:
    """Blocks for the wider of key and value, padded. A small window gets small blocks: less is masked."""
    small = 32 if window <= SMALL_WINDOW else 64
    if dtype == torch.float32:
        return Blocks(32, 32, 4, 2) if width > 64 else Blocks(small, 32, 4, 2)
    return Blocks(64, 32 if backward and width > 64 else small, 4, 2)


def _padded(width: int) -> int:
    return max(16, triton.next_power_of_2(width))


def _launch(q: Tensor, k: Tensor, v: Tensor, window: int, backward: bool) -> tuple[Blocks, tuple[int, ...], dict]:
    """Blocks, strides and constants of a launch."""
    K, V = q.shape[-1], v.shape[-1]
    block = blocks(max(_padded(K), _padded(V)), window, q.dtype, backward=backward)
    constants = {
        "K": K, "V": V, "BLOCK_K": _padded(K), "BLOCK_V": _padded(V), "WINDOW": window, "QUERIES": block.queries,
        "KEYS": block.keys, "PRECISION": PRECISION,
        "num_warps": block.warps, "num_stages": block.stages,
    }  # fmt: skip
    return block, (*q.stride()[:3], *k.stride()[:3], *v.stride()[:3]), constants


def _grid(block: Blocks, q: Tensor) -> tuple[tuple[int, int], int]:
    """A launch of blocks x sequences (B H), or the other way round: the first axis takes any number, the second MOST.

    And the axis of sequences. So many of them are never so long that the second would not do for their blocks.
    """
    batch, length, heads, _ = q.shape
    sizes = triton.cdiv(length, block.queries), batch * heads
    return (sizes, 1) if sizes[1] <= MOST else (sizes[::-1], 0)


@torch.library.custom_op("basedbench::sliding_window", mutates_args=())
def forward_operator(q: Tensor, k: Tensor, v: Tensor, window: int, scale: float) -> tuple[Tensor, Tensor]:
    """y (B,L,H,V), and per row log2 of the sum of 2^score, (B,H,L) in float32."""
    q, k, v = dense_rows(q), dense_rows(k), dense_rows(v)
    block, strides, constants = _launch(q, k, v, window, backward=False)
    y, sums = outputs(q, k, v, window, scale)
    _, length, heads, _ = q.shape
    grid, axis = _grid(block, q)
    _forward[grid](q, k, v, y, sums, length, heads, scale * math.log2(math.e), *strides, **constants, AXIS=axis)
    return y, sums


@forward_operator.register_fake
def outputs(q: Tensor, k: Tensor, v: Tensor, window: int, scale: float) -> tuple[Tensor, Tensor]:
    """The outputs, not yet written."""
    batch, length, heads, _ = q.shape
    return v.new_empty(v.shape), v.new_empty((batch, heads, length), dtype=torch.float32)


@torch.library.custom_op("basedbench::sliding_window_backward", mutates_args=("dq", "dk", "dv"))
def backward_operator(
    q: Tensor, k: Tensor, v: Tensor, y: Tensor, sums: Tensor, dy: Tensor, window: int, scale: float,
    dq: Tensor, dk: Tensor, dv: Tensor,
) -> None:  # fmt: skip
    """Writes the gradients of q, k and v, which may be slices of one tensor."""
    q, k, v, dy = dense_rows(q), dense_rows(k), dense_rows(v), dy.contiguous()
    block, strides, constants = _launch(q, k, v, window, backward=True)
    delta = torch.empty_like(sums)
    _, length, heads, _ = q.shape
    exact = q.dtype != torch.float32 and window < SMALL_WINDOW
    numbers = length, heads, scale * math.log2(math.e), scale
    grid, constants["AXIS"] = _grid(block, q)
    _query_gradient[grid](
        q, k, v, y, dy, sums, delta, dq, *numbers, *strides, *dq.stride()[:3], **constants, EXACT=exact
    )
    constants |= {"QUERIES": block.keys, "KEYS": block.queries}  # the larger block is the one that stays
    _key_value_gradient[grid](
        q, k, v, dy, sums, delta, dk, dv, *numbers, *strides, *dk.stride()[:3], *dv.stride()[:3], **constants
    )


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, ctx.window, ctx.scale = inputs
    y, sums = output
    ctx.save_for_backward(q, k, v, y, sums)
    ctx.mark_non_differentiable(sums)
    ctx.set_materialize_grads(False)


def _gradients(ctx: Any, dy: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    if dy is None:
        return None, None, None, None, None
    q, k, v, y, sums = ctx.saved_tensors
    found = gradients_like(q, k, v)
    backward_operator(q, k, v, y, sums, dy, ctx.window, ctx.scale, *found)
    return *found, None, None


forward_operator.register_autograd(_gradients, setup_context=_keep)


def supported(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Whether the kernels take these inputs."""
    known = q.dtype == k.dtype == v.dtype and q.dtype in (torch.float32, torch.float16, torch.bfloat16)
    return (
        known and fit(q, k, v) and 0 < max(q.shape[-1], v.shape[-1]) <= LARGEST_HEAD and q.numel() > 0 and v.numel() > 0
    )


def sliding_window(
    q_BLHK: Tensor, k_BLHK: Tensor, v_BLHV: Tensor, window: int, *, scale: float | None = None
) -> Tensor:
    """`sliding_window.reference` by the kernels above."""
    scale = q_BLHK.shape[-1] ** -0.5 if scale is None else scale
    return forward_operator(q_BLHK, k_BLHK, v_BLHV, window, scale)[0]
