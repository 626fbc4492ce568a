"""What the selective scan's kernels share: tiles with time, or states, in registers and a channel in every lane.

A program of one warp takes 32 channels. Its tiles are (T,D) or (N,D): 32 lanes hold the channels, each thread the
steps or states of its own. So taking a row costs nothing, and a step of the recurrence exchanges nothing.

That layout is the compiler's choice, made for loads and stores. Told that the addresses of neighbouring channels are
aligned, it would load several channels at once and spread time over lanes; so kernels hide the stride of channels in
a run-time `one`, and say only that channels are neighbours.
"""

# mypy: allow-untyped-defs, disable-error-code="assignment"

import triton
import triton.language as tl

CHANNELS = 32  # of a program: one per lane
LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def row(x_TD, t: tl.constexpr):
    """Row t. Time lies in registers, so that comparison and sum (of integers: x + 0 = x) are resolved in compiling."""
    time = tl.arange(0, x_TD.shape[0])[:, None]
    bits = tl.where(time == t, x_TD.to(tl.int32, bitcast=True), 0)
    return tl.sum(bits, 0).to(tl.float32, bitcast=True)


@triton.jit
def set_row(x_TD, t: tl.constexpr, row_D):
    return tl.where(tl.arange(0, x_TD.shape[0])[:, None] == t, row_D[None, :], x_TD)


@triton.jit
def softplus(x):
    """max(x, 0) + log(1 + e), e = exp(-|x|), by the series of 2 artanh(e / (2 + e)): exact for small e too."""
    e = tl.exp2(tl.abs(x) * -LOG2E)
    s = e / (2.0 + e)
    w = s * s
    series = 1.0 / 13 + w * (1.0 / 15)
    series = 1.0 / 9 + w * (1.0 / 11 + w * series)
    series = 1.0 / 5 + w * (1.0 / 7 + w * series)
    series = 1.0 + w * (1.0 / 3 + w * series)
    return tl.maximum(x, 0.0) + 2.0 * s * series


@triton.jit
def sigmoid(x):
    return 1.0 / (1.0 + tl.exp2(x * -LOG2E))


@triton.jit
def step_size(delta, bias, mask, SOFTPLUS: tl.constexpr):
    """The step size, 0 outside the sequence: there the state stays as it is."""
    delta = delta.to(tl.float32) + bias
    if SOFTPLUS:
        delta = softplus(delta)
    return tl.where(mask, delta, 0.0)


@triton.jit
def channels_inside(d, channels: tl.constexpr, BLOCK_D: tl.constexpr):
    """Which of the channels d exist; known in compiling where no program is cut off."""
    inside = tl.full(d.shape, True, tl.int1)
    if channels % BLOCK_D != 0:
        inside = d < channels
    return inside


@triton.jit
def steps_inside(t, L, WHOLE: tl.constexpr):
    """Which of the steps t exist; all if L is WHOLE, a multiple of the tile."""
    inside = tl.full(t.shape, True, tl.int1)
    if not WHOLE:
        inside = t < L
    return inside


@triton.jit
def load_constant(pointer, d, inside, HAS: tl.constexpr):
    """A row of float32 parameters, or zeros."""
    constant = tl.zeros(d.shape, tl.float32)
    if HAS:
        constant = tl.load(pointer + d, mask=inside, other=0.0).to(tl.float32)
    return constant


@triton.jit
def exchange(a_D, b_D, lane, distance: tl.constexpr):
    """Pairs of lanes: a summed over both goes to the lower one, b to the upper one."""
    upper = (lane & distance) != 0
    return tl.where(upper, b_D, a_D) + tl.gather(tl.where(upper, a_D, b_D), lane ^ distance, 0)


@triton.jit
def _halve(rows, lane, distance: tl.constexpr):
    half: tl.constexpr = len(rows) // 2
    halved = ()
    if half == 0:
        halved = (rows[0] + tl.gather(rows[0], lane ^ distance, 0),)
    for r in tl.static_range(half):
        halved += (exchange(rows[r], rows[r + half], lane, distance),)
    return halved


@triton.jit
def sums_over_lanes(rows, lane, DEPTH: tl.constexpr):
    """Sum each of R = 2^k rows (D,) over D = 2^DEPTH lanes -> max(R / D, 1) rows: lane l of row r has sum l R / D + r.

    Every level halves the values in flight: D - 1 exchanges for D sums, where one sum at a time takes D log D.
    """
    for level in tl.static_range(DEPTH):
        rows = _halve(rows, lane, 2 ** (DEPTH - 1 - level))
    return rows
