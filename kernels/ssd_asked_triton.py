"""ssd at asked tokens: a query weighs all tokens before it, tile by tile; and the gradients of that.

Sums of dt A, in units of log 2, are formed within tiles of T keys: of a query, `behind` is their sum from the end of a
tile to the query, so that a weight is 2^(behind_q + end - total_j), without differences of long sums. For a query
inside the tile that sum is negative steps, total_q - end. Padding queries have the position -1, before every token.

Gradients, with W_jq = x_j . dy_q (dy before the gate), s_jq = B_j . C_q, E the decays and M = dt W E s:

    dx_j = dt_j sum_q s E dy_q + D dy      dB_j = dt_j sum_q W E C_q       dC_q = sum_j dt_j W E B_j
    d(dt A)_m = sum of M_jq over j < m <= p_q

One launch takes every tile of keys by itself, with the heads of a group in turn, so that dB is summed in registers,
and leaves M's sums over the tile's keys, of each query, and over queries, of each key. A small launch has the rest. In

    d(dt A)_m = sum over p_q >= m of (M of keys up to the end of m's tile) - sum over j >= m in the tile of M_j

terms cancel within a tile only, not over the sequence. A token's own part of M is in neither: it would cancel in these
sums, its rounding would not.

PACKED: tensors (B,L,...) are one row of examples, see `Packing`, but for what is kept by tiles and M's sums, which have
room for the longest, `length`, of each. Programs of tiles that an example does not have leave at once.
"""

# mypy: allow-untyped-defs

import triton
import triton.language as tl

from .exponentials_triton import LOG2E, sigmoid
from .ssd_tiles_triton import chunk_steps, example, last_of, load_steps, step_sizes
from .taylor_tiles import load_tile, operand, product

SMALLEST = tl.constexpr(1e-30)


@triton.jit
def _queries(positions, batch, first, asked, Q: tl.constexpr):
    """Numbers of queries, and their positions."""
    q = first + tl.arange(0, Q)
    return q, tl.load(positions + batch * asked + q, mask=q < asked, other=-1).to(tl.int32)


@triton.jit
def _rows_at(pointer, width, position, columns, WIDTH: tl.constexpr):
    """Rows of a sequence at these positions, zero for -1."""
    inside = (position >= 0)[:, None] & (columns < WIDTH)[None, :]
    return tl.load(pointer + position.to(tl.int64)[:, None] * width + columns[None, :], mask=inside, other=0.0)


