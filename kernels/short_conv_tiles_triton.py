"""What the kernels of `short_conv` share: segments of sequences, and the four tokens that are in registers at a time.

A tile is segments x channels. All segments of a tile walk through time together, four tokens (the most taps) at once,
with the last three inputs in registers: every input is loaded once, but for the few before a segment.
"""

# mypy: allow-untyped-defs

import triton
import triton.language as tl

GROUP = tl.constexpr(4)  # tokens at once: no fewer than taps - 1, so that older ones are never needed


@triton.jit
def tile_and_channels(D: tl.constexpr, BLOCK_D: tl.constexpr):
    """A program's tile, how many programs take tiles, and its channels.

    Where rows are no whole lines of the cache, blocks of channels share some: then those of one tile run together.
    """
    blocks: tl.constexpr = (D + BLOCK_D - 1) // BLOCK_D
    program, programs = tl.program_id(0), tl.num_programs(0) // blocks
    if D % 64 == 0:  # of 16 bits
        tile, block = program % programs, program // programs
    else:
        tile, block = program // blocks, program % blocks
    return tile, programs, block * BLOCK_D + tl.arange(0, BLOCK_D)


@triton.jit
def channel_weights(weight, channel, D: tl.constexpr, TAPS: tl.constexpr):
    """The weights of the current token and of those 1, 2 and 3 back; zeros where there are fewer taps."""
    inside = channel < D
    w = weight + channel * TAPS + TAPS - 1
    w0 = tl.load(w, mask=inside, other=0.0).to(tl.float32)
    w1 = tl.load(w - 1, mask=inside & (TAPS > 1), other=0.0).to(tl.float32)
    w2 = tl.load(w - 2, mask=inside & (TAPS > 2), other=0.0).to(tl.float32)
    w3 = tl.load(w - 3, mask=inside & (TAPS > 3), other=0.0).to(tl.float32)
    return w0, w1, w2, w3


@triton.jit
def channel_bias(bias, channel, D: tl.constexpr, GIVEN: tl.constexpr):
    if GIVEN:
        b = tl.load(bias + channel, mask=channel < D, other=0.0).to(tl.float32)
    else:
        b = tl.zeros(channel.shape, tl.float32)
    return b


@triton.jit
def place(segment, per_sequence, STEPS: tl.constexpr):
    """The sequence of each segment, 64 bits wide, and the token at which it starts."""
    sequence = segment // per_sequence
    return sequence.to(tl.int64), (segment - sequence * per_sequence) * STEPS


@triton.jit
def packed_place(starts, segment, segments, examples, STEPS: tl.constexpr):
    """Of examples one behind another: the token of its own example at which each segment starts, that token's place in
    the whole row, and how many are left of the example from there on.

    Segments of the same time are neighbours: the shortest examples come last, so that a tile is done early, or empty.
    """
    example = segment % examples
    t = segment // examples * STEPS
    first = tl.load(starts + example, mask=segment < segments, other=0)
    behind = tl.load(starts + example + 1, mask=segment < segments, other=0)
    return t, first + t, behind - first - t


@triton.jit
def _older(x, state, t, stride, inside, BACK: tl.constexpr, TAPS: tl.constexpr, HAS_STATE: tl.constexpr):
    """The input BACK tokens before a segment that starts at t: of the state, or zero, before the sequence."""
    if BACK < TAPS:
        token = tl.load(x - BACK * stride, mask=inside & (t >= BACK), other=0.0).to(tl.float32)
        if HAS_STATE:
            kept = tl.load(state + TAPS - 1 - BACK, mask=inside & (t == 0), other=0.0)
            token += kept.to(x.dtype.element_ty).to(tl.float32)
    else:
        token = tl.zeros(x.shape, tl.float32)
    return token


@triton.jit
def older(x, state, t, stride, inside, TAPS: tl.constexpr, HAS_STATE: tl.constexpr):
    """The inputs 1, 2 and 3 tokens before a segment."""
    x1 = _older(x, state, t, stride, inside, 1, TAPS, HAS_STATE)
    x2 = _older(x, state, t, stride, inside, 2, TAPS, HAS_STATE)
    x3 = _older(x, state, t, stride, inside, 3, TAPS, HAS_STATE)
    return x1, x2, x3


@triton.jit
def load_group(x, stride, left, inside):
    """Four tokens; zeros beyond the `left` ones of the sequence."""
    a = tl.load(x, mask=inside & (left > 0), other=0.0).to(tl.float32)
    b = tl.load(x + stride, mask=inside & (left > 1), other=0.0).to(tl.float32)
    c = tl.load(x + 2 * stride, mask=inside & (left > 2), other=0.0).to(tl.float32)
    d = tl.load(x + 3 * stride, mask=inside & (left > 3), other=0.0).to(tl.float32)
    return a, b, c, d


@triton.jit
def store_group(y, stride, left, inside, a, b, c, d):
    dtype = y.dtype.element_ty
    tl.store(y, a.to(dtype), mask=inside & (left > 0))
    tl.store(y + stride, b.to(dtype), mask=inside & (left > 1))
    tl.store(y + 2 * stride, c.to(dtype), mask=inside & (left > 2))
    tl.store(y + 3 * stride, d.to(dtype), mask=inside & (left > 3))


@triton.jit
def convolve(x0, x1, x2, x3, w0, w1, w2, w3, b, TAPS: tl.constexpr):
    """The convolution that ends at x0, before any activation."""
    y = b + w0 * x0
    if TAPS > 1:
        y += w1 * x1
    if TAPS > 2:
        y += w2 * x2
    if TAPS > 3:
        y += w3 * x3
    return y
