"""The forward of `short_conv` and of its gated forms, and the decode step; what the launches are: `short_conv_triton`.

GATED multiplies the convolution by a gate, RESIDUAL adds a bias to that gate and the input to the product.
"""

# mypy: allow-untyped-defs

import triton
import triton.language as tl

from .dependents_triton import follow
from .exponentials_triton import sigmoid
from .short_conv_tiles_triton import (
    GROUP,
    channel_bias,
    channel_weights,
    convolve,
    load_group,
    older,
    packed_place,
    place,
    store_group,
    tile_and_channels,
)


@triton.jit
def _output(x0, x1, x2, x3, factor, w0, w1, w2, w3, b, TAPS: tl.constexpr, SILU: tl.constexpr, GATED: tl.constexpr,
    RESIDUAL: tl.constexpr,
):  # fmt: skip
    y = convolve(x0, x1, x2, x3, w0, w1, w2, w3, b, TAPS)
    if SILU:
        y = y * sigmoid(y)
    if GATED:
        y *= factor
    if RESIDUAL:
        y += x0
    return y


@triton.jit(do_not_specialize=["segments", "per_sequence"])
def conv_forward_kernel(
    x, gate, weight, bias, gate_bias, state, starts, y, segments, length, per_sequence, x_batch, x_row, gate_batch,
    gate_row, D: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr, STEPS: tl.constexpr, UNIT: tl.constexpr,
    TAPS: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_STATE: tl.constexpr, SILU: tl.constexpr, GATED: tl.constexpr,
    RESIDUAL: tl.constexpr, PACKED: tl.constexpr, AHEAD: tl.constexpr,
):  # fmt: skip
    """PACKED: x and y are one row of examples, see `Packing`; `per_sequence` is their number then."""
    tile, _, line = tile_and_channels(D, BLOCK_D)
    channel = line[None, :]
    segment = (tile * ROWS + tl.arange(0, ROWS))[:, None]
    inside = (segment < segments) & (channel < D)
    steps = STEPS
    if PACKED:
        t, token, left = packed_place(starts, segment, segments, per_sequence, STEPS)
        x += token.to(tl.int64) * x_row * UNIT + channel
        y += token.to(tl.int64) * D + channel
        gate += token.to(tl.int64) * gate_row * UNIT + channel
        inside = inside & (left > 0)  # before a segment, too
        steps = tl.minimum(STEPS, tl.max(tl.max(left, 1), 0))
    else:
        sequence, t = place(segment, per_sequence, STEPS)
        left = length - t
        x += sequence * x_batch * UNIT + t.to(tl.int64) * x_row * UNIT + channel
        y += (sequence * length + t) * D + channel
        gate += sequence * gate_batch * UNIT + t.to(tl.int64) * gate_row * UNIT + channel
        state += (sequence * D + channel) * (TAPS - 1)
    w0, w1, w2, w3 = channel_weights(weight, channel, D, TAPS)
    b = channel_bias(bias, channel, D, HAS_BIAS)
    gb = channel_bias(gate_bias, channel, D, RESIDUAL)
    x1, x2, x3 = older(x, state, t, x_row * UNIT, inside, TAPS, HAS_STATE)
    for _ in tl.range(0, steps, GROUP, num_stages=AHEAD):
        xa, xb, xc, xd = load_group(x, x_row * UNIT, left, inside)
        if GATED:
            fa, fb, fc, fd = load_group(gate, gate_row * UNIT, left, inside)
            gate += GROUP * gate_row * UNIT
        else:
            fa, fb, fc, fd = gb, gb, gb, gb
        ya = _output(xa, x1, x2, x3, fa + gb, w0, w1, w2, w3, b, TAPS, SILU, GATED, RESIDUAL)
        yb = _output(xb, xa, x1, x2, fb + gb, w0, w1, w2, w3, b, TAPS, SILU, GATED, RESIDUAL)
        yc = _output(xc, xb, xa, x1, fc + gb, w0, w1, w2, w3, b, TAPS, SILU, GATED, RESIDUAL)
        yd = _output(xd, xc, xb, xa, fd + gb, w0, w1, w2, w3, b, TAPS, SILU, GATED, RESIDUAL)
        store_group(y, D, left, inside, ya, yb, yc, yd)
        x1, x2, x3 = xd, xc, xb
        x += GROUP * x_row * UNIT
        y += GROUP * D
        left -= GROUP


@triton.jit
def conv_step_kernel(
    x, weight, bias, state, y, batch, stride,
    D: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr, TAPS: tl.constexpr, HAS_BIAS: tl.constexpr,
    SILU: tl.constexpr, GATED: tl.constexpr, EARLY: tl.constexpr = False,
):  # fmt: skip
    """GATED: x holds D channels of the convolution, then D that its output is multiplied with.

    A thread takes one channel of each row, whose weights it loads once: a state's S numbers lie side by side, so that
    neighbours in a warp share its lines.
    """
    channel = tl.max_contiguous(tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D), [1])[None, :]
    row = (tl.program_id(1) * ROWS + tl.arange(0, ROWS))[:, None]
    inside = (row < batch) & (channel < D)
    w0, w1, w2, w3 = channel_weights(weight, channel, D, TAPS)
    b = channel_bias(bias, channel, D, HAS_BIAS)
    follow(EARLY)
    x += row.to(tl.int64) * stride + channel
    element = row.to(tl.int64) * D + channel
    slot = state + element * (TAPS - 1)
    token = tl.load(x, mask=inside, other=0.0)
    x1, x2, x3 = token, token, token
    if TAPS > 1:
        x1 = tl.load(slot + TAPS - 2, mask=inside, other=0.0)
    if TAPS > 2:
        x2 = tl.load(slot + TAPS - 3, mask=inside, other=0.0)
    if TAPS > 3:
        x3 = tl.load(slot, mask=inside, other=0.0)
    if GATED:
        factor = tl.load(x + D, mask=inside, other=0.0).to(tl.float32)
    if TAPS > 3:
        tl.store(slot, x2, mask=inside)
    if TAPS > 2:
        tl.store(slot + TAPS - 3, x1, mask=inside)
    if TAPS > 1:
        tl.store(slot + TAPS - 2, token.to(state.dtype.element_ty), mask=inside)
    c = convolve(token.to(tl.float32), x1.to(tl.float32), x2.to(tl.float32), x3.to(tl.float32), w0, w1, w2, w3, b, TAPS)
    if SILU:
        c = c * sigmoid(c)
    if GATED:
        c *= factor
    tl.store(y + element, c.to(y.dtype.element_ty), mask=inside)
