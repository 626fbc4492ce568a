"""What the Triton kernels of ssd share: step sizes, sums of the logarithms of the decays, and states between segments.

A sequence is cut into chunks of T tokens. `total` is the running sum of dt A over a chunk, in units of log 2, so that a
decay between two tokens of it is 2^(total_i - total_j); it is formed as a difference first, for 2^-total_j overflows.
Tokens beyond the end have dt = 0, which leaves the state as it is.

Precision, operands and products are those of `taylor_tiles`.
"""

# mypy: allow-untyped-defs

import triton
import triton.language as tl

from .exponentials_triton import LOG2E


@triton.jit
def softplus(x):
    """log(1 + exp(x)), to float32's accuracy also where it is small: log(1 + e) = 2 artanh(e / (2 + e)), e <= 1."""
    e = tl.exp2(-tl.abs(x) * LOG2E)
    s = e / (2.0 + e)
    square = s * s
    series = 1.0 / 15.0 + square * (1.0 / 17.0)
    series = 1.0 / 11.0 + square * (1.0 / 13.0 + square * series)
    series = 1.0 / 7.0 + square * (1.0 / 9.0 + square * series)
    series = 1.0 / 3.0 + square * (1.0 / 5.0 + square * series)
    return tl.maximum(x, 0.0) + 2.0 * (s + s * square * series)


@triton.jit
def load_steps(pointer, stride, start, length, T: tl.constexpr):
    """dt of T tokens as it is in memory, zero beyond the end."""
    rows = start + tl.arange(0, T)
    return tl.load(pointer + rows.to(tl.int64) * stride, mask=rows < length, other=0.0)


@triton.jit
def step_sizes(raw, bias, start, length, SOFTPLUS: tl.constexpr):
    """The step sizes (T,) in float32."""
    dt = raw.to(tl.float32) + bias
    if SOFTPLUS:
        dt = softplus(dt)
    return tl.where(start + tl.arange(0, raw.shape[0]) < length, dt, 0.0)


@triton.jit
def _add_and_keep(sum_1, value_1, sum_2, value_2):
    return sum_1 + sum_2, value_2


@triton.jit
def chunk_steps(raw, bias, A, start, length, SOFTPLUS: tl.constexpr):
    """dt and the running sums of dt A.

    dt itself takes part in the scan, for the compiler computes again what it needs in another layout, were it a
    softplus: a matrix of decays would then cost every thread one for each of its columns.
    """
    dt = step_sizes(raw, bias, start, length, SOFTPLUS)
    total, dt = tl.associative_scan((dt * A, dt), 0, _add_and_keep)
    return dt, total


@triton.jit
def last_of(x):
    """The last entry of a vector."""
    return tl.sum(tl.where(tl.arange(0, x.shape[0]) == x.shape[0] - 1, x, 0.0), 0)


@triton.jit
def load_scalar(pointer, index, PRESENT: tl.constexpr):
    """One entry in float32; 0 if there is no such tensor."""
    value = 0.0
    if PRESENT:
        value = tl.load(pointer + index).to(tl.float32)
    return value


@triton.jit
def example(starts, batch, length, PACKED: tl.constexpr):
    """By what distances between batches are multiplied, and what such a distance is in tokens; an example's tokens.

    PACKED examples are one row: what is given as distances between batches are those between tokens then.
    """
    place, apart = batch, length
    if PACKED:
        first = tl.load(starts + batch)
        length = tl.load(starts + batch + 1) - first
        place, apart = first.to(tl.int64), 1
    return place, apart, length


@triton.jit
def state_tile(channels, states, P: tl.constexpr, N: tl.constexpr):
    """Offsets of a tile within a state (P,N) as the caller has it, and which entries exist."""
    return channels[:, None] * N + states[None, :], (channels < P)[:, None] & (states < N)[None, :]


@triton.jit
def state_before(
    initial, sums, decays, sequence, number, segments, channels, states,
    P: tl.constexpr, N: tl.constexpr, BP: tl.constexpr, BN: tl.constexpr, INITIAL: tl.constexpr,
    SEGMENTED: tl.constexpr,
):  # fmt: skip
    """The state that segment `number` receives: the initial one and the sums of the segments before it, decayed.

    sums (sequences,segments,BP,BN); decays (sequences,segments), logarithms. In reverse segments count from the end.
    """
    if INITIAL:
        place, inside = state_tile(channels, states, P, N)
        state = tl.load(initial + sequence.to(tl.int64) * (P * N) + place, mask=inside, other=0.0).to(tl.float32)
    else:
        state = tl.zeros([channels.shape[0], states.shape[0]], tl.float32)
    if SEGMENTED:
        first = sequence.to(tl.int64) * segments
        place = channels[:, None] * BN + states[None, :]
        for before in tl.range(number):
            own = tl.load(sums + (first + before) * (BP * BN) + place)
            state = state * tl.exp2(tl.load(decays + first + before)) + own
    return state
