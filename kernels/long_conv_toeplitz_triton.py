"""Kernels of `gated_long_conv` on matrix units, for tensors that have time innermost: planes (B,L), one a channel.

With time innermost the sources of a tile of tokens are a matrix of sequences x tokens, and the convolution is its
product with a tile of the filter's Toeplitz matrix: rows of the taps, each one number further on than the last. Rows
that begin anywhere are no loads of 16 bytes, so that a table holds each filter eight times, n = 0 ... 7 numbers on.
Reversed in time the same product makes the gradients of k v. The filter's gradient is a product over sequences, of
tokens x tokens, whose diagonals are summed: a lag each.

What is multiplied has the dtype of the planes: taps, k v, q dy are rounded to it once, and sums are float32. k v and
q dy become planes of their own first: every tile of tokens would make them again from four others, where now it only
multiplies what is copied to shared memory.

Packed examples: planes (1,T), with the places where examples begin (`packing.Packing`). No convolution walks beyond the
longest of a program's sequences, its first.
"""

# mypy: allow-untyped-defs, disable-error-code="assignment,misc"
# ruff: noqa: RUF005 (Triton's tuples cannot be unpacked)

import triton
import triton.language as tl

from .plane_rows_triton import sequence_rows

MARGIN = tl.constexpr(128)  # zeros before the first tap in a table; the largest tile


@triton.jit(do_not_specialize=["reach"])
def table_kernel(taps, skip, table, reach, row, BLOCK: tl.constexpr):
    """Filters as tiles read them: (H, 8, row), copy n without its first n numbers; see `_filter_tile`."""
    h, copy = tl.program_id(0).to(tl.int64), tl.program_id(1)
    for start in range(0, row, BLOCK):
        place = start + tl.arange(0, BLOCK)
        lag = place + copy - MARGIN
        tap = tl.load(taps + h * reach + lag, mask=(lag >= 0) & (lag < reach), other=0.0).to(tl.float32)
        if skip is not None:
            tap += tl.where(lag == 0, tl.load(skip + h).to(tl.float32), 0.0)
        tl.store(table + (h * 8 + copy) * row + place, tap.to(table.dtype.element_ty), mask=place < row)


