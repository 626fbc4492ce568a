"""The gradients of ssd at asked tokens; the words are those of `ssd_asked_triton`.

With W_jq = x_j . dy_q (dy before the gate), s_jq = B_j . C_q, E the decays and M = dt W E s:

    dx_j = dt_j sum_q s E dy_q + D dy      dB_j = dt_j sum_q W E C_q       dC_q = sum_j dt_j W E B_j
    d(dt A)_m = sum of M_jq over j < m <= p_q

A launch has what belongs to queries alone. The next takes parts of tiles, S keys each, with the heads of a group in
turn, so that dB is summed in registers, and leaves M's sums over its keys, of each query, and over queries, of each
key. The last has the rest. In

    d(dt A)_m = sum over p_q >= m of (M of keys up to the end of m's tile) - sum over j >= m in the tile of M_j

terms cancel within a tile only, not over the sequence. A token's own part of M is in neither: it would cancel in these
sums, its rounding would not.
"""

# mypy: allow-untyped-defs

import triton
import triton.language as tl

from .exponentials_triton import sigmoid
from .ssd_asked_triton import part_steps, queries, rows_at
from .ssd_tiles_triton import example, load_steps
from .taylor_tiles import load_tile, operand, product

SMALLEST = tl.constexpr(1e-30)
AT_ONCE = tl.constexpr(4)  # parts whose sums are loaded together


@triton.jit(do_not_specialize=["length", "asked", "heads", "per_group", "groups"])
def asked_gate_kernel(
    convolved, z_pointer, dy_pointer, ungated, positions, starts, dz_pointer, inner_pointer, own_pointer, partials,
    width, length, asked, heads, per_group, groups,
    P: tl.constexpr, N: tl.constexpr, BP: tl.constexpr, BN: tl.constexpr, T: tl.constexpr, Q: tl.constexpr,
    PACKED: tl.constexpr,
):  # fmt: skip
    """dz, and dy before the gate (B,K,H,P); a query's own part of M over dt (B,H,K); the sum for D (B,tiles,3,H).

    Program: batch, head.
    """
    most = tl.cdiv(length, T)
    sequence = tl.program_id(0).to(tl.int64)
    batch, head = sequence // heads, (sequence % heads).to(tl.int32)
    at, apart, length = example(starts, batch, length, PACKED)
    channels, states = tl.arange(0, BP), tl.arange(0, BN)
    q, position = queries(positions, batch, 0, asked, Q)
    convolved += at * apart * width
    place = ((batch * asked + q) * heads + head)[:, None] * P + channels[None, :]
    given = (q < asked)[:, None] & (channels < P)[None, :]
    z = tl.load(z_pointer + place, mask=given, other=0.0).to(tl.float32)
    dy = tl.load(dy_pointer + place, mask=given, other=0.0).to(tl.float32)
    y = tl.load(ungated + place, mask=given, other=0.0).to(tl.float32)
    x = rows_at(convolved + head * P, width, position, channels, P).to(tl.float32)
    keys = convolved + heads * P + head // per_group * N
    B = rows_at(keys, width, position, states, N).to(tl.float32)
    C = rows_at(keys + groups * N, width, position, states, N).to(tl.float32)
    opened = sigmoid(z)
    by_gate = dy * opened
    inner = by_gate * z
    dz = y * (by_gate + inner * (1.0 - opened))
    tl.store(dz_pointer + place, dz.to(dz_pointer.dtype.element_ty), mask=given)
    tl.store(inner_pointer + place, inner.to(inner_pointer.dtype.element_ty), mask=given)
    own = tl.sum(inner * x, 1)
    tl.store(partials + batch * most * 3 * heads + 2 * heads + head, tl.sum(own, 0))
    tl.store(own_pointer + sequence * asked + q, own * tl.sum(B * C, 1), mask=q < asked)


