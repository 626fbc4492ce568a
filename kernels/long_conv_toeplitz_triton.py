"""Kernels of `gated_long_conv` on matrix units, for tensors that have time innermost: planes (B,L), one a channel.

With time innermost the sources of a tile of tokens are a matrix of sequences x tokens, and the convolution is its
product with a tile of the filter's Toeplitz matrix: rows of the taps, each one number further on than the last. Rows
that begin anywhere are no loads of 16 bytes, so that a table holds each filter eight times, n = 0 ... 7 numbers on.
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

MARGIN = tl.constexpr(128)  # zeros before the first tap in a table; the largest tile


@triton.jit
def _split(x, HALF: tl.constexpr):
    """x as a sum of two numbers, the second one nothing where HALF is float32."""
    high = x.to(HALF)
    return high, (x - high.to(tl.float32)).to(HALF)


@triton.jit
def _times(total, a, b_high, b_low, EXACT: tl.constexpr):
    """total + a b, b in parts; of two parts each where they are narrower than float32."""
    if b_high.dtype.primitive_bitwidth < 32:
        a_high, a_low = _split(a, b_high.dtype)
        if EXACT:
            total = tl.dot(a_low, b_low, total)
        total = tl.dot(a_low, b_high, total)
        total = tl.dot(a_high, b_low, total)
        total = tl.dot(a_high, b_high, total)
    else:
        total = tl.dot(a, b_high, total, input_precision="ieee")
    return total


@triton.jit(do_not_specialize=["reach"])
def table_kernel(taps, skip, table, reach, row, H: tl.constexpr, PARTS: tl.constexpr, BLOCK: tl.constexpr):
    """Filters as tiles read them: (PARTS, H, 8, row), copy n without its first n numbers; see `_filter_tile`."""
    h, copy = tl.program_id(0).to(tl.int64), tl.program_id(1)
    for start in range(0, row, BLOCK):
        place = start + tl.arange(0, BLOCK)
        lag = place + copy - MARGIN
        tap = tl.load(taps + h * reach + lag, mask=(lag >= 0) & (lag < reach), other=0.0).to(tl.float32)
        if skip is not None:
            tap += tl.where(lag == 0, tl.load(skip + h).to(tl.float32), 0.0)
        high, low = _split(tap, table.dtype.element_ty)
        out = table + (h * 8 + copy) * row + place
        tl.store(out, high, mask=place < row)
        if PARTS > 1:
            tl.store(out + tl.cast(H * 8, tl.int64) * row, low, mask=place < row)


@triton.jit
def _filter_tile(table, h, lag, row, H: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, PARTS: tl.constexpr):
    """Both parts of the taps lag + j - i for row i and column j.

    Rows begin at any lag, but in one of the eight copies at a multiple of eight numbers: loads of 16 bytes.
    """
    begin = lag - tl.arange(0, ROWS)
    at = (begin & 7) * row + ((begin >> 3) * 8 + MARGIN)
    at = at[:, None] + tl.arange(0, COLUMNS)[None, :]
    table += h.to(tl.int64) * 8 * row
    high = tl.load(table + at)
    low = high
    if PARTS > 1:
        low = tl.load(table + tl.cast(H * 8, tl.int64) * row + at)
    return high, low


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
def _convolved(
    left, left_bias, right, right_bias, table, h, start, b, sequences, length, reach, row, H: tl.constexpr,
    R: tl.constexpr, GATED: tl.constexpr, REVERSED: tl.constexpr, TILE: tl.constexpr, SOURCES: tl.constexpr,
    BLOCK_B: tl.constexpr, PARTS: tl.constexpr,
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
        if REVERSED:
            high, low = _filter_tile(table, h, begin - start, row, H, TILE, SOURCES, PARTS)
            high, low = tl.trans(high), tl.trans(low)
        else:
            high, low = _filter_tile(table, h, start - begin, row, H, SOURCES, TILE, PARTS)
        at, inside = _place(b, begin + tl.arange(0, SOURCES), sequences, length)
        a = _loads(left, left_bias, h, at, inside, sequences, length, H, R)
        if GATED:
            gates = _loads(right, right_bias, h, at, inside, sequences, length, H, R)
            found = (_times(total[0], a[0] * gates[0], high, low, False),)
            for n in tl.static_range(1, R * R):
                found = found + (_times(total[n], a[n // R] * gates[n % R], high, low, False),)
        else:
            found = (_times(total[0], a[0], high, low, False),)
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


@triton.jit(do_not_specialize=["sequences", "reach"])
def plain_kernel(
    x, bias, table, y, sums, sequences, length, reach, row, channels, D: tl.constexpr, REVERSED: tl.constexpr,
    TILE: tl.constexpr, SOURCES: tl.constexpr, BLOCK_B: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """y from x, a filter a channel; reversed: the gradient of x from that of y, and its sums if asked for."""
    start, d, b = _tile(length, TILE, BLOCK_B, REVERSED)
    total = _convolved(
        x, bias, x, bias, table, d, start, b, sequences, length, reach, row, D, 1, False, REVERSED, TILE, SOURCES,
        BLOCK_B, PARTS,
    )  # fmt: skip
    at, inside = _place(b, start + tl.arange(0, TILE), sequences, length)
    tl.store(_plane(y, d, sequences, length) + at, total[0].to(y.dtype.element_ty), mask=inside)
    if sums is not None:
        _store_sum(sums, d, tl.where(inside, total[0], 0.0), channels)


@triton.jit(do_not_specialize=["sequences", "reach"])
def forward_kernel(
    q, q_bias, k, k_bias, v, v_bias, table, y, c, sequences, length, reach, row, H: tl.constexpr, R: tl.constexpr,
    SAVE: tl.constexpr, TILE: tl.constexpr, SOURCES: tl.constexpr, BLOCK_B: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    start, h, b = _tile(length, TILE, BLOCK_B, False)
    total = _convolved(
        k, k_bias, v, v_bias, table, h, start, b, sequences, length, reach, row, H, R, True, False, TILE, SOURCES,
        BLOCK_B, PARTS,
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


@triton.jit(do_not_specialize=["sequences", "reach"])
def backward_kernel(
    dy, q, q_bias, k, k_bias, v, v_bias, c, table, dq, dk, dv, q_sums, k_sums, v_sums, sequences, length, reach,
    row, channels, H: tl.constexpr, R: tl.constexpr, TILE: tl.constexpr, SOURCES: tl.constexpr, BLOCK_B: tl.constexpr,
    PARTS: tl.constexpr,
):  # fmt: skip
    """Gradients of q, k and v, and their sums if asked for. The correlation of q dy makes those of k v."""
    start, h, b = _tile(length, TILE, BLOCK_B, True)
    total = _convolved(
        q, q_bias, dy, None, table, h, start, b, sequences, length, reach, row, H, R, True, True, TILE, SOURCES,
        BLOCK_B, PARTS,
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


@triton.jit(do_not_specialize=["sequences", "reach"])
def taps_gradient_kernel(
    dy, q, q_bias, x, x_bias, v, v_bias, partials, sequences, length, reach, H: tl.constexpr, R: tl.constexpr,
    GATED: tl.constexpr, TILE: tl.constexpr, BLOCK_B: tl.constexpr,
):  # fmt: skip
    """A block of lags over some of the sequences: sums over t of dy (q dy) at t times x (x v) at t - lag.

    The tokens of two tiles `first` apart meet at the lags first - TILE + 1 ... first + TILE - 1. Partial sums are
    (parts, 2, reach, H): those of the block of lags that begins at `first`, and those of the one before.
    """
    first, h, part = tl.program_id(0) * TILE, tl.program_id(1), tl.program_id(2)
    parts, place = tl.num_programs(2), tl.arange(0, TILE)
    starts = tl.cdiv(length - first, TILE)
    batches = tl.cdiv(tl.cdiv(sequences, BLOCK_B) - part, parts)
    total = tl.zeros((TILE, TILE), tl.float32)
    for step in range(batches * starts):
        b = (step // starts * parts + part) * BLOCK_B + tl.arange(0, BLOCK_B)
        s = step % starts * TILE + place
        at, inside = _place(b, first + s, sequences, length)
        at_s, inside_s = _place(b, s, sequences, length)
        late = _loads(dy, None, h, at, inside, sequences, length, H, R)
        early = _loads(x, x_bias, h, at_s, inside_s, sequences, length, H, R)
        if GATED:
            late_gates = _loads(q, q_bias, h, at, inside, sequences, length, H, R)
            early_gates = _loads(v, v_bias, h, at_s, inside_s, sequences, length, H, R)
            for n in tl.static_range(R * R):
                high, low = _split(early[n // R] * early_gates[n % R], x.dtype.element_ty)
                total = _times(total, tl.trans(late[n % R] * late_gates[n // R]), high, low, True)
        else:
            high, low = _split(early[0], x.dtype.element_ty)
            total = _times(total, tl.trans(late[0]), high, low, True)
    # Row t, column j of the turned tile is token t with token t - j, or from j > t on with token t - j + TILE.
    row, column = place[:, None], place[None, :]
    turned = tl.gather(total, (row - column) & (TILE - 1), 1)
    near = tl.sum(tl.where(row >= column, turned, 0.0), 0)
    far = tl.sum(tl.where(row < column, turned, 0.0), 0)
    out = partials + part.to(tl.int64) * 2 * reach * H + h
    tl.store(out + (first + place) * H, near, mask=first + place < reach)
    # No tiles meet beyond the last block of lags: the first program, whose lags before it are negative, says so.
    before = tl.where(first > 0, first, tl.num_programs(0) * TILE) - TILE + place
    tl.store(out + (reach + before) * H, tl.where(first > 0, far, 0.0), mask=before < reach)
