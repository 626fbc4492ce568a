"""`asked_attention` in Triton: a launch forward, a launch backward.

A program has up to 64 queries of one head of one example and walks over the tiles of keys that any of them sees. With
no more queries than that the backward's program has all of them, so that a tile's gradients are complete when it has
been walked over, and everything is recomputed from the rows' sums only once. With u = dy / z (softmax: u = dy and
weights divided by z)

    dw_kj = u_k . v_j - u_k . y_k,   ds = dw times w's slope;   dq = sum ds k,   dk = sum ds q,   dv = w^T u

Sums over all tokens, as gradients of biases are, need none of them: softmax's weights sum to one, so that those of dv
are those of dy; a constant in all keys changes no weight, so that those of dk are zero.
"""

# mypy: allow-untyped-defs

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .dense_rows import dense_rows
from .differentiated import differentiated
from .offsets import fit
from .packing import Packing, starts_of
from .partial_sums_triton import sum_parts
from .precision import precision_of
from .slices import gradients_like
from .taylor_tiles import load_tile, operand, product, scores

LARGEST_HEAD = 128
MOST_QUERIES = 64  # of a program, and of an example with gradients
# Of heads wider than 64 in other dtypes than bfloat16. With 64, operands do not fit into the backward's shared memory,
# and the forward becomes warpgroup products that ptxas makes wrong code of.
FEW_QUERIES = 32
SMALL_WINDOW = 32
# With 163 kB of shared memory for a program, or more; others have 99, and the largest tiles take 147.
ROOMY = ((8, 0), (8, 7), (9, 0), (10, 0), (10, 3))
NEVER = tl.constexpr(-1e30)  # a peak below every score: unlike -inf, it can be subtracted from -inf


@triton.jit
def _place(x, batch, head, batch_stride, head_stride, UNIT: tl.constexpr):
    """Where a head of an example begins, for strides in units."""
    return x + (batch * batch_stride + head * head_stride) * UNIT


@triton.jit
def _example(starts, batch):
    """Where the tokens of a packed example begin, and how many there are; see `Packing`."""
    first = tl.load(starts + batch)
    return first.to(tl.int64), tl.load(starts + batch + 1) - first


@triton.jit
def _queries(positions, batch, first, asked, QUERIES: tl.constexpr):
    """Numbers of queries, and their positions: -1 beyond the last."""
    query = first + tl.arange(0, QUERIES)
    return query, tl.load(positions + batch * asked + query, mask=query < asked, other=-1).to(tl.int32)


@triton.jit
def _first_tile(position, length, KEYS: tl.constexpr, WINDOW: tl.constexpr):
    """Where the first tile of keys begins that a query at one of these positions sees."""
    first = 0
    if WINDOW > 0:
        earliest = tl.min(tl.where(position >= 0, position, length))
        first = tl.maximum(earliest - WINDOW, 0) // KEYS * KEYS
    return first


@triton.jit
def _seen(position, key, WINDOW: tl.constexpr):
    """Whether a query at a position sees a key, for tensors that broadcast; WINDOW 0: all before it."""
    if WINDOW == 0:
        return key <= position
    return (key <= position) & (position - key <= WINDOW)


