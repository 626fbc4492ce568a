"""States of linear_attention between segments: the sum of each segment, then running sums over segments.

    S = sum_j phi(k_j) [v_j, 1],   in reverse  R = sum_t phi(q_t) [dy_t / z_t, -delta_t]

of (K,V+1), or (K,V) without a normaliser, with the decays of `linear_attention_tiles_triton`. Products over a segment
in tiles of keys and values, each a program.
"""

# mypy: allow-untyped-defs

import triton
import triton.language as tl

from .delta_rule_tiles_triton import product
from .linear_attention_tiles_triton import load_features, load_rate, state_decay, weighted
from .taylor_tiles import head_offset, load_tile, load_vector, operand


@triton.jit(do_not_specialize=["length", "heads", "segment", "segments"])
def sum_kernel(
    x_pointer, v_pointer, inverse_pointer, delta_pointer, rates, sums,
    x_batch, x_row, x_head, v_batch, v_row, v_head, length, heads, segment, segments, scale,
    K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, KB: tl.constexpr, BV: tl.constexpr, VB: tl.constexpr,
    T: tl.constexpr, REVERSE: tl.constexpr, MAP: tl.constexpr, NORMALISE: tl.constexpr, DECAY: tl.constexpr,
    EVEN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """sums (B,H,segments,K,W) from x = k, v; in reverse from x = q, v = dy."""
    W: tl.constexpr = V + 1 if NORMALISE else V
    TILES: tl.constexpr = (BK // KB) * (BV // VB)
    tile, place = tl.program_id(0) % TILES, (tl.program_id(0) // TILES).to(tl.int64)
    sequence, number = (place // segments).to(tl.int32), (place % segments).to(tl.int32)
    t, keys = tl.arange(0, T), tile // (BV // VB) * KB + tl.arange(0, KB)
    values = tile % (BV // VB) * VB + tl.arange(0, VB)
    x_pointer += head_offset(sequence, heads, x_batch, x_head)
    v_pointer += head_offset(sequence, heads, v_batch, v_head)
    token = sequence.to(tl.int64) * length
    rate = load_rate(rates, sequence % heads, DECAY)
    begin = number * segment
    end = tl.minimum(begin + segment, length)
    state, vector = tl.zeros([KB, VB], tl.float32), tl.zeros([KB], tl.float32)
    inverse = tl.zeros([T], tl.float32)
    for first in tl.range(begin, end, T):
        rows = first + t
        x = load_features(x_pointer, x_row, rows, keys, length, K, BK, EVEN, MAP)
        v = load_tile(v_pointer, v_row, rows, values, length, V, BV, EVEN)
        if NORMALISE:
            if REVERSE:
                inverse = load_vector(inverse_pointer + token, rows, length, EVEN)
                delta = load_vector(delta_pointer + token, rows, length, EVEN)
                vector -= tl.sum(x.to(tl.float32) * delta[:, None], 0)
            else:
                vector += tl.sum(x.to(tl.float32), 0)
        x = weighted(x, inverse, rows, begin, end, rate, scale, REVERSE, NORMALISE, DECAY)
        state = product(tl.trans(operand(x, PRECISION)), operand(v, PRECISION), state, PRECISION)
    sums += place * (K * W)
    tl.store(sums + keys[:, None] * W + values[None, :], state, mask=(keys < K)[:, None] & (values < V)[None, :])
    if NORMALISE and tile % (BV // VB) == 0:
        tl.store(sums + keys * W + V, vector, mask=keys < K)


@triton.jit(do_not_specialize=["length", "heads", "segment", "segments"])
def running_kernel(
    sums, initial, last, rates, length, heads, segment, segments,
    ENTRIES: tl.constexpr, REVERSE: tl.constexpr, DECAY: tl.constexpr, INITIAL: tl.constexpr, LAST: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """In place of each segment's sum what comes before it, in reverse what comes behind; LAST: what is in the end.

    Axis 0: sequences; axis 1: BLOCK entries.
    """
    sequence = tl.program_id(0)
    entries = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = entries < ENTRIES
    offset = sequence.to(tl.int64) * ENTRIES
    rate = load_rate(rates, sequence % heads, DECAY)
    carry = tl.zeros([BLOCK], tl.float32)
    if INITIAL:
        carry = tl.load(initial + offset + entries, mask=inside, other=0.0)
    sums += offset * segments
    for index in tl.range(segments):
        number = segments - 1 - index if REVERSE else index
        place = sums + tl.cast(number, tl.int64) * ENTRIES + entries
        own = tl.load(place, mask=inside, other=0.0)
        tl.store(place, carry, mask=inside)
        begin = number * segment
        carry = carry * state_decay(begin, tl.minimum(begin + segment, length), rate, DECAY) + own
    if LAST:
        tl.store(last + offset + entries, carry, mask=inside)