@triton.jit(do_not_specialize=["length", "asked", "heads", "per_group", "groups"])
def asked_gradient_kernel(
    convolved, D_pointer, inner_pointer, positions, starts, steps, totals, kept,
    d_convolved, dC_parts, pair_sums, token_sums, width, length, asked, heads, per_group, groups,
    P: tl.constexpr, N: tl.constexpr, BP: tl.constexpr, BN: tl.constexpr, T: tl.constexpr, Q: tl.constexpr,
    S: tl.constexpr, EVEN: tl.constexpr, PRECISION: tl.constexpr, PACKED: tl.constexpr,
):  # fmt: skip
    """dx and dB, side by side (B,L,width); what S keys add to dC (B,parts,G,K,N), of queries not before them.

    pair_sums (B,H,parts,K) and token_sums (B,H,L): M's over these keys, and over queries. Program: batch, part of a
    tile, group.
    """
    tiles, longest = tl.cdiv(length, T), length
    parts = tiles * (T // S)
    program = tl.program_id(0)
    group, part = program % groups, program // groups % parts
    batch = (program // groups // parts).to(tl.int64)
    start, tile = part * S, part * S // T
    at, apart, length = example(starts, batch, length, PACKED)
    left = length - start
    if left <= 0:
        return
    t, channels, states = tl.arange(0, S), tl.arange(0, BP), tl.arange(0, BN)
    q, position = queries(positions, batch, 0, asked, Q)
    local = position - start
    convolved += at * apart * width
    B_at = heads * P + group * N
    C = operand(rows_at(convolved + B_at + groups * N, width, position, states, N), PRECISION)
    convolved += tl.cast(start, tl.int64) * width
    d_convolved += (at * apart + start) * width
    B = operand(load_tile(convolved + B_at, width, t, states, left, N, BN, EVEN), PRECISION)
    scores = product(B, tl.trans(C), tl.zeros([S, Q], tl.float32), PRECISION)
    same = t[:, None] == local[None, :]
    dB, dC = tl.zeros([S, BN], tl.float32), tl.zeros([Q, BN], tl.float32)
    row = (batch * asked + q)[:, None] * heads * P + channels[None, :]
    given = (q < asked)[:, None] & (channels < P)[None, :]
    for head in tl.range(group * per_group, (group + 1) * per_group):
        x = operand(load_tile(convolved + head * P, width, t, channels, left, P, BP, EVEN), PRECISION)
        inner = operand(tl.load(inner_pointer + row + head * P, mask=given, other=0.0), PRECISION)
        D = tl.load(D_pointer + head).to(tl.float32)
        sequence = batch * heads + head
        dt, total = part_steps(steps + sequence * longest, totals + sequence * longest, start, left, S)
        end = tl.load(totals + sequence * longest + tl.minimum(tile * T + T, length) - 1)
        behind = tl.load(kept + (sequence * tiles + tile) * asked + q, mask=q < asked, other=0.0)
        exponent = behind[None, :] + (end - total)[:, None]
        factor = tl.exp2(tl.where(t[:, None] < local[None, :], exponent, float("-inf"))) * dt[:, None]
        products = product(x, tl.trans(inner), tl.zeros([S, Q], tl.float32), PRECISION)
        weights = scores * factor
        both = products * weights
        tl.store(pair_sums + (sequence * parts + part) * asked + q, tl.sum(both, 0), mask=q < asked)
        tl.store(token_sums + sequence * longest + start + t, tl.sum(both, 1), mask=t < left)
        products = operand(products * tl.where(same, dt[:, None], factor), PRECISION)
        dB = product(products, C, dB, PRECISION)
        dC = product(tl.trans(products), B, dC, PRECISION)
        weights = tl.where(same, scores * dt[:, None] + D, weights)
        dx = product(operand(weights, PRECISION), inner, tl.zeros([S, BP], tl.float32), PRECISION)
        exists = (t < left)[:, None] & (channels < P)[None, :]
        into = d_convolved + head * P + t[:, None] * width + channels[None, :]
        tl.store(into, dx.to(d_convolved.dtype.element_ty), mask=exists)
    exists = (t < left)[:, None] & (states < N)[None, :]
    into = d_convolved + B_at + t[:, None] * width + states[None, :]
    tl.store(into, dB.to(d_convolved.dtype.element_ty), mask=exists)
    row = ((batch * parts + part) * groups + group) * asked + q
    exists = ((q < asked) & (local >= 0))[:, None] & (states < N)[None, :]
    tl.store(dC_parts + row[:, None] * N + states[None, :], dC, mask=exists)


@triton.jit
def _steps_gradient(
    dt_pointer, ddt_pointer, A, bias, steps, own, positions, slots, pair_sums, token_sums, partials,
    batch, tile, left, dt_row, ddt_row, asked, heads, T: tl.constexpr, Q: tl.constexpr, S: tl.constexpr,
):  # fmt: skip
    """ddt of a tile and head, and what it adds to the gradients of A and the bias.

    Pointers are at the tile's first token, but for `own` and `pair_sums`, which are at the head's first.
    """
    t, start = tl.arange(0, T), tile * T
    q, position = queries(positions, batch, 0, asked, Q)
    exists = t < left
    slot = tl.load(slots + t, mask=exists, other=-1)
    direct = tl.load(own + slot - batch * asked, mask=slot >= 0, other=0.0)
    keys_sums = tl.load(token_sums + t, mask=exists, other=0.0)
    dt = tl.load(steps + t, mask=exists, other=0.0)
    raw = load_steps(dt_pointer, dt_row, 0, left, T)
    before = tl.zeros([Q], tl.float32)
    parts = tl.cdiv(start + tl.minimum(left, T), S)
    for first in tl.range(0, parts, AT_ONCE):
        part = first + tl.arange(0, AT_ONCE)
        there = (part < parts)[:, None] & (q < asked)[None, :]
        before += tl.sum(tl.load(pair_sums + part[:, None] * asked + q[None, :], mask=there, other=0.0), 0)
    # Tokens along lanes: this sum is over registers then, and nothing is computed by more than one lane.
    sums = tl.sum(tl.where((position - start)[:, None] >= t[None, :], before[:, None], 0.0), 0)
    sums -= tl.cumsum(keys_sums, 0, reverse=True)
    # Of a step so small that it is no divisor, the gradient passes through a softplus as flat as it is small.
    direct += tl.where(dt > SMALLEST, keys_sums / tl.maximum(dt, SMALLEST), 0.0)
    ddt = tl.where(exists, (sums * A + direct) * sigmoid(raw.to(tl.float32) + bias), 0.0)
    tl.store(ddt_pointer + t.to(tl.int64) * ddt_row, ddt.to(ddt_pointer.dtype.element_ty), mask=exists)
    tl.store(partials, tl.sum(sums * dt, 0))
    tl.store(partials + heads, tl.sum(ddt, 0))


@triton.jit(do_not_specialize=["length", "asked", "heads", "per_group", "groups"])
def asked_steps_gradient_kernel(
    dt_pointer, A_pointer, bias_pointer, steps, own, positions, starts, slots, dC_parts, pair_sums, token_sums,
    d_convolved, ddt_pointer, partials, width, dt_batch, dt_row, ddt_row, length, asked, heads, per_group, groups,
    P: tl.constexpr, N: tl.constexpr, BN: tl.constexpr, T: tl.constexpr, Q: tl.constexpr, S: tl.constexpr,
    MORE: tl.constexpr, BM: tl.constexpr, PACKED: tl.constexpr,
):  # fmt: skip
    """ddt, MORE columns of zeros behind it, dC of all tokens, sums (B,tiles,3,H) for A and the bias.

    Program: batch, tile, and one of the heads, or of the groups, which have dC. The sum for D is in an example's first
    tile already.
    """
    most, longest = tl.cdiv(length, T), length
    parts = most * (T // S)
    program = tl.program_id(0)
    head, tile = program % (heads + groups), program // (heads + groups) % most
    batch = (program // (heads + groups) // most).to(tl.int64)
    at, apart, length = example(starts, batch, length, PACKED)
    start = tile * T
    left = length - start
    slots += at * apart + start
    ddt_pointer += (at * apart + start) * ddt_row
    if head < heads:
        partials += (batch * most + tile) * 3 * heads + head
        if tile > 0:
            tl.store(partials + 2 * heads, 0.0)
        if left > 0:
            sequence = batch * heads + head
            A, bias = tl.load(A_pointer + head).to(tl.float32), tl.load(bias_pointer + head).to(tl.float32)
            token = sequence * longest + start
            _steps_gradient(
                dt_pointer + at * dt_batch + start.to(tl.int64) * dt_row + head, ddt_pointer + head, A, bias,
                steps + token, own + sequence * asked, positions, slots, pair_sums + sequence * parts * asked,
                token_sums + token, partials, batch, tile, left, dt_row, ddt_row, asked, heads, T, Q, S,
            )  # fmt: skip
        else:
            tl.store(partials, 0.0)
            tl.store(partials + heads, 0.0)
    elif left > 0:
        group, t, states, more = head - heads, tl.arange(0, T), tl.arange(0, BN), tl.arange(0, BM)
        slot = tl.load(slots + t, mask=t < left, other=-1)
        first = batch * parts * groups * asked + group * asked + slot - batch * asked
        dC = tl.zeros([T, BN], tl.float32)
        for part in tl.range((tile + 1) * (T // S)):
            asked_for = ((slot >= 0) & (start + t >= part * S))[:, None] & (states < N)[None, :]
            row = (first + part * groups * asked)[:, None] * N + states[None, :]
            dC += tl.load(dC_parts + row, mask=asked_for, other=0.0)
        d_convolved += (at * apart + start) * width + heads * P + (groups + group) * N
        into = d_convolved + t.to(tl.int64)[:, None] * width + states[None, :]
        tl.store(into, dC.to(d_convolved.dtype.element_ty), mask=(t < left)[:, None] & (states < N)[None, :])
        if MORE > 0:
            into = ddt_pointer + heads + t.to(tl.int64)[:, None] * ddt_row + more[None, :]
            nothing = tl.zeros([T, BM], tl.float32).to(ddt_pointer.dtype.element_ty)
            tl.store(into, nothing, mask=(t < left)[:, None] & (more < MORE)[None, :] & (group == 0))
