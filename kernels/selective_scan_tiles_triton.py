"""What the selective scan's kernels, in Triton and in Gluon, share of arithmetic."""

# mypy: allow-untyped-defs, disable-error-code="assignment"

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)


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
def load_constant(pointer, d, inside, HAS: tl.constexpr):
    """A row of float32 parameters, or zeros."""
    constant = tl.zeros(d.shape, tl.float32)
    if HAS:
        constant = tl.load(pointer + d, mask=inside, other=0.0).to(tl.float32)
    return constant
