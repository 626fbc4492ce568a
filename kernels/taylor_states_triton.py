"""States between the segments of taylor_attention: each segment's own sum, then running sums over segments.

The layout is that of `taylor_tiles`; at the edges the running sum is read from and written to the packed state
(F, V + 1) of the reference: [1, x / K^(1/4), {x_i x_j c_ij}_i<=j], the normaliser in the last column.
"""

# mypy: allow-untyped-defs

import triton
import triton.language as tl

from .taylor_tiles import head_offset, load_tile, load_vector, operand, pair, product


@triton.jit(do_not_specialize=["length", "heads", "segment", "segments"])
def segment_state_kernel(
    x_pointer, w_pointer, inverse_pointer, delta_pointer, sums, moments,
    x_batch, x_row, x_head, w_batch, w_row, w_head, length, heads, segment, segments,
    K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, BL: tl.constexpr, PAIRS: tl.constexpr,
    T: tl.constexpr, REVERSE: tl.constexpr, EVEN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One program per segment and pair of blocks, and one more for the linear rows and the moments.

    REVERSE: w is dy, scaled here by 1 / z, and the moments are weighted with -delta.
    """
    part = tl.program_id(0) % (PAIRS + 1)
    place = (tl.program_id(0) // (PAIRS + 1)).to(tl.int64)
    sequence = (place // segments).to(tl.int32)
    begin = (place % segments).to(tl.int32) * segment
    end = tl.minimum(begin + segment, length)
    values, features = tl.arange(0, BV), tl.arange(0, 64)
    x_pointer += head_offset(sequence, heads, x_batch, x_head)
    w_pointer += head_offset(sequence, heads, w_batch, w_head)
    inverse_pointer += sequence.to(tl.int64) * length
    delta_pointer += sequence.to(tl.int64) * length
    sums += place * ((PAIRS * 64 + BL) * BV)
    if part < PAIRS:
        a, b = pair(part)
        eight = tl.arange(0, 8)
        acc = tl.zeros([64, BV], tl.float32)
        for first in tl.range(begin, end, T):
            rows = first + tl.arange(0, T)
            w = load_tile(w_pointer, w_row, rows, values, length, V, BV, EVEN)
            if REVERSE:
                w = w.to(tl.float32) * load_vector(inverse_pointer, rows, length, EVEN)[:, None]
            xa = _transposed(x_pointer + a * 8, x_row, rows, eight, length, EVEN)
            xb = _transposed(x_pointer + b * 8, x_row, rows, eight, length, EVEN)
            squares = operand(xa, PRECISION)[:, None, :] * operand(xb, PRECISION)[None, :, :]
            acc = product(operand(tl.reshape(squares, [64, T]), PRECISION), operand(w, PRECISION), acc, PRECISION)
        tl.store(sums + (part * 64 + features)[:, None] * BV + values[None, :], acc)
    else:
        keys = tl.arange(0, BL)
        linear = tl.zeros([BL, BV], tl.float32)
        second = tl.zeros([BL, BL], tl.float32)
        for first in tl.range(begin, end, T):
            rows = first + tl.arange(0, T)
            w = load_tile(w_pointer, w_row, rows, values, length, V, BV, EVEN)
            mask = (rows < length)[:, None] & (keys < K)[None, :]
            x = tl.load(x_pointer + rows[:, None] * x_row + keys[None, :], mask=mask, other=0.0).to(tl.float32)
            x = tl.where((keys == K)[None, :] & (rows < length)[:, None], 1.0, x)
            weighted = x
            if REVERSE:
                w = w.to(tl.float32) * load_vector(inverse_pointer, rows, length, EVEN)[:, None]
                weighted = x * -load_vector(delta_pointer, rows, length, EVEN)[:, None]
            x = operand(x, PRECISION)
            linear = product(tl.trans(x), operand(w, PRECISION), linear, PRECISION)
            second = product(tl.trans(operand(weighted, PRECISION)), x, second, PRECISION)
        tl.store(sums + (PAIRS * 64 + keys)[:, None] * BV + values[None, :], linear)
        tl.store(moments + place * (BL * BL) + keys[:, None] * BL + keys[None, :], second)


@triton.jit
def _transposed(pointer, stride, rows, columns, length, EVEN: tl.constexpr):
    """(columns, rows): a transposed load keeps the product of two of them in the registers of the matrix operand."""
    place = pointer + rows[None, :] * stride + columns[:, None]
    if EVEN:
        return tl.load(place)
    return tl.load(place, mask=(rows < length)[None, :], other=0.0)


@triton.jit
def _packed_pair(i, j, K: tl.constexpr):
    """Packed feature of dimensions i <= j, and its coefficient."""
    return 1 + K + i * K - i * (i - 1) // 2 + j - i, tl.where(i == j, (0.5 / K) ** 0.5, (1.0 / K) ** 0.5)


@triton.jit
def _packed_row(row, K: tl.constexpr, PAIRS: tl.constexpr):
    """(packed feature, coefficient, exists, is its canonical place) of a row of the state."""
    a, b = pair(row // 64)
    i, j = a * 8 + row % 64 // 8, b * 8 + row % 8
    square, factor = _packed_pair(tl.minimum(i, j), tl.maximum(i, j), K)
    i = row - PAIRS * 64
    exists = i <= K
    feature = tl.where(i < 0, square, tl.where(i == K, 0, 1 + i))
    factor = tl.where(i < 0, factor, tl.where(i == K, 1.0, K**-0.25))
    first = a * 8 + row % 64 // 8
    return feature, factor, exists, exists & ((i >= 0) | (first <= j))


@triton.jit
def _packed_moment(i, j, K: tl.constexpr):
    """The same for moment (i, j)."""
    low, high = tl.minimum(i, j), tl.maximum(i, j)
    square, factor = _packed_pair(low, high, K)
    feature = tl.where(high < K, square, tl.where(low == K, 0, 1 + low))
    factor = tl.where(high < K, factor, tl.where(low == K, 1.0, K**-0.25))
    return feature, factor, high <= K, (high <= K) & (i <= j)


@triton.jit
def _segment_entries(number, segments, count, places, inside, REVERSE: tl.constexpr):
    """Where the entries of the number-th segment are, counted from the end if REVERSE, and which of them exist."""
    valid = inside & (number < segments)
    if REVERSE:
        number = segments - 1 - number
    return number * count + places, valid


@triton.jit
def _running_sum(
    sums, running, count, segments, places, inside, initial, final, packed, factor, exists, canonical,
    REVERSE: tl.constexpr, INITIAL: tl.constexpr, FINAL: tl.constexpr,
):  # fmt: skip
    """running[s] = initial + sums[0] + ... + sums[s - 1], or the sums after s."""
    if INITIAL:
        carry = tl.load(initial + packed, mask=exists, other=0.0) / factor
    else:
        carry = tl.zeros(places.shape, tl.float32)
    # Four segments at a time, so that their loads are in flight together.
    for first in tl.range(0, segments, 4):
        place_0, valid_0 = _segment_entries(first, segments, count, places, inside, REVERSE)
        place_1, valid_1 = _segment_entries(first + 1, segments, count, places, inside, REVERSE)
        place_2, valid_2 = _segment_entries(first + 2, segments, count, places, inside, REVERSE)
        place_3, valid_3 = _segment_entries(first + 3, segments, count, places, inside, REVERSE)
        own_0 = tl.load(sums + place_0, mask=valid_0, other=0.0)
        own_1 = tl.load(sums + place_1, mask=valid_1, other=0.0)
        own_2 = tl.load(sums + place_2, mask=valid_2, other=0.0)
        own_3 = tl.load(sums + place_3, mask=valid_3, other=0.0)
        tl.store(running + place_0, carry.to(running.dtype.element_ty), mask=valid_0)
        carry += own_0
        tl.store(running + place_1, carry.to(running.dtype.element_ty), mask=valid_1)
        carry += own_1
        tl.store(running + place_2, carry.to(running.dtype.element_ty), mask=valid_2)
        carry += own_2
        tl.store(running + place_3, carry.to(running.dtype.element_ty), mask=valid_3)
        carry += own_3
    if FINAL:
        tl.store(final + packed, carry * factor, mask=canonical)


@triton.jit(do_not_specialize=["segments"])
def running_state_kernel(
    sums, moment_sums, states, moments, initial, final, segments,
    K: tl.constexpr, V: tl.constexpr, BV: tl.constexpr, BL: tl.constexpr, PAIRS: tl.constexpr,
    REVERSE: tl.constexpr, INITIAL: tl.constexpr, FINAL: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Axis 0: sequences; axis 1: BLOCK entries of the state, then of the moments (kept in float32: they count)."""
    ENTRIES: tl.constexpr = (PAIRS * 64 + BL) * BV
    FEATURES: tl.constexpr = 1 + K + K * (K + 1) // 2
    sequence = tl.program_id(0).to(tl.int64)
    initial += sequence * (FEATURES * (V + 1))
    final += sequence * (FEATURES * (V + 1))
    start = tl.program_id(1) * BLOCK
    if start < ENTRIES:
        places = start + tl.arange(0, BLOCK)
        column = places % BV
        feature, factor, exists, canonical = _packed_row(places // BV, K, PAIRS)
        offset = sequence * segments * ENTRIES
        _running_sum(
            sums + offset, states + offset, ENTRIES, segments, places, exists & (column < BV),
            initial, final, feature * (V + 1) + column, factor, exists & (column < V), canonical & (column < V),
            REVERSE, INITIAL, FINAL,
        )  # fmt: skip
    else:
        places = start - tl.cdiv(ENTRIES, BLOCK) * BLOCK + tl.arange(0, BLOCK)
        feature, factor, exists, canonical = _packed_moment(places // BL, places % BL, K)
        offset = sequence * segments * (BL * BL)
        inside = places < BL * BL
        _running_sum(
            moment_sums + offset, moments + offset, BL * BL, segments, places, inside & exists,
            initial, final, feature * (V + 1) + V, factor, inside & exists, inside & canonical,
            REVERSE, INITIAL, FINAL,
        )  # fmt: skip
