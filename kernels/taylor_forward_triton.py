"""Outputs of taylor_attention: quadratic inside a segment, plus what the state brings from the segments before.

One program per T rows of queries of one sequence. Without states this is the whole operator for short sequences.
"""

# mypy: allow-untyped-defs

import triton
import triton.language as tl

from .taylor_tiles import (
    block_of_sequence,
    head_offset,
    load_tile,
    operand,
    product,
    query_moments,
    query_state,
    scores,
)


@triton.jit(do_not_specialize=["length", "heads", "segment", "segments", "pairs"])
def output_kernel(
    q_pointer, k_pointer, v_pointer, y_pointer, inverse_pointer, states, moments,
    q_batch, q_row, q_head, k_batch, k_row, k_head, v_batch, v_row, v_head,
    length, heads, segment, segments, pairs, scale,
    K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, BL: tl.constexpr, PAIRS: tl.constexpr,
    T: tl.constexpr, STATE: tl.constexpr, EVEN: tl.constexpr, PRECISION: tl.constexpr,
    INVERSE: tl.constexpr,
):  # fmt: skip
    """y (B,L,H,V) and, INVERSE, 1 / z (B,H,L) in float32. `segment` is a multiple of T, or not less than the length."""
    sequence, start = block_of_sequence(length, T)
    rows, keys, values = start + tl.arange(0, T), tl.arange(0, BK), tl.arange(0, BV)
    q_pointer += head_offset(sequence, heads, q_batch, q_head)
    k_pointer += head_offset(sequence, heads, k_batch, k_head)
    v_pointer += head_offset(sequence, heads, v_batch, v_head)
    q = load_tile(q_pointer, q_row, rows, keys, length, K, BK, EVEN)
    number = start // segment
    if STATE:
        place = (sequence * segments + number).to(tl.int64)
        state = states + place * ((PAIRS * 64 + BL) * BV)
        y = query_state(q, q_pointer, q_row, rows, length, state, pairs, scale, K, BK, BV, PAIRS, EVEN, PRECISION)
        z = query_moments(q, moments + place * (BL * BL), scale, K, BK, BL, PRECISION)
    else:
        y = tl.zeros([T, BV], tl.float32)
        z = tl.zeros([T], tl.float32)
    for first in tl.range(number * segment, start, T):
        columns = first + tl.arange(0, T)
        k = load_tile(k_pointer, k_row, columns, keys, length, K, BK, True)
        v = load_tile(v_pointer, v_row, columns, values, length, V, BV, True)
        s = scores(q, k, PRECISION) * scale
        weights = (0.5 * s + 1.0) * s + 1.0
        z += tl.sum(weights, 1)
        y = product(operand(weights, PRECISION), operand(v, PRECISION), y, PRECISION)
    k = load_tile(k_pointer, k_row, rows, keys, length, K, BK, EVEN)
    v = load_tile(v_pointer, v_row, rows, values, length, V, BV, EVEN)
    s = scores(q, k, PRECISION) * scale
    weights = tl.where(rows[:, None] >= rows[None, :], (0.5 * s + 1.0) * s + 1.0, 0.0)
    z += tl.sum(weights, 1)
    y = product(operand(weights, PRECISION), operand(v, PRECISION), y, PRECISION)
    inverse = 1.0 / z
    if INVERSE:
        tl.store(inverse_pointer + sequence.to(tl.int64) * length + rows, inverse, mask=rows < length)
    y_pointer += head_offset(sequence, heads, heads.to(tl.int64) * length * V, V)
    place = y_pointer + rows[:, None] * (heads * V) + values[None, :]
    mask = (rows < length)[:, None] & (values < V)[None, :]
    tl.store(place, (y * inverse[:, None]).to(y_pointer.dtype.element_ty), mask=mask)
