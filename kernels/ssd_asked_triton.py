"""ssd at asked tokens: a query weighs all tokens before it, tile by tile (backward: `ssd_asked_backward_triton`).

Sums of dt A, in units of log 2, are formed within tiles of T keys, once for all that reads them: `totals`. Of a query,
`behind` is their sum from the end of a tile to the query, so that a weight is 2^(behind_q + end - total_j), without
differences of long sums. For a query inside the tile that sum is negative steps, total_q - end. Padding queries have
the position -1, before every token.

PACKED: tensors (B,L,...) are one row of examples, see `Packing`, but for what is kept by tokens or tiles of a head,
which has room for the longest, `length`, of each. Programs of tiles that an example does not have leave at once.
"""

# mypy: allow-untyped-defs

import triton
import triton.language as tl

from .exponentials_triton import LOG2E, sigmoid
from .ssd_tiles_triton import example, softplus
from .taylor_tiles import load_tile, operand, product


@triton.jit
def queries(positions, batch, first, asked, Q: tl.constexpr):
    """Numbers of queries, and their positions."""
    q = first + tl.arange(0, Q)
    return q, tl.load(positions + batch * asked + q, mask=q < asked, other=-1).to(tl.int32)


@triton.jit
def rows_at(pointer, width, position, columns, WIDTH: tl.constexpr):
    """Rows of a sequence at these positions, zero for -1."""
    inside = (position >= 0)[:, None] & (columns < WIDTH)[None, :]
    return tl.load(pointer + position.to(tl.int64)[:, None] * width + columns[None, :], mask=inside, other=0.0)


@triton.jit(do_not_specialize=["length", "heads"])
def asked_steps_kernel(
    dt_pointer, A_pointer, bias_pointer, starts, steps, totals, dt_batch, dt_row, length, heads,
    T: tl.constexpr, BH: tl.constexpr, PACKED: tl.constexpr,
):  # fmt: skip
    """Step sizes, and sums of dt A from the beginning of a token's tile to it: (B,H,L) both.

    Program: batch, tile; axis 1: block of heads, whose steps lie side by side.
    """
    tiles, longest = tl.cdiv(length, T), length
    batch, tile = (tl.program_id(0) // tiles).to(tl.int64), tl.program_id(0) % tiles
    at, _, length = example(starts, batch, length, PACKED)
    if PACKED and tile * T >= length:
        return
    token, head = tile * T + tl.arange(0, T), tl.program_id(1) * BH + tl.arange(0, BH)
    inside = (token < length)[:, None] & (head < heads)[None, :]
    place = dt_pointer + at * dt_batch + token.to(tl.int64)[:, None] * dt_row + head[None, :]
    A = tl.load(A_pointer + head, mask=head < heads, other=0.0).to(tl.float32) * LOG2E
    bias = tl.load(bias_pointer + head, mask=head < heads, other=0.0).to(tl.float32)
    dt = softplus(tl.load(place, mask=inside, other=0.0).to(tl.float32) + bias[None, :])
    into = (batch * heads + head)[None, :] * longest + token[:, None]
    tl.store(steps + into, dt, mask=inside)
    tl.store(totals + into, tl.cumsum(dt * A[None, :], 0), mask=inside)


@triton.jit
def part_steps(steps, totals, start, left, S: tl.constexpr):
    """The step sizes of S tokens and their sums; `left` tokens are there from the first."""
    t = tl.arange(0, S)
    dt = tl.load(steps + start + t, mask=t < left, other=0.0)
    return dt, tl.load(totals + start + t, mask=t < left, other=0.0)


@triton.jit
def _tile_steps(steps, totals, start, left, T: tl.constexpr):
    """A tile's step sizes, its sums, and the last of them."""
    dt, total = part_steps(steps, totals, start, left, T)
    return dt, total, tl.load(totals + start + tl.minimum(left, T) - 1)


@triton.jit(do_not_specialize=["length", "asked", "heads", "per_group", "groups"])
def asked_output_kernel(
    convolved, D_pointer, z_pointer, positions, starts, steps, totals, y_pointer, ungated, kept,
    width, length, asked, heads, per_group, groups,
    P: tl.constexpr, N: tl.constexpr, BP: tl.constexpr, BN: tl.constexpr, T: tl.constexpr, Q: tl.constexpr,
    EVEN: tl.constexpr, PRECISION: tl.constexpr, KEEP: tl.constexpr, PACKED: tl.constexpr,
):  # fmt: skip
    """y (B,K,H,P) of x, B, C side by side (B,L,width). KEEP: y before the gate, and `behind` (B,H,tiles,K).

    Program: batch, head, block of queries. From the last tile to the first, whose steps are loaded a tile ahead.
    """
    blocks, most, longest = tl.cdiv(asked, Q), tl.cdiv(length, T), length
    program = tl.program_id(0)
    sequence = program // blocks
    batch, head = (sequence // heads).to(tl.int64), sequence % heads
    group = head // per_group
    at, apart, length = example(starts, batch, length, PACKED)
    tiles = tl.cdiv(length, T)
    t, channels, states = tl.arange(0, T), tl.arange(0, BP), tl.arange(0, BN)
    q, position = queries(positions, batch, program % blocks * Q, asked, Q)
    steps += sequence.to(tl.int64) * longest
    totals += sequence.to(tl.int64) * longest
    dt, total, end = _tile_steps(steps, totals, (tiles - 1) * T, length - (tiles - 1) * T, T)
    here = tl.load(totals + position, mask=position >= 0, other=0.0)
    convolved += at * apart * width
    B_pointer = convolved + heads * P + group * N
    C = operand(rows_at(B_pointer + groups * N, width, position, states, N), PRECISION)
    x_pointer = convolved + head * P
    kept += sequence.to(tl.int64) * most * asked
    D = tl.load(D_pointer + head).to(tl.float32)
    y, behind = tl.zeros([Q, BP], tl.float32), tl.zeros([Q], tl.float32)
    for done in tl.range(tiles):
        tile = tiles - 1 - done
        start = tile * T
        first = tl.cast(start, tl.int64) * width
        x = load_tile(x_pointer + first, width, t, channels, length - start, P, BP, EVEN)
        B = operand(load_tile(B_pointer + first, width, t, states, length - start, N, BN, EVEN), PRECISION)
        before = tl.maximum(start - T, 0)
        next_dt, next_total, next_end = _tile_steps(steps, totals, before, length - before, T)
        local = position - start
        same = local[:, None] == t[None, :]
        own = tl.where(local < T, here - end, behind)
        if KEEP:
            tl.store(kept + tile * asked + q, own, mask=q < asked)
        scores = product(C, tl.trans(B), tl.zeros([Q, T], tl.float32), PRECISION) * dt[None, :]
        exponent = own[:, None] + (end - total)[None, :]
        weights = tl.exp2(tl.where(t[None, :] < local[:, None], exponent, float("-inf"))) * scores
        weights = tl.where(same, scores + D, weights)
        y = product(operand(weights, PRECISION), operand(x, PRECISION), y, PRECISION)
        behind = tl.where(local < T, here, behind + end)
        dt, total, end = next_dt, next_total, next_end
    place = ((batch * asked + q) * heads + head)[:, None] * P + channels[None, :]
    inside = (q < asked)[:, None] & (channels < P)[None, :]
    if KEEP:
        tl.store(ungated + place, y.to(ungated.dtype.element_ty), mask=inside)
    z = tl.load(z_pointer + place, mask=inside, other=0.0).to(tl.float32)
    tl.store(y_pointer + place, (y * z * sigmoid(z)).to(y_pointer.dtype.element_ty), mask=inside)
