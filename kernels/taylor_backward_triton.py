"""Gradients of taylor_attention. With u = dy / z and delta = (dy . y) / z,

    da_ts = u_t . v_s - delta_t          (the gradient of the weight of key s for query t)
    dq_t  = scale sum_s<=t da_ts (1 + s_ts) k_s
    dk_s  = scale sum_t>=s da_ts (1 + s_ts) q_t,      dv_s = sum_t>=s A_ts u_t

Inside a segment by tiles, in a fixed order and without atomics: one kernel walks the keys of a block of queries, one
the queries of a block of keys. Keys before the segment come through the forward's state, queries after it through a
second state, summed from the end, of [u, -delta] with the features of q. 1 / z is applied after the products with dy,
or to the other factor: so dy enters them unrounded.
"""

# mypy: allow-untyped-defs

import triton
import triton.language as tl

from .taylor_tiles import (
    block_of_sequence,
    differentiate_state,
    head_offset,
    load_tile,
    load_vector,
    operand,
    product,
    query_state,
    scores,
)


@triton.jit(do_not_specialize=["length", "heads", "segment", "segments", "pairs"])
def grad_query_kernel(
    q_pointer, k_pointer, v_pointer, y_pointer, dy_pointer, inverse_pointer, delta_pointer, dq_pointer, states, moments,
    q_batch, q_row, q_head, k_batch, k_row, k_head, v_batch, v_row, v_head, dq_batch, dq_row, dq_head,
    length, heads, segment, segments, pairs, scale,
    K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, BL: tl.constexpr, PAIRS: tl.constexpr,
    T: tl.constexpr, STATE: tl.constexpr, EVEN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dq (B,L,H,K) and, for the kernels that follow, delta (B,H,L)."""
    sequence, start = block_of_sequence(length, T)
    rows, keys, values = start + tl.arange(0, T), tl.arange(0, BK), tl.arange(0, BV)
    q_pointer += head_offset(sequence, heads, q_batch, q_head)
    k_pointer += head_offset(sequence, heads, k_batch, k_head)
    v_pointer += head_offset(sequence, heads, v_batch, v_head)
    y_offset = head_offset(sequence, heads, heads.to(tl.int64) * length * V, V)
    q = load_tile(q_pointer, q_row, rows, keys, length, K, BK, EVEN)
    dy = load_tile(dy_pointer + y_offset, heads * V, rows, values, length, V, BV, EVEN).to(tl.float32)
    y = load_tile(y_pointer + y_offset, heads * V, rows, values, length, V, BV, EVEN).to(tl.float32)
    inverse = load_vector(inverse_pointer + sequence.to(tl.int64) * length, rows, length, EVEN)
    delta = tl.sum(dy * y, 1) * inverse
    tl.store(delta_pointer + sequence.to(tl.int64) * length + rows, delta, mask=rows < length)
    dy = operand(dy, PRECISION)
    number = start // segment
    if STATE:
        place = (sequence * segments + number).to(tl.int64)
        state, moment = states + place * ((PAIRS * 64 + BL) * BV), moments + place * (BL * BL)
        dq = differentiate_state(
            q, dy, inverse, -delta, q_pointer, q_row, rows, length, state, moment, pairs, scale,
            K, BK, BV, BL, PAIRS, EVEN, PRECISION,
        )  # fmt: skip
    else:
        dq = tl.zeros([T, BK], tl.float32)
    for first in tl.range(number * segment, start + T, T):
        columns = first + tl.arange(0, T)
        k = load_tile(k_pointer, k_row, columns, keys, length, K, BK, EVEN)
        v = load_tile(v_pointer, v_row, columns, values, length, V, BV, EVEN)
        s = scores(q, k, PRECISION) * scale
        da = product(dy, tl.trans(operand(v, PRECISION)), tl.zeros([T, T], tl.float32), PRECISION)
        da = da * inverse[:, None] - delta[:, None]
        ds = tl.where(rows[:, None] >= columns[None, :], da * (1.0 + s), 0.0)
        dq = product(operand(ds, PRECISION), operand(k, PRECISION), dq, PRECISION)
    dq_pointer += head_offset(sequence, heads, dq_batch, dq_head)
    mask = (rows < length)[:, None] & (keys < K)[None, :]
    place = dq_pointer + rows[:, None] * dq_row + keys[None, :]
    tl.store(place, (dq * scale).to(dq_pointer.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["length", "heads", "segment", "segments", "pairs"])
def grad_key_value_kernel(
    q_pointer, k_pointer, v_pointer, dy_pointer, inverse_pointer, delta_pointer, dk_pointer, dv_pointer,
    states, moments,
    q_batch, q_row, q_head, k_batch, k_row, k_head, v_batch, v_row, v_head,
    dk_batch, dk_row, dk_head, dv_batch, dv_row, dv_head, length, heads, segment, segments, pairs, scale,
    K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, BL: tl.constexpr, PAIRS: tl.constexpr,
    T: tl.constexpr, STATE: tl.constexpr, EVEN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dk (B,L,H,K), dv (B,L,H,V). The states are those summed from the end."""
    sequence, start = block_of_sequence(length, T)
    rows, keys, values = start + tl.arange(0, T), tl.arange(0, BK), tl.arange(0, BV)
    q_pointer += head_offset(sequence, heads, q_batch, q_head)
    k_pointer += head_offset(sequence, heads, k_batch, k_head)
    v_pointer += head_offset(sequence, heads, v_batch, v_head)
    dy_pointer += head_offset(sequence, heads, heads.to(tl.int64) * length * V, V)
    inverse_pointer += sequence.to(tl.int64) * length
    delta_pointer += sequence.to(tl.int64) * length
    k = load_tile(k_pointer, k_row, rows, keys, length, K, BK, EVEN)
    v_operand = operand(load_tile(v_pointer, v_row, rows, values, length, V, BV, EVEN), PRECISION)
    number = start // segment
    if STATE:
        place = (sequence * segments + number).to(tl.int64)
        state, moment = states + place * ((PAIRS * 64 + BL) * BV), moments + place * (BL * BL)
        one = tl.full([T], 1.0, tl.float32)
        dk = differentiate_state(
            k, v_operand, one, one, k_pointer, k_row, rows, length, state, moment, pairs, scale,
            K, BK, BV, BL, PAIRS, EVEN, PRECISION,
        )  # fmt: skip
        dv = query_state(k, k_pointer, k_row, rows, length, state, pairs, scale, K, BK, BV, PAIRS, EVEN, PRECISION)
    else:
        dk = tl.zeros([T, BK], tl.float32)
        dv = tl.zeros([T, BV], tl.float32)
    for first in tl.range(start, tl.minimum((number + 1) * segment, length), T):
        queries = first + tl.arange(0, T)
        q = load_tile(q_pointer, q_row, queries, keys, length, K, BK, EVEN)
        dy = operand(load_tile(dy_pointer, heads * V, queries, values, length, V, BV, EVEN), PRECISION)
        inverse = load_vector(inverse_pointer, queries, length, EVEN)
        delta = load_vector(delta_pointer, queries, length, EVEN)
        causal = queries[None, :] >= rows[:, None]
        s = scores(k, q, PRECISION) * scale
        weights = tl.where(causal, (0.5 * s + 1.0) * s + 1.0, 0.0)
        dv = product(operand(weights * inverse[None, :], PRECISION), dy, dv, PRECISION)
        da = product(v_operand, tl.trans(dy), tl.zeros([T, T], tl.float32), PRECISION)
        da = da * inverse[None, :] - delta[None, :]
        ds = tl.where(causal, da * (1.0 + s), 0.0)
        dk = product(operand(ds, PRECISION), operand(q, PRECISION), dk, PRECISION)
    dk_pointer += head_offset(sequence, heads, dk_batch, dk_head)
    dv_pointer += head_offset(sequence, heads, dv_batch, dv_head)
    inside = (rows < length)[:, None]
    place = dk_pointer + rows[:, None] * dk_row + keys[None, :]
    tl.store(place, (dk * scale).to(dk_pointer.dtype.element_ty), mask=inside & (keys < K)[None, :])
    place = dv_pointer + rows[:, None] * dv_row + values[None, :]
    tl.store(place, dv.to(dv_pointer.dtype.element_ty), mask=inside & (values < V)[None, :])
