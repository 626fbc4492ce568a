"""The backward of `short_conv` and of its gated forms in Triton; what the launches are: `short_conv_triton`.

A program walks its segments through time: what the convolution was, its gradient before activation and gate, and what
that adds to the gradients of this input and of the three before, which are then complete. So each token is computed
once, but for the few behind a segment. Sums for the parameters stay in registers; each program leaves one row of them.
"""

# mypy: allow-untyped-defs

import triton
import triton.language as tl

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
def _gradients(upper, factor, x0, x1, x2, x3, w0, w1, w2, w3, b, TAPS: tl.constexpr, SILU: tl.constexpr,
    GATED: tl.constexpr,
):  # fmt: skip
    """Of the convolution itself, before activation and gate, and of the gate."""
    g = upper
    d_gate = upper
    if SILU or GATED:
        c = convolve(x0, x1, x2, x3, w0, w1, w2, w3, b, TAPS)
        if GATED:
            g *= factor
        if SILU:
            s = sigmoid(c)
            g *= s * (1 + c * (1 - s))
            c *= s
        d_gate *= c
    return g, d_gate


@triton.jit
def _pieces(dy, starts, batches, rows, sequence, t, channel, PIECES: tl.constexpr):
    """Where the gradient begins, and its stride: its channels may lie in several tensors side by side."""
    at = dy[0] + sequence * batches[0] + t.to(tl.int64) * rows[0] + channel
    stride = tl.zeros(at.shape, tl.int32) + rows[0] if PIECES > 1 else rows[0]
    for i in tl.static_range(1, PIECES):
        other = dy[i] + sequence * batches[i] + t.to(tl.int64) * rows[i] + (channel - starts[i])
        at = tl.where(channel < starts[i], at, other)
        stride = tl.where(channel < starts[i], stride, rows[i])
    return at, stride


