"""The logistic function in five instructions: a division takes as many, three of them for the range of its divisor."""

# mypy: allow-untyped-defs

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def sigmoid(x):
    """1 / (1 + exp(-x)) as the square of 1 / sqrt(1 + exp(-x)), which is 0 where the exponential overflows."""
    root = tl.rsqrt(1.0 + tl.exp2(x * -LOG2E))
    return root * root