@triton.jit(do_not_specialize=["asked"])
def asked_forward_kernel(
    q, k, v, positions, starts, y, sums, asked, length, heads, scale, batch_q, row_q, head_q, batch_k, row_k, head_k,
    batch_v, row_v, head_v, F: tl.constexpr, V: tl.constexpr, BF: tl.constexpr, BV: tl.constexpr, QUERIES: tl.constexpr,
    KEYS: tl.constexpr, WINDOW: tl.constexpr, PRECISION: tl.constexpr, UNIT: tl.constexpr, PACKED: tl.constexpr,
):  # fmt: skip
    """y (B,K,H,V), and of each row 1 / z, or with a WINDOW log2 of z (B,H,K). `scale`: then times log2(e).

    Strides are in units of UNIT numbers, see `_strides`. PACKED: k and v are one row of examples, batch strides 0.
    """
    sequence = tl.program_id(0)  # the one axis that takes more than 65,535
    batch, head = (sequence // heads).to(tl.int64), (sequence % heads).to(tl.int64)
    query, position = _queries(positions, batch, tl.program_id(1) * QUERIES, asked, QUERIES)
    c_F, c_V = tl.arange(0, BF), tl.arange(0, BV)
    q = _place(q, batch, head, batch_q, head_q, UNIT)
    k = _place(k, batch, head, batch_k, head_k, UNIT)
    v = _place(v, batch, head, batch_v, head_v, UNIT)
    if PACKED:
        first, length = _example(starts, batch)
        k += first * row_k * UNIT
        v += first * row_v * UNIT
    q_QF = load_tile(q, row_q * UNIT, query, c_F, asked, F, BF, False)
    y_QV = tl.zeros([QUERIES, BV], tl.float32)
    z_Q = tl.zeros([QUERIES], tl.float32)
    peak_Q = tl.full([QUERIES], NEVER, tl.float32)
    for start in tl.range(_first_tile(position, length, KEYS, WINDOW), tl.max(position) + 1, KEYS):
        key = start + tl.arange(0, KEYS)
        k_JF = load_tile(k, row_k * UNIT, key, c_F, length, F, BF, False)
        v_JV = operand(load_tile(v, row_v * UNIT, key, c_V, length, V, BV, False), PRECISION)
        s = scores(q_QF, k_JF, PRECISION) * scale
        seen = _seen(position[:, None], key[None, :], WINDOW)
        if WINDOW == 0:
            weights = tl.where(seen, (0.5 * s + 1.0) * s + 1.0, 0.0)
        else:
            s = tl.where(seen, s, float("-inf"))
            top_Q = tl.maximum(peak_Q, tl.max(s, 1))
            weights = tl.exp2(s - top_Q[:, None])
            shrink_Q = tl.exp2(peak_Q - top_Q)
            z_Q *= shrink_Q
            y_QV *= shrink_Q[:, None]
            peak_Q = top_Q
        # Summed as they are multiplied: then y is v exactly where one key is seen, and dq nothing.
        weights = operand(weights, PRECISION)
        z_Q += tl.sum(weights.to(tl.float32), 1)
        y_QV = product(weights, v_JV, y_QV, PRECISION)
    inverse_Q = 1.0 / z_Q
    place = ((batch * asked + query) * heads + head)[:, None] * V + c_V[None, :]
    inside = (query < asked)[:, None] & (c_V < V)[None, :]
    tl.store(y + place, (y_QV * inverse_Q[:, None]).to(y.dtype.element_ty), mask=inside)
    kept = inverse_Q if WINDOW == 0 else peak_Q + tl.log2(z_Q)
    tl.store(sums + sequence.to(tl.int64) * asked + query, kept, mask=query < asked)


@triton.jit
def _weights(q_QF, k_JF, position, key, sums_Q, scale, WINDOW: tl.constexpr, PRECISION: tl.constexpr):
    """(keys, queries): weights and their derivative by the score, over them for a WINDOW.

    Taylor's are not divided by their sum, and rounded as the forward's products had them: a token's only key keeps all.
    """
    s = scores(k_JF, q_QF, PRECISION) * scale
    seen = _seen(position[None, :], key[:, None], WINDOW)
    if WINDOW == 0:
        weights = operand(tl.where(seen, (0.5 * s + 1.0) * s + 1.0, 0.0), PRECISION)
        return weights.to(tl.float32), tl.where(seen, 1.0 + s, 0.0)
    weights = tl.exp2(tl.where(seen, s - sums_Q[None, :], float("-inf")))
    return weights, weights


@triton.jit(do_not_specialize=["asked"])
def asked_backward_kernel(
    q, k, v, y, dy, positions, starts, sums, dq, dk, dv, partials, asked, length, heads, scale, factor, batch_q, row_q,
    head_q, batch_k, row_k, head_k, batch_v, row_v, head_v, batch_dk, row_dk, head_dk, batch_dv, row_dv, head_dv,
    F: tl.constexpr, V: tl.constexpr, BF: tl.constexpr, BV: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
    WINDOW: tl.constexpr, PRECISION: tl.constexpr, UNIT: tl.constexpr, EXACT: tl.constexpr, PACKED: tl.constexpr,
    HAS_BIAS: tl.constexpr,
):  # fmt: skip
    """dq (B,K,H,F), dk and dv. `scale` as in the forward, `factor` that of the scores' derivative.

    HAS_BIAS, with a WINDOW: partials (B, H F + H F + H V), an example's part of the gradient of a bias of q, k and v.

    EXACT: delta is summed again from its terms. The y of a small window is about as large as they are, so that its
    rounding to half precision would show in dq and dk.
    """
    batch, head = (tl.program_id(0) // heads).to(tl.int64), (tl.program_id(0) % heads).to(tl.int64)
    query, position = _queries(positions, batch, 0, asked, QUERIES)
    c_F, c_V = tl.arange(0, BF), tl.arange(0, BV)
    q = _place(q, batch, head, batch_q, head_q, UNIT)
    k = _place(k, batch, head, batch_k, head_k, UNIT)
    v = _place(v, batch, head, batch_v, head_v, UNIT)
    q_QF = load_tile(q, row_q * UNIT, query, c_F, asked, F, BF, False)
    dk = _place(dk, batch, head, batch_dk, head_dk, UNIT)
    dv = _place(dv, batch, head, batch_dv, head_dv, UNIT)
    if PACKED:
        first, length = _example(starts, batch)
        k += first * row_k * UNIT
        v += first * row_v * UNIT
        dk += first * row_dk * UNIT
        dv += first * row_dv * UNIT
    own = (batch * asked * heads + head) * V
    given = load_tile(dy + own, heads * V, query, c_V, asked, V, BV, False)
    sums_Q = tl.load(sums + tl.program_id(0).to(tl.int64) * asked + query, mask=query < asked, other=0.0)
    dy_QV = operand(given, PRECISION)
    part = partials
    if HAS_BIAS:
        part += batch * heads * (2 * F + V)
        tl.store(part + (heads + head) * F + c_F, tl.zeros([BF], tl.float32), mask=c_F < F)
        tl.store(part + 2 * heads * F + head * V + c_V, tl.sum(given.to(tl.float32), 0), mask=c_V < V)
    inverse_Q = sums_Q if WINDOW == 0 else tl.full([QUERIES], 1.0, tl.float32)
    if EXACT:
        delta_Q = tl.zeros([QUERIES], tl.float32)
        for start in tl.range(_first_tile(position, length, KEYS, WINDOW), tl.max(position) + 1, KEYS):
            key = start + tl.arange(0, KEYS)
            k_JF = load_tile(k, row_k * UNIT, key, c_F, length, F, BF, False)
            v_JV = operand(load_tile(v, row_v * UNIT, key, c_V, length, V, BV, False), PRECISION)
            weights, _ = _weights(q_QF, k_JF, position, key, sums_Q, scale, WINDOW, PRECISION)
            dw = product(v_JV, tl.trans(dy_QV), tl.zeros([KEYS, QUERIES], tl.float32), PRECISION)
            delta_Q += tl.sum(weights * dw, 0)
    else:
        y_QV = load_tile(y + own, heads * V, query, c_V, asked, V, BV, False).to(tl.float32)
        delta_Q = tl.sum(given.to(tl.float32) * y_QV, 1) * inverse_Q
    dq_QF = tl.zeros([QUERIES, BF], tl.float32)
    for start in tl.range(0, length, KEYS):
        key = start + tl.arange(0, KEYS)
        k_JF = load_tile(k, row_k * UNIT, key, c_F, length, F, BF, False)
        v_JV = operand(load_tile(v, row_v * UNIT, key, c_V, length, V, BV, False), PRECISION)
        weights, slopes = _weights(q_QF, k_JF, position, key, sums_Q, scale, WINDOW, PRECISION)
        nothing = tl.zeros([KEYS, BV], tl.float32)
        dv_JV = product(operand(weights * inverse_Q[None, :], PRECISION), dy_QV, nothing, PRECISION)
        dw = product(v_JV, tl.trans(dy_QV), tl.zeros([KEYS, QUERIES], tl.float32), PRECISION)
        ds = operand((dw * inverse_Q[None, :] - delta_Q[None, :]) * slopes, PRECISION)
        dk_JF = product(ds, operand(q_QF, PRECISION), tl.zeros([KEYS, BF], tl.float32), PRECISION)
        dq_QF = product(tl.trans(ds), operand(k_JF, PRECISION), dq_QF, PRECISION)
        left = (key < length)[:, None]
        place = dk + key[:, None] * (row_dk * UNIT) + c_F[None, :]
        tl.store(place, (dk_JF * factor).to(dk.dtype.element_ty), mask=left & (c_F < F)[None, :])
        place = dv + key[:, None] * (row_dv * UNIT) + c_V[None, :]
        tl.store(place, dv_JV.to(dv.dtype.element_ty), mask=left & (c_V < V)[None, :])
    place = ((batch * asked + query) * heads + head)[:, None] * F + c_F[None, :]
    inside = (query < asked)[:, None] & (c_F < F)[None, :]
    tl.store(dq + place, (dq_QF * factor).to(dq.dtype.element_ty), mask=inside)
    if HAS_BIAS:
        tl.store(part + head * F + c_F, tl.sum(dq_QF, 0) * factor, mask=c_F < F)


def _padded(width: int) -> int:
    return max(16, triton.next_power_of_2(width))


def _wide(q: Tensor, v: Tensor) -> bool:
    return max(_padded(q.shape[-1]), _padded(v.shape[-1])) > 64


def _most_queries(q: Tensor, v: Tensor) -> int:
    """Of a program, which in the backward has all of an example."""
    return FEW_QUERIES if _wide(q, v) and q.dtype != torch.bfloat16 else MOST_QUERIES


def _strides(q: Tensor, *tensors: Tensor, packed: bool) -> tuple[tuple[int, ...], int]:
    """Strides of q and the others, which are one row of examples if `packed`, and the numbers that are a unit of them.

    That is all that 16 bytes hold if rows are whole pieces of those: Triton knows multiples of 16 only. Rows of 8 or 24
    keys beside 64 values are none, and were read number by number.
    """
    strides = [*q.stride()[:3]]
    for x in tensors:
        strides += [0 if packed else x.stride(0), *x.stride()[1:3]]
    piece = 16 // q.element_size()
    known = all(stride % 16 == 0 for stride in strides)
    unit = 1 if known or any(stride % piece for stride in strides) else piece
    return tuple(stride // unit for stride in strides), unit


def _constants(q: Tensor, v: Tensor, window: int) -> dict[str, Any]:
    """What both kernels are compiled for."""
    F, V = q.shape[-1], v.shape[-1]
    exactly = window > 0 and q.dtype != torch.bfloat16
    precision = "tf32x3" if exactly else precision_of(q.dtype)
    queries, wide = min(_most_queries(q, v), _padded(q.shape[1])), _wide(q, v)
    half = precision == "bf16"
    keys = (32 if wide and window > 0 and queries > 16 else 64) if half else 16 if wide else 32
    warps = 4 if half or not (wide or queries > 32) else 8
    return {
        "F": F, "V": V, "BF": _padded(F), "BV": _padded(V), "QUERIES": queries, "KEYS": keys, "WINDOW": window,
        "PRECISION": precision, "num_warps": warps, "num_stages": 3 if half else 1,
    }  # fmt: skip


@torch.library.custom_op("basedbench::asked_attention", mutates_args=())
def forward_operator(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, positions: Tensor, starts: Tensor | None, window: int,
    scale: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """y (B,K,H,V), and of each row 1 / z, or with a window (0: none) log2 of z, (B,H,K) in float32.

    starts: of a `Packing`, if k and v are one. bias: for its gradient only, see `sliding_window_asked`.
    """
    q, k, v, positions = dense_rows(q), dense_rows(k), dense_rows(v), positions.contiguous()
    y, sums = outputs(q, k, v, bias, positions, starts, window, scale)
    batch, asked, heads, _ = q.shape
    constants = _constants(q, v, window)
    strides, unit = _strides(q, k, v, packed=starts is not None)
    asked_forward_kernel[(batch * heads, triton.cdiv(asked, constants["QUERIES"]))](
        q, k, v, positions, starts, y, sums, asked, k.shape[1], heads, scale * (math.log2(math.e) if window else 1),
        *strides, **constants, UNIT=unit, PACKED=starts is not None,
    )  # fmt: skip
    return y, sums


@forward_operator.register_fake
def outputs(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, positions: Tensor, starts: Tensor | None, window: int,
    scale: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The outputs, not yet written."""
    batch, asked, heads, _ = q.shape
    return v.new_empty((batch, asked, heads, v.shape[-1])), v.new_empty((batch, heads, asked), dtype=torch.float32)


@torch.library.custom_op("basedbench::asked_attention_backward", mutates_args=("dq", "dk", "dv"))
def backward_operator(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, y: Tensor, dy: Tensor, positions: Tensor,
    starts: Tensor | None, sums: Tensor, window: int, scale: float, dq: Tensor, dk: Tensor, dv: Tensor,
) -> Tensor:  # fmt: skip
    """Writes the gradients, of which dk and dv may be slices of one tensor; returns the bias's (empty if None)."""
    q, k, v, dy, positions = dense_rows(q), dense_rows(k), dense_rows(v), dy.contiguous(), positions.contiguous()
    batch, asked, heads, _ = q.shape
    partials = None if bias is None else torch.empty((batch, len(bias)), dtype=torch.float32, device=q.device)
    strides, unit = _strides(q, k, v, dk, dv, packed=starts is not None)
    asked_backward_kernel[(batch * heads,)](
        q, k, v, y, dy, positions, starts, sums, dq, dk, dv, partials, asked, k.shape[1], heads,
        scale * (math.log2(math.e) if window else 1), scale, *strides, **_constants(q, v, window), UNIT=unit,
        EXACT=0 < window < SMALL_WINDOW and q.dtype != torch.float32, PACKED=starts is not None,
        HAS_BIAS=partials is not None,
    )  # fmt: skip
    return q.new_empty(0) if bias is None or partials is None else sum_parts(partials, bias.dtype, (bias,))


@backward_operator.register_fake
def _(q, k, v, bias, y, dy, positions, starts, sums, window, scale, dq, dk, dv):
    return q.new_empty(0) if bias is None else torch.empty_like(bias)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, bias, positions, starts, ctx.window, ctx.scale = inputs
    ctx.save_for_backward(q, k, v, bias, output[0], positions, starts, output[1])
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _gradients(ctx: Any, dy: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    if dy is None:
        return None, None, None, None, None, None, None, None
    q, k, v, bias, y, positions, starts, sums = ctx.saved_tensors
    dq = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    dk, dv = gradients_like(k, v)
    d_bias = backward_operator(q, k, v, bias, y, dy, positions, starts, sums, ctx.window, ctx.scale, dq, dk, dv)
    return dq, dk, dv, None if bias is None else d_bias, None, None, None, None


forward_operator.register_autograd(_gradients, setup_context=_keep)


def supported(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Whether the kernels take these inputs."""
    known = q.dtype == k.dtype == v.dtype and q.dtype in (torch.float32, torch.float16, torch.bfloat16)
    fitting = 0 < max(q.shape[-1], v.shape[-1]) <= LARGEST_HEAD and min(q.numel(), k.numel(), v.numel()) > 0
    few = q.shape[1] <= _most_queries(q, v) or not differentiated(q, k, v)
    return known and fitting and few and fit(q, k, v) and len(q) * k.shape[2] < 65536 and _roomy(q)


def _roomy(x: Tensor) -> bool:
    return not x.is_cuda or torch.cuda.get_device_capability(x.device) in ROOMY


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    positions: Tensor,
    window: int | None,
    scale: float | None,
    packing: Packing | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """`asked_attention.reference` by the kernels above."""
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    y: Tensor = forward_operator(q, k, v, bias, positions, starts_of(packing), window or 0, scale)[0]
    return y
