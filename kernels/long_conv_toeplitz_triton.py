"""Kernels of `gated_long_conv` on matrix units, for tensors that have time innermost: planes (B,L), one a channel.

With time innermost the sources of a tile of tokens are a matrix of sequences x tokens, and the convolution is its
product with a tile of the filter's Toeplitz matrix, which a program forms from the taps, once for all of its sequences.
Reversed in time the same product makes the gradients of k v. The filter's gradient is a product over sequences, of
tokens x tokens, whose diagonals are summed: a lag each.

Products of two bfloat16 numbers have 16 bits, so that two bfloat16 parts hold k v and q dy exactly, and taps to 2^-17.
Convolutions leave out the product of both second parts; the filter's gradient keeps it, so that its terms are exact.
Sums are float32.
"""

# mypy: allow-untyped-defs, disable-error-code="assignment,misc"
# ruff: noqa: RUF005 (Triton's tuples cannot be unpacked)

import triton
import triton.language as tl


@triton.jit
def _times(total, a, b, HALF: tl.constexpr, EXACT: tl.constexpr):
    """total + a b, of two parts each where HALF is narrower than float32."""
    a_high, b_high = a.to(HALF), b.to(HALF)
    if HALF.primitive_bitwidth < 32:
        a_low, b_low = (a - a_high.to(tl.float32)).to(HALF), (b - b_high.to(tl.float32)).to(HALF)
        if EXACT:
            total = tl.dot(a_low, b_low, total)
        total = tl.dot(a_low, b_high, total)
        total = tl.dot(a_high, b_low, total)
    return tl.dot(a_high, b_high, total, input_precision="ieee")


@triton.jit
def _plane(x, channel, sequences, length):
    return x + channel.to(tl.int64) * sequences * length


@triton.jit
def _load(x, bias, channel, at, inside, sequences, length):
    """A tile of a channel's plane, in float32, with the channel's bias."""
    tile = tl.load(_plane(x, channel, sequences, length) + at, mask=inside, other=0.0).to(tl.float32)
    if bias is not None:
        tile += tl.load(bias + channel).to(tl.float32)
    return tile


@triton.jit
def _loads(x, bias, h, at, inside, sequences, length, H: tl.constexpr, R: tl.constexpr):
    """Those of a head's channels."""
    found = (_load(x, bias, h, at, inside, sequences, length),)
    for i in tl.static_range(1, R):
        found = found + (_load(x, bias, h + i * H, at, inside, sequences, length),)
    return found


@triton.jit
def _place(b, t, sequences, length):
    """Where the tokens t of the sequences b lie in a plane, and which of them there are."""
    return b[:, None] * length + t[None, :], (b < sequences)[:, None] & (t < length)[None, :]


@triton.jit
def _taps(taps, skip, h, lag, reach):
    """Of a filter those with these lags, zero outside; the token's own weight is part of the first."""
    found = tl.load(taps + h * reach + lag, mask=(lag >= 0) & (lag < reach), other=0.0).to(tl.float32)
    if skip is not None:
        found += tl.where(lag == 0, tl.load(skip + h).to(tl.float32), 0.0)
    return found


