"""What the selective scan's kernels, in Triton and in Gluon, share of arithmetic."""

# mypy: allow-untyped-defs, disable-error-code="assignment"

import triton
import triton.language as tl

from .exponentials_triton import LOG2E

CENTRE = tl.constexpr(1.55e-8)  # 0.18 of 2^-24, in powers of two: by so much the hardware's exp2 is low on average
RECIPROCAL = tl.constexpr("rcp.approx.ftz.f32 $0, $1;")


@triton.jit
def reciprocal(x):
    """1 / x in one instruction, to the last bit: a division would first look for results that are no normal numbers."""
    return tl.inline_asm_elementwise(RECIPROCAL, "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1)


@triton.jit
def rates(A, LOG_A: tl.constexpr):
    """A / log 2; with LOG_A what is given is log(-A), as models keep it."""
    A = A.to(tl.float32)
    if LOG_A:
        A = -tl.exp2(A * LOG2E)
    return A * LOG2E


@triton.jit
def decay(step, A2):
    """exp(step A), A2 = A / log 2. Decays multiply: what they lack on average adds up over as many steps as last."""
    return tl.exp2(step * A2 + CENTRE)


@triton.jit
def softplus(x):
    """max(x, 0) + log(1 + e), e = exp(-|x|)."""
    return softplus_of(x, tl.exp2(tl.abs(x) * -LOG2E))


@triton.jit
def softplus_of(x, e):
    """e times a polynomial, which is within 6e-9 of log(1 + e) / e.

    It starts with 1, so that small steps are exact too; and special functions are what the forward waits for.
    """
    series = 0.1068055624 + e * (-0.0576644511 + e * (0.0202045885 + e * -0.0033184733))
    series = -0.2495858746 + e * (0.1969540072 + e * (-0.1535539676 + e * series))
    series = 1.0 + e * (-0.4999993276 + e * (0.3333051133 + e * series))
    return tl.maximum(x, 0.0) + e * series


@triton.jit
def sigmoid(x):
    return reciprocal(1.0 + tl.exp2(x * -LOG2E))


@triton.jit
def step_size(delta, bias, mask, SOFTPLUS: tl.constexpr):
    """The step size, 0 outside the sequence: there the state stays as it is."""
    delta = delta.to(tl.float32) + bias
    if SOFTPLUS:
        delta = softplus(delta)
    return tl.where(mask, delta, 0.0)


@triton.jit
def step_and_slope(delta, bias, mask):
    """softplus of delta + bias and its derivative, both 0 outside the sequence."""
    x = delta.to(tl.float32) + bias
    e = tl.exp2(tl.abs(x) * -LOG2E)
    slope = reciprocal(1.0 + e) * tl.where(x < 0.0, e, 1.0)
    return tl.where(mask, softplus_of(x, e), 0.0), tl.where(mask, slope, 0.0)


@triton.jit
def load_constant(pointer, d, inside, HAS: tl.constexpr):
    """A row of float32 parameters, or zeros."""
    constant = tl.zeros(d.shape, tl.float32)
    if HAS:
        constant = tl.load(pointer + d, mask=inside, other=0.0).to(tl.float32)
    return constant
