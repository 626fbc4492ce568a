"""Outputs of ssd: one program walks over the chunks of one sequence and head, with the state in its registers.

Per chunk of T tokens, y = (C B^T * decay * dt) x + decay C state: three products, and a fourth that carries the state
on. Everything about dt, the skip and the gate happens here too, so that x, B, C and y pass through memory once and no
state does. Wide heads are cut into blocks of channels, each with a program of its own; where sequences and heads are
few, so is the sequence, and `ssd_states_triton` has summed the segments before.
"""

# mypy: allow-untyped-defs

import triton
import triton.language as tl

from .exponentials_triton import LOG2E, sigmoid
from .ssd_tiles_triton import chunk_steps, last_of, load_scalar, load_steps, state_before, state_tile
from .taylor_tiles import load_tile, operand, product


@triton.jit
def advance(state, x, B, dt, total, PRECISION: tl.constexpr):
    """The state (P,N) after a chunk of x (T,P), B (T,N)."""
    end = last_of(total)
    weight = (dt * tl.exp2(end - total))[:, None]
    # The narrower factor takes the weights.
    if B.shape[1] <= x.shape[1]:
        x, B = operand(x, PRECISION), operand(B.to(tl.float32) * weight, PRECISION)
    else:
        x, B = operand(x.to(tl.float32) * weight, PRECISION), operand(B, PRECISION)
    return product(tl.trans(x), B, state * tl.exp2(end), PRECISION)


@triton.jit(do_not_specialize=["length", "heads", "per_group", "segment", "segments"])
def output_kernel(
    x_pointer, dt_pointer, A_pointer, B_pointer, C_pointer, D_pointer, z_pointer, bias_pointer,
    y_pointer, ungated_pointer, initial, final, sums, decays,
    x_batch, x_row, x_head, dt_batch, dt_row, dt_head, B_batch, B_row, B_group, C_batch, C_row, C_group,
    z_batch, z_row, z_head, length, heads, per_group, segment, segments,
    P: tl.constexpr, N: tl.constexpr, BP: tl.constexpr, BN: tl.constexpr, PB: tl.constexpr, T: tl.constexpr,
    HAS_D: tl.constexpr, HAS_Z: tl.constexpr, HAS_BIAS: tl.constexpr, SOFTPLUS: tl.constexpr, KEEP: tl.constexpr,
    INITIAL: tl.constexpr, FINAL: tl.constexpr, SEGMENTED: tl.constexpr, STATE: tl.constexpr, EVEN: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """y (B,L,H,P); KEEP: also y before the gate; FINAL: the last state (B,H,P,N). A segment is `segment` chunks."""
    BLOCKS: tl.constexpr = BP // PB
    program = tl.program_id(0)
    sequence, number = program // BLOCKS // segments, program // BLOCKS % segments
    batch, head = (sequence // heads).to(tl.int64), sequence % heads
    group = head // per_group
    t, channels, states = tl.arange(0, T), program % BLOCKS * PB + tl.arange(0, PB), tl.arange(0, BN)
    x_pointer += batch * x_batch + head.to(tl.int64) * x_head
    dt_pointer += batch * dt_batch + head.to(tl.int64) * dt_head
    B_pointer += batch * B_batch + group.to(tl.int64) * B_group
    C_pointer += batch * C_batch + group.to(tl.int64) * C_group
    z_pointer += batch * z_batch + head.to(tl.int64) * z_head
    y_pointer += (batch * length * heads + head) * P
    ungated_pointer += (batch * length * heads + head) * P
    A = tl.load(A_pointer + head).to(tl.float32) * LOG2E
    D = load_scalar(D_pointer, head, HAS_D)
    bias = load_scalar(bias_pointer, head, HAS_BIAS)
    state = state_before(
        initial, sums, decays, sequence, number, segments, channels, states, P, N, BP, BN, INITIAL, SEGMENTED
    )
    begin = number * segment * T
    end = tl.minimum(begin + segment * T, length)
    raw = load_steps(dt_pointer, dt_row, begin, length, T)
    first = tl.cast(begin, tl.int64)
    next_x = load_tile(x_pointer + first * x_row, x_row, t, channels, length - begin, P, BP, EVEN)
    for start in tl.range(begin, end, T):
        left, offset = length - start, tl.cast(start, tl.int64)
        x = next_x
        after = tl.minimum(start + T, end - 1) // T * T  # the last one again at the end
        next_x = load_tile(
            x_pointer + tl.cast(after, tl.int64) * x_row, x_row, t, channels, length - after, P, BP, EVEN
        )  # fmt: skip
        B = load_tile(B_pointer + offset * B_row, B_row, t, states, left, N, BN, EVEN)
        C = operand(load_tile(C_pointer + offset * C_row, C_row, t, states, left, N, BN, EVEN), PRECISION)
        dt, total = chunk_steps(raw, bias, A, start, length, SOFTPLUS)
        raw = load_steps(dt_pointer, dt_row, start + T, length, T)
        y = tl.zeros([T, PB], tl.float32)
        if STATE:
            y = product(C, tl.trans(operand(state, PRECISION)), y, PRECISION) * tl.exp2(total)[:, None]
        scores = product(C, tl.trans(operand(B, PRECISION)), tl.zeros([T, T], tl.float32), PRECISION)
        past = t[:, None] >= t[None, :]
        decay = tl.exp2(tl.where(past, total[:, None] - total[None, :], float("-inf")))
        weights = scores * decay * dt[None, :]
        if HAS_D:  # on the diagonal the skip costs no registers for x
            weights += tl.where(t[:, None] == t[None, :], D, 0.0)
        y = product(operand(weights, PRECISION), operand(x, PRECISION), y, PRECISION)
        if STATE:
            state = advance(state, x, B, dt, total, PRECISION)
        place = offset * (heads * P) + t[:, None] * (heads * P) + channels[None, :]
        inside = (t < left)[:, None] & (channels < P)[None, :]
        if KEEP:
            tl.store(ungated_pointer + place, y.to(ungated_pointer.dtype.element_ty), mask=inside)
        if HAS_Z:
            z = load_tile(z_pointer + offset * z_row, z_row, t, channels, left, P, BP, EVEN).to(tl.float32)
            y *= z * sigmoid(z)
        tl.store(y_pointer + place, y.to(y_pointer.dtype.element_ty), mask=inside)
    if FINAL and number == segments - 1:
        place, inside = state_tile(channels, states, P, N)
        tl.store(final + sequence.to(tl.int64) * (P * N) + place, state, mask=inside)
