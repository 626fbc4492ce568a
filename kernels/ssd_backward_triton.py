"""Gradients of ssd, one program per chunk of a sequence and group of heads, which it takes one after the other.

With W_ji = x_j . dy_i, s_ji = B_j . C_i, the decays E_ji (i >= j), the state h before the chunk and R behind it,

    u_j  = sum_i s_ji E_ji dy_i + e^(total - total_j) R B_j        dx_j = dt_j u_j + D dy_j
    dB_j = dt_j (sum_i W_ji E_ji C_i + e^(total - total_j) x_j R)  dC_i = sum_j dt_j W_ji E_ji B_j + e^(total_i) dy_i h

dB and dC are sums over the heads of a group: they stay in registers, and s is formed once. With M = dt W E s,

    d(dt A)_m = sum_i>=m>j M_ji + sum_i>=m (of dy_i . y_i through h) + sum_j<m (of x_j . dx_j through R) + e^total h . R

where the first is the sum over t >= m of M's sums over i = t less its sums over j = t. All of these are sums within the
chunk. Carrying dy . y - x . dx over the whole sequence would be shorter, but those cancel, and what half precision
left of their difference would grow with the length.
"""

# mypy: allow-untyped-defs

import triton
import triton.language as tl

from .exponentials_triton import LOG2E, sigmoid
from .ssd_tiles_triton import chunk_steps, last_of, load_scalar, load_steps
from .taylor_tiles import load_tile, operand, product


