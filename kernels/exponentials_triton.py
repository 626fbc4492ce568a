"""exp and the logistic function, in few instructions and exact. Gluon kernels take them by `gluon.jit(NAME.fn)`."""

# mypy: allow-untyped-defs

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
ROUNDS = tl.constexpr(12582912.0)  # 1.5 2^23: added and taken away, it leaves a whole number


@triton.jit
def exponential(x, centre):
    """exp(x) as 2^n exp(x - n log(2)): rounding x log2(e) alone would be an error that grows with x.

    `centre`, in powers of two, is what the hardware's exp2 should be raised by.
    """
    n = (x * LOG2E + ROUNDS) - ROUNDS
    rest = (x - n * 0.693359375) + n * 2.12194440054690583e-4  # log(2) in two parts, products with the first are exact
    return tl.exp2(n) * tl.exp2(rest * LOG2E + centre)


@triton.jit
def sigmoid(x):
    """1 / (1 + exp(-x)) as the square of 1 / sqrt(1 + exp(-x)), which is 0 where the exponential overflows.

    Five instructions: a division takes as many, three of them for the range of its divisor.
    """
    root = tl.rsqrt(1.0 + tl.exp2(x * -LOG2E))
    return root * root
