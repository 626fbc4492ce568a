"""Offsets of 32 bits: what some kernels count with inside one sequence. From sequence to sequence all have 64.

A sequence of (B,L,...) spans 1 + sum over its dimensions of (size - 1) stride numbers: more than it has if it is a
slice of something wider. Of a projection to q, k and v, 16 heads of 64, q spans more than 2^31 from 699,052 tokens on.
"""

import math

from torch import Tensor

LIMIT = 2**31


def fit(*tensors: Tensor) -> bool:
    """Whether offsets in a sequence of each, and of a contiguous tensor of its shape, have 32 bits."""
    return all(span(x) <= LIMIT for x in tensors)


def span(x: Tensor) -> int:
    """Numbers that a sequence of x covers, as it is or contiguous, whichever is more."""
    sizes, strides = x.shape[1:], x.stride()[1:]
    within = 1 + sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True))
    return max(within, math.prod(sizes))