@triton.jit(do_not_specialize=["length", "asked", "heads", "per_group", "groups"])
def asked_output_kernel(
    convolved, dt_pointer, A_pointer, D_pointer, bias_pointer, z_pointer, positions, starts, y_pointer, ungated, kept,
    width, dt_batch, dt_row, length, asked, heads, per_group, groups,
    P: tl.constexpr, N: tl.constexpr, BP: tl.constexpr, BN: tl.constexpr, T: tl.constexpr, Q: tl.constexpr,
    EVEN: tl.constexpr, PRECISION: tl.constexpr, KEEP: tl.constexpr, PACKED: tl.constexpr,
):  # fmt: skip
    """y (B,K,H,P) of x, B, C side by side (B,L,width). KEEP: y before the gate, and `behind` (B,H,tiles,K).

    Program: batch, head, block of queries. From the last tile to the first.
    """
    blocks, most = tl.cdiv(asked, Q), tl.cdiv(length, T)
    program = tl.program_id(0)
    sequence = program // blocks
    batch, head = (sequence // heads).to(tl.int64), sequence % heads
    group = head // per_group
    at, apart, length = example(starts, batch, length, PACKED)
    tiles = tl.cdiv(length, T)
    t, channels, states = tl.arange(0, T), tl.arange(0, BP), tl.arange(0, BN)
    q, position = _queries(positions, batch, program % blocks * Q, asked, Q)
    convolved += at * apart * width
    B_pointer = convolved + heads * P + group * N
    C = operand(_rows_at(B_pointer + groups * N, width, position, states, N), PRECISION)
    x_pointer = convolved + head * P
    dt_pointer += at * dt_batch + head
    kept += sequence.to(tl.int64) * most * asked
    A, D = tl.load(A_pointer + head).to(tl.float32), tl.load(D_pointer + head).to(tl.float32)
    bias = tl.load(bias_pointer + head).to(tl.float32)
    y, behind = tl.zeros([Q, BP], tl.float32), tl.zeros([Q], tl.float32)
    for done in tl.range(tiles):
        tile = tiles - 1 - done
        start = tile * T
        first = tl.cast(start, tl.int64) * width
        x = load_tile(x_pointer + first, width, t, channels, length - start, P, BP, EVEN)
        B = operand(load_tile(B_pointer + first, width, t, states, length - start, N, BN, EVEN), PRECISION)
        raw = load_steps(dt_pointer, dt_row, start, length, T)
        dt, total = chunk_steps(raw, bias, A * LOG2E, start, length, True)
        end = last_of(total)
        local = position - start
        same = local[:, None] == t[None, :]
        here = tl.sum(tl.where(same, total[None, :], 0.0), 1)
        own = tl.where(local < T, here - end, behind)
        if KEEP:
            tl.store(kept + tile * asked + q, own, mask=q < asked)
        scores = product(C, tl.trans(B), tl.zeros([Q, T], tl.float32), PRECISION) * dt[None, :]
        exponent = own[:, None] + (end - total)[None, :]
        weights = tl.exp2(tl.where(t[None, :] < local[:, None], exponent, float("-inf"))) * scores
        weights = tl.where(same, scores + D, weights)
        y = product(operand(weights, PRECISION), operand(x, PRECISION), y, PRECISION)
        behind = tl.where(local < T, here, behind + end)
    place = ((batch * asked + q) * heads + head)[:, None] * P + channels[None, :]
    inside = (q < asked)[:, None] & (channels < P)[None, :]
    if KEEP:
        tl.store(ungated + place, y.to(ungated.dtype.element_ty), mask=inside)
    z = tl.load(z_pointer + place, mask=inside, other=0.0).to(tl.float32)
    tl.store(y_pointer + place, (y * z * sigmoid(z)).to(y_pointer.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["length", "asked", "heads", "per_group", "groups"])
def asked_gradient_kernel(
    convolved, dt_pointer, A_pointer, D_pointer, bias_pointer, z_pointer, dy_pointer, positions, starts, kept,
    d_convolved, dC_parts, pair_sums, token_sums,
    width, dt_batch, dt_row, length, asked, heads, per_group, groups,
    P: tl.constexpr, N: tl.constexpr, BP: tl.constexpr, BN: tl.constexpr, T: tl.constexpr, Q: tl.constexpr,
    EVEN: tl.constexpr, PRECISION: tl.constexpr, PACKED: tl.constexpr,
):  # fmt: skip
    """dx and dB, side by side (B,L,width); what the tile adds to dC (B,tiles,G,K,N), of queries not before it.

    pair_sums (B,H,tiles,K) and token_sums (B,H,L): M's over the tile's keys, and over queries. Program: batch, tile,
    group.
    """
    tiles = tl.cdiv(length, T)
    program = tl.program_id(0)
    group, tile = program % groups, program // groups % tiles
    batch = (program // groups // tiles).to(tl.int64)
    start, longest = tile * T, length
    at, apart, length = example(starts, batch, length, PACKED)
    left = length - start
    if PACKED and left <= 0:
        return
    t, channels, states = tl.arange(0, T), tl.arange(0, BP), tl.arange(0, BN)
    q, position = _queries(positions, batch, 0, asked, Q)
    local = position - start
    convolved += at * apart * width
    B_at = heads * P + group * N
    C = operand(_rows_at(convolved + B_at + groups * N, width, position, states, N), PRECISION)
    convolved += tl.cast(start, tl.int64) * width
    d_convolved += (at * apart + start) * width
    B = operand(load_tile(convolved + B_at, width, t, states, left, N, BN, EVEN), PRECISION)
    scores = product(B, tl.trans(C), tl.zeros([T, Q], tl.float32), PRECISION)
    same = t[:, None] == local[None, :]
    dB, dC = tl.zeros([T, BN], tl.float32), tl.zeros([Q, BN], tl.float32)
    row = (batch * asked + q)[:, None] * heads * P + channels[None, :]
    given = (q < asked)[:, None] & (channels < P)[None, :]
    dt_pointer += at * dt_batch
    for head in tl.range(group * per_group, (group + 1) * per_group):
        x = operand(load_tile(convolved + head * P, width, t, channels, left, P, BP, EVEN), PRECISION)
        dy = tl.load(dy_pointer + row + head * P, mask=given, other=0.0).to(tl.float32)
        z = tl.load(z_pointer + row + head * P, mask=given, other=0.0).to(tl.float32)
        inner = operand(dy * z * sigmoid(z), PRECISION)
        A, D = tl.load(A_pointer + head).to(tl.float32), tl.load(D_pointer + head).to(tl.float32)
        bias = tl.load(bias_pointer + head).to(tl.float32)
        raw = load_steps(dt_pointer + head, dt_row, start, length, T)
        dt, total = chunk_steps(raw, bias, A * LOG2E, start, length, True)
        end = last_of(total)
        sequence = batch * heads + head
        pair = (sequence * tiles + tile) * asked + q
        behind = tl.load(kept + pair, mask=q < asked, other=0.0)
        exponent = behind[None, :] + (end - total)[:, None]
        factor = tl.exp2(tl.where(t[:, None] < local[None, :], exponent, float("-inf"))) * dt[:, None]
        products = product(x, tl.trans(inner), tl.zeros([T, Q], tl.float32), PRECISION)
        weights = scores * factor
        both = products * weights
        tl.store(pair_sums + pair, tl.sum(both, 0), mask=q < asked)
        tl.store(token_sums + sequence * longest + start + t, tl.sum(both, 1), mask=t < left)
        products = operand(products * tl.where(same, dt[:, None], factor), PRECISION)
        dB = product(products, C, dB, PRECISION)
        dC = product(tl.trans(products), B, dC, PRECISION)
        weights = tl.where(same, scores * dt[:, None] + D, weights)
        dx = product(operand(weights, PRECISION), inner, tl.zeros([T, BP], tl.float32), PRECISION)
        exists = (t < left)[:, None] & (channels < P)[None, :]
        into = d_convolved + head * P + t[:, None] * width + channels[None, :]
        tl.store(into, dx.to(d_convolved.dtype.element_ty), mask=exists)
    exists = (t < left)[:, None] & (states < N)[None, :]
    into = d_convolved + B_at + t[:, None] * width + states[None, :]
    tl.store(into, dB.to(d_convolved.dtype.element_ty), mask=exists)
    part = ((batch * tiles + tile) * groups + group) * asked + q
    exists = ((q < asked) & (local >= 0))[:, None] & (states < N)[None, :]
    tl.store(dC_parts + part[:, None] * N + states[None, :], dC, mask=exists)


@triton.jit(do_not_specialize=["length", "asked", "heads", "per_group", "groups"])
def asked_sums_kernel(
    convolved, dt_pointer, A_pointer, bias_pointer, z_pointer, dy_pointer, ungated, positions, starts, slots,
    dC_parts, pair_sums, token_sums, d_convolved, ddt_pointer, dz_pointer, partials,
    width, dt_batch, dt_row, ddt_row, length, asked, heads, per_group, groups,
    P: tl.constexpr, N: tl.constexpr, BP: tl.constexpr, BN: tl.constexpr, T: tl.constexpr, Q: tl.constexpr,
    MORE: tl.constexpr, BM: tl.constexpr, PACKED: tl.constexpr,
):  # fmt: skip
    """dz (B,K,H,P), ddt, MORE columns of zeros behind it, dC of all tokens, sums (B,3,H) for A, the bias and D.

    Program: batch, head. A group's heads share its tiles of dC, and those of the first group the zeros.
    """
    most, longest = tl.cdiv(length, T), length
    sequence = tl.program_id(0).to(tl.int64)
    batch, head = sequence // heads, (sequence % heads).to(tl.int32)
    group = head // per_group
    at, apart, length = example(starts, batch, length, PACKED)
    tiles = tl.cdiv(length, T)
    t, channels, states = tl.arange(0, T), tl.arange(0, BP), tl.arange(0, BN)
    q, position = _queries(positions, batch, 0, asked, Q)
    convolved += at * apart * width
    d_convolved += at * apart * width
    place = ((batch * asked + q) * heads + head)[:, None] * P + channels[None, :]
    given = (q < asked)[:, None] & (channels < P)[None, :]
    z = tl.load(z_pointer + place, mask=given, other=0.0).to(tl.float32)
    dy = tl.load(dy_pointer + place, mask=given, other=0.0).to(tl.float32)
    y = tl.load(ungated + place, mask=given, other=0.0).to(tl.float32)
    x = _rows_at(convolved + head * P, width, position, channels, P).to(tl.float32)
    opened = sigmoid(z)
    by_gate = dy * opened
    inner = by_gate * z
    dz = y * (by_gate + inner * (1.0 - opened))
    tl.store(dz_pointer + place, dz.to(dz_pointer.dtype.element_ty), mask=given)
    partials += batch * 3 * heads + head
    own = tl.sum(inner * x, 1)
    tl.store(partials + 2 * heads, tl.sum(own, 0))
    keys = convolved + heads * P + group * N
    B = _rows_at(keys, width, position, states, N).to(tl.float32)
    own *= tl.sum(B * _rows_at(keys + groups * N, width, position, states, N).to(tl.float32), 1)

    A, bias = tl.load(A_pointer + head).to(tl.float32), tl.load(bias_pointer + head).to(tl.float32)
    dt_pointer += at * dt_batch + head
    ddt_pointer += at * apart * ddt_row
    before, sum_A, sum_bias = tl.zeros([Q], tl.float32), tl.zeros([T], tl.float32), tl.zeros([T], tl.float32)
    for tile in tl.range(tiles):
        start = tile * T
        local = position - start
        exists = start + t < length
        before += tl.load(pair_sums + (sequence * most + tile) * asked + q, mask=q < asked, other=0.0)
        direct = tl.sum(tl.where(local[None, :] == t[:, None], own[None, :], 0.0), 1)
        sums = tl.sum(tl.where(local[None, :] >= t[:, None], before[None, :], 0.0), 1)
        keys_sums = tl.load(token_sums + sequence * longest + start + t, mask=exists, other=0.0)
        sums -= tl.cumsum(keys_sums, 0, reverse=True)
        raw = load_steps(dt_pointer, dt_row, start, length, T)
        dt = step_sizes(raw, bias, start, length, True)
        # Of a step so small that it is no divisor, the gradient passes through a softplus as flat as it is small.
        direct += tl.where(dt > SMALLEST, keys_sums / tl.maximum(dt, SMALLEST), 0.0)
        ddt = (sums * A + direct) * sigmoid(raw.to(tl.float32) + bias)
        ddt = tl.where(exists, ddt, 0.0)
        into = ddt_pointer + (start + t).to(tl.int64) * ddt_row + head
        tl.store(into, ddt.to(ddt_pointer.dtype.element_ty), mask=exists)
        sum_A += sums * dt
        sum_bias += ddt
    tl.store(partials, tl.sum(sum_A, 0))
    tl.store(partials + heads, tl.sum(sum_bias, 0))

    more = tl.arange(0, BM)
    for tile in tl.range(head - group * per_group, tiles, per_group):
        rows = tile * T + t
        slot = tl.load(slots + at * apart + rows, mask=rows < length, other=-1)
        part = batch * most * groups * asked + group * asked + slot - batch * asked
        asked_for = (slot >= 0)[:, None] & (states < N)[None, :]
        dC = tl.zeros([T, BN], tl.float32)
        for other in tl.range(tile + 1):
            row = (part + other * groups * asked)[:, None] * N + states[None, :]
            dC += tl.load(dC_parts + row, mask=asked_for, other=0.0)
        into = d_convolved + heads * P + (groups + group) * N + rows.to(tl.int64)[:, None] * width + states[None, :]
        exists = (rows < length)[:, None] & (states < N)[None, :]
        tl.store(into, dC.to(d_convolved.dtype.element_ty), mask=exists)
        if MORE > 0:
            into = ddt_pointer + heads + rows.to(tl.int64)[:, None] * ddt_row + more[None, :]
            nothing = tl.zeros([T, BM], tl.float32).to(ddt_pointer.dtype.element_ty)
            tl.store(into, nothing, mask=(rows < length)[:, None] & (more < MORE)[None, :] & (group == 0))