@triton.jit(do_not_specialize=["rows"])
def gate_kernel(
    dy_pointer, ungated_pointer, z_pointer, x_pointer, inner_pointer, dz_pointer, skips,
    z_batch, z_row, z_head, x_batch, x_row, x_head, length, heads, rows,
    P: tl.constexpr, BP: tl.constexpr, T: tl.constexpr, HAS_D: tl.constexpr,
):  # fmt: skip
    """The gradient of y before the gate, and dz (B,L,H,P); HAS_D: its products with x (B,L,H), before it is rounded."""
    row, channels = tl.program_id(0).to(tl.int64) * T + tl.arange(0, T), tl.arange(0, BP)
    inside = (row < rows)[:, None] & (channels < P)[None, :]
    place = row[:, None] * P + channels[None, :]
    token = row // heads
    offset = token // length * z_batch + token % length * z_row + row % heads * z_head
    z = tl.load(z_pointer + offset[:, None] + channels[None, :], mask=inside, other=0.0).to(tl.float32)
    dy = tl.load(dy_pointer + place, mask=inside, other=0.0).to(tl.float32)
    ungated = tl.load(ungated_pointer + place, mask=inside, other=0.0).to(tl.float32)
    gate = sigmoid(z)
    inner = dy * z * gate
    tl.store(inner_pointer + place, inner.to(inner_pointer.dtype.element_ty), mask=inside)
    if HAS_D:
        offset = token // length * x_batch + token % length * x_row + row % heads * x_head
        x = tl.load(x_pointer + offset[:, None] + channels[None, :], mask=inside, other=0.0).to(tl.float32)
        tl.store(skips + row, tl.sum(inner * x, 1), mask=row < rows)
    dz = dy * ungated * gate * (1.0 + z * (1.0 - gate))
    tl.store(dz_pointer + place, dz.to(dz_pointer.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["length", "heads", "per_group", "per_split", "groups", "batches"])
def gradient_kernel(
    x_pointer, dy_pointer, dt_pointer, A_pointer, B_pointer, C_pointer, D_pointer, bias_pointer, kept, extra, skips,
    dx_pointer, ddt_pointer, dB_pointer, dC_pointer, partials,
    x_batch, x_row, x_head, dt_batch, dt_row, dt_head, B_batch, B_row, B_group, C_batch, C_row, C_group,
    length, heads, per_group, per_split, groups, batches,
    P: tl.constexpr, N: tl.constexpr, BP: tl.constexpr, BN: tl.constexpr, T: tl.constexpr,
    HAS_D: tl.constexpr, HAS_BIAS: tl.constexpr, SOFTPLUS: tl.constexpr, STATE: tl.constexpr, EVEN: tl.constexpr,
    PRECISION: tl.constexpr, INTO_B: tl.constexpr, INTO_C: tl.constexpr, GATED: tl.constexpr,
):  # fmt: skip
    """dx (B,L,H,P), ddt (B,L,H), dB, dC (splits,B,L,G,N) and, per chunk, sums (B,chunks,3,H) for A, the bias and D.

    Program: split, batch, chunk, group; a split is `per_split` heads of a group. Where dB and dC do not fit into the
    registers together, a first launch with INTO_C leaves its part of d(dt A) in `extra` (B,chunks,H,T), and a second
    one with INTO_B does the rest. GATED: dy is rounded, and what D gets, a sum over all tokens that may nearly cancel,
    comes from `skips`.
    """
    chunks = tl.cdiv(length, T)
    program = tl.program_id(0)
    group, chunk = program % groups, program // groups % chunks
    batch, split = program // groups // chunks % batches, program // groups // chunks // batches
    t, channels, states = tl.arange(0, T), tl.arange(0, BP), tl.arange(0, BN)
    start = chunk * T
    left, first_row = length - start, tl.cast(start, tl.int64)
    place = batch.to(tl.int64)
    B_pointer += place * B_batch + group.to(tl.int64) * B_group + first_row * B_row
    C_pointer += place * C_batch + group.to(tl.int64) * C_group + first_row * C_row
    B = operand(load_tile(B_pointer, B_row, t, states, left, N, BN, EVEN), PRECISION)
    C = operand(load_tile(C_pointer, C_row, t, states, left, N, BN, EVEN), PRECISION)
    if INTO_B:
        scores = product(B, tl.trans(C), tl.zeros([T, T], tl.float32), PRECISION)
        own_scores = tl.sum(tl.where(t[:, None] == t[None, :], scores, 0.0), 1)
    dB, dC = tl.zeros([T, BN], tl.float32), tl.zeros([T, BN], tl.float32)
    x_pointer += place * x_batch + first_row * x_row
    dt_pointer += place * dt_batch
    token = place * length + first_row
    dy_pointer += token * heads * P
    dx_pointer += token * heads * P
    ddt_pointer += token * heads
    partials += (place * chunks + chunk) * 3 * heads
    kept += (place * chunks + chunk) * heads * (BP * BN)
    extra += (place * chunks + chunk) * heads * T
    reverse = batches.to(tl.int64) * chunks * heads * (BP * BN)
    begin = group * per_group + split * per_split
    for head in tl.range(begin, tl.minimum(begin + per_split, (group + 1) * per_group)):
        wide = tl.cast(head, tl.int64)
        x = load_tile(x_pointer + wide * x_head, x_row, t, channels, left, P, BP, EVEN)
        dy = load_tile(dy_pointer + wide * P, heads * P, t, channels, left, P, BP, EVEN)
        A = tl.load(A_pointer + head).to(tl.float32)
        bias = load_scalar(bias_pointer, head, HAS_BIAS)
        raw = load_steps(dt_pointer + wide * dt_head, dt_row, start, length, T)
        dt, total = chunk_steps(raw, bias, A * LOG2E, start, length, SOFTPLUS)
        end = last_of(total)
        where = kept + wide * (BP * BN) + channels[:, None] * BN + states[None, :]
        # Strictly after: a token's own part of M would cancel in the sums by time, but not its rounding.
        decay = tl.exp2(tl.where(t[:, None] < t[None, :], total[None, :] - total[:, None], float("-inf")))
        products = product(
            operand(x, PRECISION), tl.trans(operand(dy, PRECISION)), tl.zeros([T, T], tl.float32), PRECISION
        )  # fmt: skip
        same = t[:, None] == t[None, :]
        if INTO_B:
            own = tl.sum(tl.where(same, products, 0.0), 1)
            both = products * (scores * decay)
            direct = tl.sum(both, 1)
            by_time = tl.sum(both * dt[:, None], 0) - direct * dt
            direct += own * own_scores
        decay = tl.where(same, 1.0, decay) * dt[:, None]
        products = operand(products * decay, PRECISION)
        if INTO_B:
            dB = product(products, C, dB, PRECISION)
            weights = scores * decay
            if HAS_D:
                weights += tl.where(same, load_scalar(D_pointer, head, HAS_D), 0.0)
            dx = product(operand(weights, PRECISION), operand(dy, PRECISION), tl.zeros([T, BP], tl.float32), PRECISION)
        if INTO_C:
            dC = product(tl.trans(products), B, dC, PRECISION)
        if STATE and INTO_C:
            up = tl.exp2(total)[:, None]
            h = tl.load(where)
            through = product(operand(dy, PRECISION), h, tl.zeros([T, BN], tl.float32), PRECISION) * up
            dC += through
            # The same sum over states or over channels, whichever are fewer.
            if BN < BP:
                by_i = tl.sum(through * C.to(tl.float32), 1)
            else:
                inner = product(C, tl.trans(h), tl.zeros([T, BP], tl.float32), PRECISION) * up
                by_i = tl.sum(inner * dy.to(tl.float32), 1)
            again = tl.load(where + reverse).to(tl.float32)
            across = tl.sum(tl.sum(h.to(tl.float32) * again, 1), 0) * tl.exp2(end)
            by_i += tl.where(t == T - 1, across, 0.0)  # the last entry reaches all sums from behind
            if INTO_B:
                by_time += by_i
            else:
                tl.store(extra + wide * T + t, by_i)
        if INTO_B:
            if STATE and not INTO_C:
                by_time += tl.load(extra + wide * T + t)
            dlog = tl.cumsum(by_time, 0, reverse=True)
            if STATE:
                down = tl.exp2(end - total)[:, None]
                R = tl.load(where + reverse)
                through = product(operand(x, PRECISION), R, tl.zeros([T, BN], tl.float32), PRECISION) * down
                dB += through * dt[:, None]
                inner = product(B, tl.trans(R), tl.zeros([T, BP], tl.float32), PRECISION) * down
                by_j = tl.sum(through * B.to(tl.float32), 1) if BN < BP else tl.sum(inner * x.to(tl.float32), 1)
                dx += inner * dt[:, None]
                direct += by_j
                dlog += tl.cumsum(by_j * dt, 0) - by_j * dt
            ddt = dlog * A + direct
            if SOFTPLUS:
                ddt *= sigmoid(raw.to(tl.float32) + bias)
            ddt = tl.where(t < left, ddt, 0.0)
            tl.store(ddt_pointer + t.to(tl.int64) * heads + head, ddt.to(ddt_pointer.dtype.element_ty), mask=t < left)
            tl.store(partials + head, tl.sum(dlog * dt, 0))
            if HAS_BIAS:
                tl.store(partials + heads + head, tl.sum(ddt, 0))
            if HAS_D:
                if GATED:
                    own = tl.load(skips + (token + t) * heads + head, mask=t < left, other=0.0)
                tl.store(partials + 2 * heads + head, tl.sum(own, 0))
            inside = (t < left)[:, None] & (channels < P)[None, :]
            into = dx_pointer + wide * P + t[:, None] * (heads * P) + channels[None, :]
            tl.store(into, dx.to(dx_pointer.dtype.element_ty), mask=inside)
    into = ((split * batches + place) * length + first_row) * groups + group
    into = into * N + t[:, None] * (groups * N) + states[None, :]
    inside = (t < left)[:, None] & (states < N)[None, :]
    if INTO_B:
        tl.store(dB_pointer + into, dB.to(dB_pointer.dtype.element_ty), mask=inside)
    if INTO_C:
        tl.store(dC_pointer + into, dC.to(dC_pointer.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["rows", "heads"])
def parameter_kernel(
    partials, dA_pointer, dbias_pointer, dD_pointer, rows, heads,
    HAS_BIAS: tl.constexpr, HAS_D: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Adds the chunks' sums (rows,3,H) in a fixed order. Axis 1: A, the bias, D."""
    head, kind = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), tl.program_id(1)
    sums = tl.zeros([ROWS, BLOCK], tl.float32)
    for first in tl.range(0, rows, ROWS):
        row = first + tl.arange(0, ROWS)
        place = row.to(tl.int64)[:, None] * (3 * heads) + kind * heads + head[None, :]
        present = (kind == 0) | ((kind == 1) & HAS_BIAS) | ((kind == 2) & HAS_D)
        sums += tl.load(partials + place, mask=present & (row < rows)[:, None] & (head < heads)[None, :], other=0.0)
    value = tl.sum(sums, 0)
    tl.store(dA_pointer + head, value.to(dA_pointer.dtype.element_ty), mask=(head < heads) & (kind == 0))
    if HAS_BIAS:
        tl.store(dbias_pointer + head, value.to(dbias_pointer.dtype.element_ty), mask=(head < heads) & (kind == 1))
    if HAS_D:
        tl.store(dD_pointer + head, value.to(dD_pointer.dtype.element_ty), mask=(head < heads) & (kind == 2))


@triton.jit(do_not_specialize=["rows", "heads", "length", "groups"])
def group_sums_kernel(
    parts, scales, dB_pointer, dC_pointer, dB_batch, dB_row, dC_batch, dC_row, rows, heads, length, groups,
    N: tl.constexpr, BN: tl.constexpr, ROWS: tl.constexpr, T: tl.constexpr, SCALED: tl.constexpr,
    PACKED: tl.constexpr, HEADS: tl.constexpr,
):  # fmt: skip
    """Sums over the heads of a group: parts (2,rows,heads,N) -> dB and dC (B,L,G,N); rows are tokens x groups. HEADS
    of them are loaded at once.

    SCALED: parts are float16, to be multiplied with the scales (2,B,chunks of T,groups,heads). PACKED: B is 1, and the
    scales are (chunks,2,groups,heads).
    """
    row, states = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS), tl.arange(0, BN)
    inside = (row < rows)[:, None] & (states < N)[None, :]
    first = parts + row[:, None] * heads * N + states[None, :]
    second = rows.to(tl.int64) * heads * N
    dB, dC = tl.zeros([ROWS, BN], tl.float32), tl.zeros([ROWS, BN], tl.float32)
    batch, token, column = row // groups // length, row // groups % length, row % groups * N
    chunks = tl.cdiv(length, T)
    if PACKED:
        scales += (token // T * 2 * groups + row % groups) * heads
        all_scales = groups * heads
    else:
        scales += ((batch * chunks + token // T) * groups + row % groups) * heads
        all_scales = rows.to(tl.int64) // length * chunks * heads
    for some in range(0, heads, HEADS):
        for i in tl.static_range(HEADS):
            head = some + i
            given, exists = inside & (head < heads), (row < rows) & (head < heads)
            part_B = tl.load(first + head * N, mask=given, other=0.0).to(tl.float32)
            part_C = tl.load(first + second + head * N, mask=given, other=0.0).to(tl.float32)
            if SCALED:
                part_B *= tl.load(scales + head, mask=exists, other=0.0)[:, None]
                part_C *= tl.load(scales + all_scales + head, mask=exists, other=0.0)[:, None]
            dB += part_B
            dC += part_C
    place = (batch * dB_batch + token * dB_row + column)[:, None] + states[None, :]
    tl.store(dB_pointer + place, dB.to(dB_pointer.dtype.element_ty), mask=inside)
    place = (batch * dC_batch + token * dC_row + column)[:, None] + states[None, :]
    tl.store(dC_pointer + place, dC.to(dC_pointer.dtype.element_ty), mask=inside)