@triton.jit(do_not_specialize=["segments", "per_sequence"])
def conv_backward_kernel(
    dy, dy_starts, dy_batches, dy_rows, x, gate, weight, bias, gate_bias, state, starts, dx, dgate, partials,
    segments, length, per_sequence, x_batch, x_row, gate_batch, gate_row, dx_batch, dx_row, dgate_batch, dgate_row,
    width, D: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr, STEPS: tl.constexpr, UNIT: tl.constexpr,
    TAPS: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_STATE: tl.constexpr, SILU: tl.constexpr, GATED: tl.constexpr,
    RESIDUAL: tl.constexpr, PIECES: tl.constexpr, PACKED: tl.constexpr, AHEAD: tl.constexpr,
):  # fmt: skip
    """PACKED: all tensors are one row of examples, see `Packing`; `per_sequence` is their number then."""
    own_tile, programs, line = tile_and_channels(D, BLOCK_D)
    channel = line[None, :]
    w0, w1, w2, w3 = channel_weights(weight, channel, D, TAPS)
    b = channel_bias(bias, channel, D, HAS_BIAS)
    gb = channel_bias(gate_bias, channel, D, RESIDUAL)
    d0 = tl.zeros((ROWS, BLOCK_D), tl.float32)
    d1, d2, d3, d_bias, d_gate_bias = d0, d0, d0, d0, d0
    for tile in range(own_tile, tl.cdiv(segments, ROWS), programs):
        segment = (tile * ROWS + tl.arange(0, ROWS))[:, None]
        inside = (segment < segments) & (channel < D)
        steps = STEPS + 1
        if PACKED:
            t, token, left = packed_place(starts, segment, segments, per_sequence, STEPS)
            sequence = token.to(tl.int64) * 0
            inside = inside & (left > 0)  # before a segment, too
            steps = tl.minimum(STEPS, tl.max(tl.max(left, 1), 0)) + 1
        else:
            sequence, t = place(segment, per_sequence, STEPS)
            token = t
            left = length - t
        x_at = x + sequence * x_batch * UNIT + token.to(tl.int64) * x_row * UNIT + channel
        dx_at = dx + sequence * dx_batch * UNIT + token.to(tl.int64) * dx_row * UNIT + channel
        gate_at = gate + sequence * gate_batch * UNIT + token.to(tl.int64) * gate_row * UNIT + channel
        dgate_at = dgate + sequence * dgate_batch * UNIT + token.to(tl.int64) * dgate_row * UNIT + channel
        dy_at, dy_row = _pieces(dy, dy_starts, dy_batches, dy_rows, sequence, token, channel, PIECES)
        x1, x2, x3 = older(
            x_at, state + (sequence * D + channel) * (TAPS - 1), t, x_row * UNIT, inside, TAPS, HAS_STATE
        )
        q3 = tl.zeros((ROWS, BLOCK_D), tl.float32)  # dx 3, 2 and 1 tokens before a group, as far as it is known
        q2, q1 = q3, q3
        for step in tl.range(0, steps, GROUP, num_stages=AHEAD):
            # The last group belongs to the next segment, which counts it: here it only completes what comes before.
            own, completes = step < STEPS, inside & (step > 0)
            xa, xb, xc, xd = load_group(x_at, x_row * UNIT, left, inside)
            ua, ub, uc, ud = load_group(dy_at, dy_row, left, inside)
            if GATED:
                fa, fb, fc, fd = load_group(gate_at, gate_row * UNIT, left, inside)
            else:
                fa, fb, fc, fd = gb, gb, gb, gb
            g0, e0 = _gradients(ua, fa + gb, xa, x1, x2, x3, w0, w1, w2, w3, b, TAPS, SILU, GATED)
            g1, e1 = _gradients(ub, fb + gb, xb, xa, x1, x2, w0, w1, w2, w3, b, TAPS, SILU, GATED)
            g2, e2 = _gradients(uc, fc + gb, xc, xb, xa, x1, w0, w1, w2, w3, b, TAPS, SILU, GATED)
            g3, e3 = _gradients(ud, fd + gb, xd, xc, xb, xa, w0, w1, w2, w3, b, TAPS, SILU, GATED)
            ra, rb, rc, rd = w0 * g0, w0 * g1, w0 * g2, w0 * g3
            if RESIDUAL:
                ra, rb, rc, rd = ra + ua, rb + ub, rc + uc, rd + ud
            if TAPS > 1:
                q1, ra, rb, rc = q1 + w1 * g0, ra + w1 * g1, rb + w1 * g2, rc + w1 * g3
            if TAPS > 2:
                q2, q1, ra, rb = q2 + w2 * g0, q1 + w2 * g1, ra + w2 * g2, rb + w2 * g3
            if TAPS > 3:
                q3, q2, q1, ra = q3 + w3 * g0, q2 + w3 * g1, q1 + w3 * g2, ra + w3 * g3
            row = dx_row * UNIT
            tl.store(dx_at - 3 * row, q3.to(dx.dtype.element_ty), mask=completes & (left > -3))
            tl.store(dx_at - 2 * row, q2.to(dx.dtype.element_ty), mask=completes & (left > -2))
            tl.store(dx_at - row, q1.to(dx.dtype.element_ty), mask=completes & (left > -1))
            tl.store(dx_at, ra.to(dx.dtype.element_ty), mask=inside & own & (left > 0))
            q3, q2, q1 = rb, rc, rd
            if own:
                d0 = d0 + g0 * xa + g1 * xb + g2 * xc + g3 * xd
                if TAPS > 1:
                    d1 = d1 + g0 * x1 + g1 * xa + g2 * xb + g3 * xc
                if TAPS > 2:
                    d2 = d2 + g0 * x2 + g1 * x1 + g2 * xa + g3 * xb
                if TAPS > 3:
                    d3 = d3 + g0 * x3 + g1 * x2 + g2 * x1 + g3 * xa
                if HAS_BIAS:
                    d_bias = d_bias + g0 + g1 + g2 + g3
                if RESIDUAL:
                    d_gate_bias = d_gate_bias + e0 + e1 + e2 + e3
                if GATED:
                    store_group(dgate_at, dgate_row * UNIT, left, inside, e0, e1, e2, e3)
            x1, x2, x3 = xd, xc, xb
            x_at += GROUP * x_row * UNIT
            gate_at += GROUP * gate_row * UNIT
            dx_at += GROUP * row
            dgate_at += GROUP * dgate_row * UNIT
            dy_at += GROUP * dy_row
            left -= GROUP
    part = partials + own_tile * width
    tap = part + line * TAPS + TAPS - 1
    tl.store(tap, tl.sum(d0, axis=0), mask=line < D)
    if TAPS > 1:
        tl.store(tap - 1, tl.sum(d1, axis=0), mask=line < D)
    if TAPS > 2:
        tl.store(tap - 2, tl.sum(d2, axis=0), mask=line < D)
    if TAPS > 3:
        tl.store(tap - 3, tl.sum(d3, axis=0), mask=line < D)
    if HAS_BIAS:
        tl.store(part + D * TAPS + line, tl.sum(d_bias, axis=0), mask=line < D)
    if RESIDUAL:
        tl.store(part + D * (TAPS + 1) + line, tl.sum(d_gate_bias, axis=0), mask=line < D)


@triton.jit
def paste_kernel(
    parts, starts, widths, batches, rows, out, tokens, length, out_batch, out_row,
    UNIT: tl.constexpr, PARTS: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Copy each part to its place in the last dimension of out (B,L,E)."""
    token = (tl.program_id(0) * ROWS + tl.arange(0, ROWS))[:, None]
    sequence, t = place(token, length, 1)
    out += sequence * out_batch * UNIT + t.to(tl.int64) * out_row * UNIT
    for i in tl.static_range(PARTS):
        part = parts[i] + sequence * batches[i] + t.to(tl.int64) * rows[i]
        for first in range(0, widths[i], BLOCK):
            channel = (first + tl.arange(0, BLOCK))[None, :]
            inside = (token < tokens) & (channel < widths[i])
            tl.store(out + starts[i] + channel, tl.load(part + channel, mask=inside), mask=inside)