@triton.jit
def _convolved(
    left, left_bias, right, right_bias, taps, skip, h, start, b, sequences, length, reach, H: tl.constexpr,
    R: tl.constexpr, GATED: tl.constexpr, REVERSED: tl.constexpr, TILE: tl.constexpr, SOURCES: tl.constexpr,
    BLOCK_B: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    """The sums for the tokens start ... start + TILE - 1: a tuple over the R R products of left and right."""
    zero = tl.zeros((BLOCK_B, TILE), tl.float32)
    total = (zero,)
    for _ in tl.static_range(1, R * R):
        total = total + (zero,)
    if REVERSED:
        first = start
        last = tl.minimum(length, start + TILE - 1 + reach)
    else:
        first = tl.maximum(start - reach + 1, 0) // SOURCES * SOURCES
        last = tl.minimum(length, start + TILE)
    for begin in range(first, last, SOURCES):
        source = begin + tl.arange(0, SOURCES)
        lag = (start + tl.arange(0, TILE))[None, :] - source[:, None]
        filter_tile = _taps(taps, skip, h, -lag if REVERSED else lag, reach)
        at, inside = _place(b, source, sequences, length)
        a = _loads(left, left_bias, h, at, inside, sequences, length, H, R)
        if GATED:
            gates = _loads(right, right_bias, h, at, inside, sequences, length, H, R)
            found = (_times(total[0], a[0] * gates[0], filter_tile, HALF, False),)
            for n in tl.static_range(1, R * R):
                found = found + (_times(total[n], a[n // R] * gates[n % R], filter_tile, HALF, False),)
        else:
            found = (_times(total[0], a[0], filter_tile, HALF, False),)
        total = found
    return total


@triton.jit
def _tile(length, TILE: tl.constexpr, BLOCK_B: tl.constexpr, REVERSED: tl.constexpr):
    """Of a program, the longest sums first: its first token, its head and its sequences."""
    turn = tl.program_id(0) if REVERSED else tl.num_programs(0) - 1 - tl.program_id(0)
    return turn * TILE, tl.program_id(1), tl.program_id(2) * BLOCK_B + tl.arange(0, BLOCK_B)


@triton.jit
def _store_sum(sums, channel, x, channels):
    """One number a program and channel: what its tile adds to the gradient of the channel's bias."""
    row = tl.program_id(2) * tl.num_programs(0) + tl.program_id(0)
    tl.store(sums + row * channels + channel, tl.sum(tl.sum(x, 1), 0))


@triton.jit
def plain_kernel(
    x, bias, taps, skip, y, sums, sequences, length, reach, channels, D: tl.constexpr, REVERSED: tl.constexpr,
    TILE: tl.constexpr, SOURCES: tl.constexpr, BLOCK_B: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    """y from x, a filter a channel; reversed: the gradient of x from that of y, and its sums if asked for."""
    start, d, b = _tile(length, TILE, BLOCK_B, REVERSED)
    total = _convolved(
        x, bias, x, bias, taps, skip, d, start, b, sequences, length, reach, D, 1, False, REVERSED, TILE, SOURCES,
        BLOCK_B, HALF,
    )  # fmt: skip
    at, inside = _place(b, start + tl.arange(0, TILE), sequences, length)
    tl.store(_plane(y, d, sequences, length) + at, total[0].to(y.dtype.element_ty), mask=inside)
    if sums is not None:
        _store_sum(sums, d, tl.where(inside, total[0], 0.0), channels)


@triton.jit
def forward_kernel(
    q, q_bias, k, k_bias, v, v_bias, taps, skip, y, c, sequences, length, reach, H: tl.constexpr, R: tl.constexpr,
    SAVE: tl.constexpr, TILE: tl.constexpr, SOURCES: tl.constexpr, BLOCK_B: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    start, h, b = _tile(length, TILE, BLOCK_B, False)
    total = _convolved(
        k, k_bias, v, v_bias, taps, skip, h, start, b, sequences, length, reach, H, R, True, False, TILE, SOURCES,
        BLOCK_B, HALF,
    )  # fmt: skip
    at, inside = _place(b, start + tl.arange(0, TILE), sequences, length)
    gates = _loads(q, q_bias, h, at, inside, sequences, length, H, R)
    for j in tl.static_range(R):
        out = gates[0] * total[j]
        for i in tl.static_range(1, R):
            out += gates[i] * total[i * R + j]
        tl.store(_plane(y, h + j * H, sequences, length) + at, out.to(y.dtype.element_ty), mask=inside)
    if SAVE:
        for n in tl.static_range(R * R):
            tl.store(_plane(c, h + n * H, sequences, length) + at, total[n].to(c.dtype.element_ty), mask=inside)


@triton.jit
def backward_kernel(
    dy, q, q_bias, k, k_bias, v, v_bias, c, taps, skip, dq, dk, dv, q_sums, k_sums, v_sums, sequences, length, reach,
    channels, H: tl.constexpr, R: tl.constexpr, TILE: tl.constexpr, SOURCES: tl.constexpr, BLOCK_B: tl.constexpr,
    HALF: tl.constexpr,
):  # fmt: skip
    """Gradients of q, k and v, and their sums if asked for. The correlation of q dy makes those of k v."""
    start, h, b = _tile(length, TILE, BLOCK_B, True)
    total = _convolved(
        q, q_bias, dy, None, taps, skip, h, start, b, sequences, length, reach, H, R, True, True, TILE, SOURCES,
        BLOCK_B, HALF,
    )  # fmt: skip
    at, inside = _place(b, start + tl.arange(0, TILE), sequences, length)
    keys = _loads(k, k_bias, h, at, inside, sequences, length, H, R)
    values = _loads(v, v_bias, h, at, inside, sequences, length, H, R)
    upper = _loads(dy, None, h, at, inside, sequences, length, H, R)
    for i in tl.static_range(R):
        convolved = _load(c, None, h + i * R * H, at, inside, sequences, length)
        of_q, of_k, of_v = upper[0] * convolved, values[0] * total[i * R], keys[0] * total[i]
        for j in tl.static_range(1, R):
            of_q += upper[j] * _load(c, None, h + (i * R + j) * H, at, inside, sequences, length)
            of_k += values[j] * total[i * R + j]
            of_v += keys[j] * total[j * R + i]
        channel = h + i * H
        tl.store(_plane(dq, channel, sequences, length) + at, of_q.to(dq.dtype.element_ty), mask=inside)
        tl.store(_plane(dk, channel, sequences, length) + at, of_k.to(dk.dtype.element_ty), mask=inside)
        tl.store(_plane(dv, channel, sequences, length) + at, of_v.to(dv.dtype.element_ty), mask=inside)
        if q_sums is not None:
            _store_sum(q_sums, channel, tl.where(inside, of_q, 0.0), channels)
            _store_sum(v_sums, channel, tl.where(inside, of_v, 0.0), channels)
        if k_sums is not None:
            _store_sum(k_sums, channel, tl.where(inside, of_k, 0.0), channels)


@triton.jit
def taps_gradient_kernel(
    dy, q, q_bias, x, x_bias, v, v_bias, partials, sequences, length, reach, H: tl.constexpr, R: tl.constexpr,
    GATED: tl.constexpr, TILE: tl.constexpr, BLOCK_B: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    """A block of lags over some of the sequences: sums over t of dy (q dy) at t times x (x v) at t - lag.

    The tokens of two tiles `first` apart meet at the lags first - TILE + 1 ... first + TILE - 1. Partial sums are
    (parts, 2, H, reach): those of the block of lags that begins at `first`, and those of the one before.
    """
    first, h, part = tl.program_id(0) * TILE, tl.program_id(1), tl.program_id(2)
    parts, place = tl.num_programs(2), tl.arange(0, TILE)
    starts = tl.cdiv(length - first, TILE)
    batches = tl.cdiv(tl.cdiv(sequences, BLOCK_B) - part, parts)
    total = tl.zeros((TILE, TILE), tl.float32)
    for step in range(batches * starts * (R * R)):
        i, j, turn = step % (R * R) // R, step % R, step // (R * R)
        b = (turn // starts * parts + part) * BLOCK_B + tl.arange(0, BLOCK_B)
        s = turn % starts * TILE + place
        at, inside = _place(b, first + s, sequences, length)
        late = _load(dy, None, h + j * H, at, inside, sequences, length)
        at_s, inside_s = _place(b, s, sequences, length)
        early = _load(x, x_bias, h + i * H, at_s, inside_s, sequences, length)
        if GATED:
            late *= _load(q, q_bias, h + i * H, at, inside, sequences, length)
            early *= _load(v, v_bias, h + j * H, at_s, inside_s, sequences, length)
        total = _times(total, tl.trans(late), early, HALF, True)
    # Row t, column j of the turned tile is token t with token t - j, or from j > t on with token t - j + TILE.
    row, column = place[:, None], place[None, :]
    turned = tl.gather(total, (row - column) & (TILE - 1), 1)
    near = tl.sum(tl.where(row >= column, turned, 0.0), 0)
    far = tl.sum(tl.where(row < column, turned, 0.0), 0)
    out = partials + (part.to(tl.int64) * 2 * H + h) * reach
    tl.store(out + first + place, near, mask=first + place < reach)
    # No tiles meet beyond the last block of lags: the first program, whose lags before it are negative, says so.
    before = tl.where(first > 0, first, tl.num_programs(0) * TILE) - TILE + place
    tl.store(out + H * reach + before, tl.where(first > 0, far, 0.0), mask=before < reach)