@triton.jit
def _filter_tile(table, h, lag, row, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """The taps lag + j - i for row i and column j.

    Rows begin at any lag, but in one of the eight copies at a multiple of eight numbers: loads of 16 bytes.
    """
    begin = lag - tl.arange(0, ROWS)
    at = (begin & 7) * row + ((begin >> 3) * 8 + MARGIN)
    return tl.load(table + h.to(tl.int64) * 8 * row + at[:, None] + tl.arange(0, COLUMNS)[None, :])


@triton.jit
def _rows(block, starts, sequences, length, BLOCK_B: tl.constexpr):
    """`sequence_rows` of a block of sequences, and the most tokens that one of them has."""
    begins, counts = sequence_rows(block * BLOCK_B + tl.arange(0, BLOCK_B), starts, sequences, length)
    longest = length
    if starts is not None:  # the first one's
        longest = tl.load(starts + block * BLOCK_B + 1) - tl.load(starts + block * BLOCK_B)
    return begins, counts, longest


@triton.jit
def _place(begins, counts, t):
    """Where the tokens t of sequences lie in a plane, and which of them there are."""
    return begins[:, None] + t[None, :], t[None, :] < counts[:, None]


@triton.jit
def _load(x, bias, channel, size, at, inside):
    """A tile of a channel's plane, with the channel's bias, in float32."""
    tile = tl.load(x + channel * size + at, mask=inside, other=0.0).to(tl.float32)
    if bias is not None:
        tile += tl.load(bias + channel).to(tl.float32)
    return tile


@triton.jit
def _loads(x, bias, h, size, at, inside, H: tl.constexpr, R: tl.constexpr):
    """Those of a head's channels."""
    found = (_load(x, bias, h, size, at, inside),)
    for i in tl.static_range(1, R):
        found = found + (_load(x, bias, h + i * H, size, at, inside),)
    return found


@triton.jit
def _operand(x, bias, channel, size, at, inside):
    """The same as a product's operand, in the planes' dtype."""
    if bias is None:
        tile = tl.load(x + channel * size + at, mask=inside, other=0.0)
    else:
        tile = _load(x, bias, channel, size, at, inside).to(x.dtype.element_ty)
    return tile


@triton.jit(do_not_specialize=["units"])
def products_kernel(
    left, left_bias, right, right_bias, out, c, d_left, sums, units, channels, H: tl.constexpr, R: tl.constexpr,
    UNIT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Of left and right all products of a head's channels: of i and j plane (i R + j) H + h.

    With c, planes as the products': left gates y, the sum over i of left_i c_ij, whose gradient right is; left's own is
    written too, and its sums if asked for. Sizes of planes come in UNITs, which they are multiples of: so rows of 16
    bytes are known to be whole.
    """
    at, h, size = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), tl.program_id(1), units.to(tl.int64) * UNIT
    inside = at < size
    lefts = _loads(left, left_bias, h, size, at, inside, H, R)
    rights = _loads(right, right_bias, h, size, at, inside, H, R)
    for i in tl.static_range(R):
        of_left = tl.zeros((BLOCK,), tl.float32)
        for j in tl.static_range(R):
            plane = h + (i * R + j) * H
            tl.store(out + plane * size + at, (lefts[i] * rights[j]).to(out.dtype.element_ty), mask=inside)
            if c is not None:
                of_left += rights[j] * _load(c, None, plane, size, at, inside)
        if c is not None:
            channel = h + i * H
            tl.store(d_left + channel * size + at, of_left.to(d_left.dtype.element_ty), mask=inside)
            if sums is not None:
                tl.store(sums + tl.program_id(0) * channels + channel, tl.sum(of_left, 0))


@triton.jit
def _convolved(
    x, bias, table, h, start, begins, counts, longest, size, reach, row, H: tl.constexpr, PLANES: tl.constexpr,
    REVERSED: tl.constexpr, TILE: tl.constexpr, SOURCES: tl.constexpr, BLOCK_B: tl.constexpr,
):  # fmt: skip
    """The sums for the tokens start ... start + TILE - 1: a tuple over planes with one filter, h, h + H, ..."""
    zero = tl.zeros((BLOCK_B, TILE), tl.float32)
    total = (zero,)
    for _ in tl.static_range(1, PLANES):
        total = total + (zero,)
    if REVERSED:
        first = start
        last = tl.minimum(longest, start + TILE - 1 + reach)
    else:
        first = tl.maximum(start - reach + 1, 0) // SOURCES * SOURCES
        last = tl.where(start < longest, tl.minimum(longest, start + TILE), first)
    for begin in range(first, last, SOURCES):
        if REVERSED:
            taps = tl.trans(_filter_tile(table, h, begin - start, row, TILE, SOURCES))
        else:
            taps = _filter_tile(table, h, start - begin, row, SOURCES, TILE)
        at, inside = _place(begins, counts, begin + tl.arange(0, SOURCES))
        found = (tl.dot(_operand(x, bias, h, size, at, inside), taps, total[0], input_precision="ieee"),)
        for n in tl.static_range(1, PLANES):
            tile = _operand(x, bias, h + n * H, size, at, inside)
            found = found + (tl.dot(tile, taps, total[n], input_precision="ieee"),)
        total = found
    return total


@triton.jit
def _start(TILE: tl.constexpr, REVERSED: tl.constexpr):
    """A program's first token, the longest sums first."""
    return (tl.program_id(0) if REVERSED else tl.num_programs(0) - 1 - tl.program_id(0)) * TILE


@triton.jit
def _store_sum(sums, channel, x, channels):
    """One number a program and channel: what its tile adds to the gradient of the channel's bias."""
    row = tl.program_id(2) * tl.num_programs(0) + tl.program_id(0)
    tl.store(sums + row * channels + channel, tl.sum(tl.sum(x, 1), 0))


@triton.jit(do_not_specialize=["sequences", "units", "reach"])
def plain_kernel(
    x, bias, table, y, sums, starts, sequences, length, units, reach, row, channels, D: tl.constexpr,
    REVERSED: tl.constexpr, UNIT: tl.constexpr, TILE: tl.constexpr, SOURCES: tl.constexpr, BLOCK_B: tl.constexpr,
):  # fmt: skip
    """y from x, a filter a channel; reversed: the gradient of x from that of y, and its sums if asked for."""
    start, d, size = _start(TILE, REVERSED), tl.program_id(1), units.to(tl.int64) * UNIT
    begins, counts, longest = _rows(tl.program_id(2), starts, sequences, length, BLOCK_B)
    total = _convolved(
        x, bias, table, d, start, begins, counts, longest, size, reach, row, D, 1, REVERSED, TILE, SOURCES, BLOCK_B
    )
    at, inside = _place(begins, counts, start + tl.arange(0, TILE))
    tl.store(y + d * size + at, total[0].to(y.dtype.element_ty), mask=inside)
    if sums is not None:
        _store_sum(sums, d, tl.where(inside, total[0], 0.0), channels)


@triton.jit(do_not_specialize=["sequences", "units", "reach"])
def forward_kernel(
    q, q_bias, w, table, y, c, starts, sequences, length, units, reach, row, H: tl.constexpr, R: tl.constexpr,
    SAVE: tl.constexpr, UNIT: tl.constexpr, TILE: tl.constexpr, SOURCES: tl.constexpr, BLOCK_B: tl.constexpr,
):  # fmt: skip
    """y, and c, the convolutions of w, which are the products of k and v."""
    start, h, size = _start(TILE, False), tl.program_id(1), units.to(tl.int64) * UNIT
    begins, counts, longest = _rows(tl.program_id(2), starts, sequences, length, BLOCK_B)
    total = _convolved(
        w, None, table, h, start, begins, counts, longest, size, reach, row, H, R * R, False, TILE, SOURCES, BLOCK_B
    )
    at, inside = _place(begins, counts, start + tl.arange(0, TILE))
    gates = _loads(q, q_bias, h, size, at, inside, H, R)
    for j in tl.static_range(R):
        out = gates[0] * total[j]
        for i in tl.static_range(1, R):
            out += gates[i] * total[i * R + j]
        tl.store(y + (h + j * H) * size + at, out.to(y.dtype.element_ty), mask=inside)
    if SAVE:
        for n in tl.static_range(R * R):
            tl.store(c + (h + n * H) * size + at, total[n].to(c.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["sequences", "units", "reach"])
def backward_kernel(
    e, k, k_bias, v, v_bias, table, dk, dv, k_sums, v_sums, starts, sequences, length, units, reach, row, channels,
    H: tl.constexpr, R: tl.constexpr, UNIT: tl.constexpr, TILE: tl.constexpr, SOURCES: tl.constexpr,
    BLOCK_B: tl.constexpr,
):  # fmt: skip
    """Gradients of k and v, and their sums if asked for. The correlation of e = q dy makes those of k v."""
    start, h, size = _start(TILE, True), tl.program_id(1), units.to(tl.int64) * UNIT
    begins, counts, longest = _rows(tl.program_id(2), starts, sequences, length, BLOCK_B)
    total = _convolved(
        e, None, table, h, start, begins, counts, longest, size, reach, row, H, R * R, True, TILE, SOURCES, BLOCK_B
    )
    at, inside = _place(begins, counts, start + tl.arange(0, TILE))
    keys = _loads(k, k_bias, h, size, at, inside, H, R)
    values = _loads(v, v_bias, h, size, at, inside, H, R)
    for i in tl.static_range(R):
        of_k, of_v = values[0] * total[i * R], keys[0] * total[i]
        for j in tl.static_range(1, R):
            of_k += values[j] * total[i * R + j]
            of_v += keys[j] * total[j * R + i]
        channel = h + i * H
        tl.store(dk + channel * size + at, of_k.to(dk.dtype.element_ty), mask=inside)
        tl.store(dv + channel * size + at, of_v.to(dv.dtype.element_ty), mask=inside)
        if v_sums is not None:
            _store_sum(v_sums, channel, tl.where(inside, of_v, 0.0), channels)
        if k_sums is not None:
            _store_sum(k_sums, channel, tl.where(inside, of_k, 0.0), channels)


@triton.jit(do_not_specialize=["sequences", "units", "reach"])
def taps_gradient_kernel(
    e, x, x_bias, partials, starts, sequences, length, units, reach, H: tl.constexpr, PLANES: tl.constexpr,
    UNIT: tl.constexpr, TILE: tl.constexpr, BLOCK_B: tl.constexpr,
):  # fmt: skip
    """A block of lags over some of the sequences: sums over t of e at t times x at t - lag, of planes h, h + H, ...

    The tokens of two tiles `first` apart meet at the lags first - TILE + 1 ... first + TILE - 1. Partial sums are
    (parts, 2, 1 + reach, H): those of the block of lags that begins at `first`, and those of the one before. Lag 0
    comes first, for a skip's gradient, and again with the others, for the taps': memory of its own for each.
    """
    first, h, part = tl.program_id(0) * TILE, tl.program_id(1), tl.program_id(2)
    parts, place, size = tl.num_programs(2), tl.arange(0, TILE), units.to(tl.int64) * UNIT
    tiles = tl.cdiv(length - first, TILE)
    blocks = tl.cdiv(tl.cdiv(sequences, BLOCK_B) - part, parts)
    total = tl.zeros((TILE, TILE), tl.float32)
    for step in range(blocks * tiles):
        begins, counts, _ = _rows(step // tiles * parts + part, starts, sequences, length, BLOCK_B)
        s = step % tiles * TILE + place
        at, inside = _place(begins, counts, s)
        _, late = _place(begins, counts, first + s)
        for n in tl.static_range(PLANES):
            channel = h + n * H
            upper = tl.load(e + channel * size + first + at, mask=late, other=0.0)
            lower = _operand(x, x_bias, channel, size, at, inside)
            total = tl.dot(tl.trans(upper), lower, total, input_precision="ieee")
    # Row t, column j of the turned tile is token t with token t - j, or from j > t on with token t - j + TILE.
    row, column = place[:, None], place[None, :]
    turned = tl.gather(total, (row - column) & (TILE - 1), 1)
    near = tl.sum(tl.where(row >= column, turned, 0.0), 0)
    far = tl.sum(tl.where(row < column, turned, 0.0), 0)
    lags = reach + 1
    out = partials + (part.to(tl.int64) * 2 * lags + 1) * H + h
    tl.store(out + (first + place) * H, near, mask=first + place < reach)
    own = (first + place) == 0
    tl.store(out + (place - 1) * H, near, mask=own)
    tl.store(out + (lags + place - 1) * H, tl.zeros((TILE,), tl.float32), mask=own)
    # No tiles meet beyond the last block of lags: the first program, whose lags before it are negative, says so.
    before = tl.where(first > 0, first, tl.num_programs(0) * TILE) - TILE + place
    tl.store(out + (lags + before) * H, tl.where(first > 0, far, 0.0), mask=before < reach)
