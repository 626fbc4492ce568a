"""States of ssd between chunks, forward and in reverse, and the sums of segments.

Forward, the state before a chunk: h' = e^(total of the chunk) h + sum_t e^(total - total_t) dt_t x_t B_t^T.
In reverse, what the outputs after a chunk ask of the state behind it: R' = e^total R + sum_t e^(total_t) dy_t C_t^T.
The backward needs both before every chunk, and they do not depend on each other: one launch holds programs for either.

Where sequences and heads are few, they are cut into segments: a first launch leaves the sum of each segment as if it
began with nothing, a second one begins with the segments before.
"""

# mypy: allow-untyped-defs

import triton
import triton.language as tl

from .exponentials_triton import LOG2E
from .ssd_tiles_triton import chunk_steps, last_of, load_scalar, load_steps, state_before, state_tile
from .taylor_tiles import load_tile, operand, product


@triton.jit
def _walk(
    value_pointer, key_pointer, dt_pointer, A, bias, initial, kept, sums, decays, last,
    value_row, key_row, dt_row, program, heads, length, segment, segments,
    P: tl.constexpr, N: tl.constexpr, BP: tl.constexpr, BN: tl.constexpr, PB: tl.constexpr, NB: tl.constexpr,
    T: tl.constexpr, REVERSE: tl.constexpr, SOFTPLUS: tl.constexpr, KEEP: tl.constexpr, INITIAL: tl.constexpr,
    LAST: tl.constexpr, SEGMENTED: tl.constexpr, EVEN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One segment of one sequence. Pointers stand at the sequence; `last`, what remains at the end, if LAST."""
    BLOCKS: tl.constexpr = (BP // PB) * (BN // NB)
    sequence, number = program // BLOCKS // segments, program // BLOCKS % segments
    block = program % BLOCKS
    t, channels = tl.arange(0, T), block // (BN // NB) * PB + tl.arange(0, PB)
    states = block % (BN // NB) * NB + tl.arange(0, NB)
    state = state_before(
        initial, sums, decays, sequence, number, segments, channels, states, P, N, BP, BN, INITIAL, SEGMENTED and KEEP
    )
    place = channels[:, None] * BN + states[None, :]
    chunks = tl.cdiv(length, T)
    decay = 0.0
    for index in tl.range(number * segment, tl.minimum((number + 1) * segment, chunks)):
        chunk = chunks - 1 - index if REVERSE else index
        start = chunk * T
        left, offset = length - start, tl.cast(start, tl.int64)
        value = load_tile(value_pointer + offset * value_row, value_row, t, channels, left, P, BP, EVEN)
        key = load_tile(key_pointer + offset * key_row, key_row, t, states, left, N, BN, EVEN)
        raw = load_steps(dt_pointer, dt_row, start, length, T)
        dt, total = chunk_steps(raw, bias, A, start, length, SOFTPLUS)
        end = last_of(total)
        if KEEP:
            where = kept + ((sequence // heads).to(tl.int64) * chunks + chunk) * heads * (BP * BN)
            tl.store(where + sequence % heads * (BP * BN) + place, operand(state, PRECISION))
        weight = tl.exp2(total) if REVERSE else dt * tl.exp2(end - total)
        # The narrower factor takes the weights.
        if NB <= PB:
            value, key = operand(value, PRECISION), operand(key.to(tl.float32) * weight[:, None], PRECISION)
        else:
            value, key = operand(value.to(tl.float32) * weight[:, None], PRECISION), operand(key, PRECISION)
        state = product(tl.trans(value), key, state * tl.exp2(end), PRECISION)
        decay += end
    if not KEEP:
        first = sequence.to(tl.int64) * segments + number
        tl.store(sums + first * (BP * BN) + place, state)
        if block == 0:
            tl.store(decays + first, decay)
    if LAST and number == segments - 1:
        place, inside = state_tile(channels, states, P, N)
        tl.store(last + sequence.to(tl.int64) * (P * N) + place, state, mask=inside)


@triton.jit(do_not_specialize=["length", "heads", "per_group", "segment", "segments", "sequences"])
def states_kernel(
    x_pointer, dy_pointer, dt_pointer, A_pointer, B_pointer, C_pointer, bias_pointer,
    initial, grad_final, kept, sums, decays, grad_initial,
    x_batch, x_row, x_head, dt_batch, dt_row, dt_head, B_batch, B_row, B_group, C_batch, C_row, C_group,
    length, heads, per_group, segment, segments, sequences,
    P: tl.constexpr, N: tl.constexpr, BP: tl.constexpr, BN: tl.constexpr, PB: tl.constexpr, NB: tl.constexpr,
    T: tl.constexpr, HAS_BIAS: tl.constexpr, SOFTPLUS: tl.constexpr, KEEP: tl.constexpr, INITIAL: tl.constexpr,
    GRAD_FINAL: tl.constexpr, GRAD_INITIAL: tl.constexpr, SEGMENTED: tl.constexpr, EVEN: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """KEEP: what every chunk receives, kept (2,B,chunks,H,BP,BN). Otherwise sums (2,B,H,segments,BP,BN) and decays.

    Programs beyond the first `sequences` x segments x blocks are those in reverse.
    """
    BLOCKS: tl.constexpr = (BP // PB) * (BN // NB)
    programs = sequences * segments * BLOCKS
    program = tl.program_id(0) % programs
    sequence = program // BLOCKS // segments
    batch, head = (sequence // heads).to(tl.int64), (sequence % heads).to(tl.int64)
    group = head // per_group
    dt_pointer += batch * dt_batch + head * dt_head
    A = tl.load(A_pointer + head).to(tl.float32) * LOG2E
    bias = load_scalar(bias_pointer, head, HAS_BIAS)
    if tl.program_id(0) < programs:
        _walk(
            x_pointer + batch * x_batch + head * x_head, B_pointer + batch * B_batch + group * B_group,
            dt_pointer, A, bias, initial, kept, sums, decays, grad_initial, x_row, B_row, dt_row,
            program, heads, length, segment, segments, P, N, BP, BN, PB, NB, T, False, SOFTPLUS, KEEP,
            INITIAL and KEEP, False, SEGMENTED, EVEN, PRECISION,
        )  # fmt: skip
    else:
        half = sequences.to(tl.int64) * (BP * BN)
        _walk(
            dy_pointer + (batch * length * heads + head) * P, C_pointer + batch * C_batch + group * C_group,
            dt_pointer, A, bias, grad_final, kept + half * tl.cdiv(length, T), sums + half * segments,
            decays + sequences * segments, grad_initial, heads * P, C_row, dt_row,
            program, heads, length, segment, segments, P, N, BP, BN, PB, NB, T, True, SOFTPLUS, KEEP,
            GRAD_FINAL and KEEP, GRAD_INITIAL and KEEP, SEGMENTED, EVEN, PRECISION,
        )  # fmt: skip
