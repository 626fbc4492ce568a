"""A decode step of `short_conv` or `conv_gate` for 16-bit numbers and three or four taps, by words of two numbers.

The state (B,D,S) has S = W - 1 numbers a channel, side by side: read and written number by number, every line of it is
touched S times. Two channels are S whole words. A tile's words are read as they lie, given to the thread that computes
their two channels, shifted there, and go back the same way.
"""

# mypy: allow-untyped-defs

import triton
import triton.language as tl

from .dependents_triton import follow
from .exponentials_triton import sigmoid


@triton.jit
def _low(word, dtype: tl.constexpr):
    return (word & 0xFFFF).to(tl.int16).to(dtype, bitcast=True).to(tl.float32)


@triton.jit
def _high(word, dtype: tl.constexpr):
    return (word >> 16).to(tl.int16).to(dtype, bitcast=True).to(tl.float32)


@triton.jit
def _pack(low, high, dtype: tl.constexpr):
    low = low.to(dtype).to(tl.int16, bitcast=True).to(tl.int32) & 0xFFFF
    return low | (high.to(dtype).to(tl.int16, bitcast=True).to(tl.int32) << 16)


@triton.jit
def _following(low, high):
    """The number behind `low`'s last one, and the first one of `high`."""
    return ((low >> 16) & 0xFFFF) | (high << 16)


@triton.jit
def _words(pointer, inside, COUNT: tl.constexpr):
    """COUNT words of each pair of channels, zeros up to four."""
    j = tl.arange(0, 4)
    words = tl.load(pointer[:, :, None] + j, mask=inside[:, :, None] & (j < COUNT), other=0)
    first, second = tl.split(tl.reshape(words, (words.shape[0], words.shape[1], 2, 2)))
    w0, w2 = tl.split(first)
    w1, w3 = tl.split(second)
    return w0, w1, w2, w3


@triton.jit
def _inputs(x, inside, PAIRS: tl.constexpr, GATED: tl.constexpr):
    """A token's words, and their gates'."""
    token = tl.load(x, mask=inside, other=0)
    gate = token
    if GATED:
        gate = tl.load(x + PAIRS, mask=inside, other=0)
    return token, gate


@triton.jit
def _add_tap(a, b, x_a, x_b, w_a, w_b):
    return a + x_a * w_a, b + x_b * w_b


@triton.jit
def conv_words_kernel(
    x, weight, bias, state, y, batch, stride,
    PAIRS: tl.constexpr, BLOCK_P: tl.constexpr, ROWS: tl.constexpr, TAPS: tl.constexpr, HAS_BIAS: tl.constexpr,
    SILU: tl.constexpr, GATED: tl.constexpr, dtype: tl.constexpr, EARLY: tl.constexpr = False,
):  # fmt: skip
    """All pointers to words; `stride` counts them. PAIRS of channels; GATED: behind them in x as many gates."""
    pair = (tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P))[None, :]
    row = (tl.program_id(1) * ROWS + tl.arange(0, ROWS))[:, None]
    inside = (row < batch) & (pair < PAIRS)
    x += row.to(tl.int64) * stride + pair
    place = row.to(tl.int64) * PAIRS + pair
    slot = state + place * (TAPS - 1)
    if not EARLY:
        token, gate = _inputs(x, inside, PAIRS, GATED)
    if TAPS == 3:
        j = tl.arange(0, 2)
        words = tl.load(slot[:, :, None] + j, mask=inside[:, :, None], other=0)
        s0, s1 = tl.split(words)
    else:
        j = tl.arange(0, 4)
        s0, s1, s2, s3 = _words(slot, inside, 3)
    if EARLY:
        w0, w1, w2, w3 = _words(weight + pair * TAPS, pair < PAIRS, TAPS)
        follow(EARLY)
        token, gate = _inputs(x, inside, PAIRS, GATED)
    if TAPS == 3:
        new = tl.join(_following(s0, token), ((s1 >> 16) & 0xFFFF) | (token & -65536))
        tl.store(slot[:, :, None] + j, new, mask=inside[:, :, None])
    else:
        second = (token & 0xFFFF) | (s2 << 16)
        third = ((s2 >> 16) & 0xFFFF) | (token & -65536)
        new = tl.join(tl.join(_following(s0, s1), third), tl.join(second, s3))
        new = tl.reshape(new, (ROWS, BLOCK_P, 4))
        tl.store(slot[:, :, None] + j, new, mask=inside[:, :, None] & (j < 3))
    if not EARLY:
        w0, w1, w2, w3 = _words(weight + pair * TAPS, pair < PAIRS, TAPS)
    if HAS_BIAS:
        words = tl.load(bias + pair, mask=pair < PAIRS, other=0)
        a, b = _low(words, dtype), _high(words, dtype)
    else:
        a = tl.zeros((1, BLOCK_P), tl.float32)
        b = a
    x_a, x_b = _low(token, dtype), _high(token, dtype)
    if TAPS == 3:
        a, b = _add_tap(a, b, _low(s0, dtype), _low(s1, dtype), _low(w0, dtype), _high(w1, dtype))
        a, b = _add_tap(a, b, _high(s0, dtype), _high(s1, dtype), _high(w0, dtype), _low(w2, dtype))
        a, b = _add_tap(a, b, x_a, x_b, _low(w1, dtype), _high(w2, dtype))
    else:
        a, b = _add_tap(a, b, _low(s0, dtype), _high(s1, dtype), _low(w0, dtype), _low(w2, dtype))
        a, b = _add_tap(a, b, _high(s0, dtype), _low(s2, dtype), _high(w0, dtype), _high(w2, dtype))
        a, b = _add_tap(a, b, _low(s1, dtype), _high(s2, dtype), _low(w1, dtype), _low(w3, dtype))
        a, b = _add_tap(a, b, x_a, x_b, _high(w1, dtype), _high(w3, dtype))
    if SILU:
        a, b = a * sigmoid(a), b * sigmoid(b)
    if GATED:
        a, b = a * _low(gate, dtype), b * _high(gate, dtype)
    tl.store(y + place, _pack(a, b, dtype), mask=inside)
