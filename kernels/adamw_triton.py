"""`adamw_step` in one launch: a program per block of the flat buffers, which looks up whose block it is.

The gradients stay where the backward left them, in tensors of their own. PyTorch's fused step gives a tensor one
program per 65,536 elements: eight for the embedding of a small model, a few per cent of the device.
"""

# mypy: allow-untyped-defs

import math
from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from .adamw import ALIGNMENT, Coefficients, Moments, offsets


@triton.jit
def adamw_kernel(
    gradients, starts, sizes, parameters, first, second, copy, steps, learning_rate, beta1, beta2, log_beta1, log_beta2,
    eps, decay,
    TERMS: tl.constexpr, HAS_COPY: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """gradients: a tuple of tensors, each with its place in the flat buffers and its size. Logarithms of base 2."""
    block = tl.program_id(0) * BLOCK
    column = tl.arange(0, BLOCK)
    # Blocks are whole in the buffers, with zeros behind a tensor's end: nothing here waits for whose block it is.
    at = block + column
    p = tl.load(parameters + at)
    m = tl.load(first + at)
    v = tl.load(second + at)
    g = tl.zeros([BLOCK], tl.float32)
    left = 0
    for i in tl.static_range(TERMS):
        offset = block - starts[i]
        if (offset >= 0) & (offset < sizes[i]):
            left = sizes[i] - offset
            g += tl.load(gradients[i] + offset + column, mask=column < left, other=0.0).to(tl.float32)
    t = (tl.load(steps) + 1).to(tl.float64)
    correction1 = (1.0 - tl.exp2(t * log_beta1)).to(tl.float32)
    correction2 = (1.0 - tl.exp2(t * log_beta2)).to(tl.float32)
    rate = tl.load(learning_rate)
    m += (g - m) * (1.0 - beta1)
    v = beta2 * v + (1.0 - beta2) * g * g
    p = p * (1.0 - rate * decay) - rate / correction1 * m / (tl.sqrt(v) / tl.sqrt(correction2) + eps)
    tl.store(parameters + at, p)
    tl.store(first + at, m)
    tl.store(second + at, v)
    if HAS_COPY:
        tl.store(copy + at, p.to(copy.dtype.element_ty))


def adamw_step(
    gradients: Sequence[Sequence[Tensor]], moments: Moments, learning_rate: Tensor, coefficients: Coefficients
) -> None:
    """`adamw.reference` by the kernel above."""
    places = offsets([terms[0].numel() for terms in gradients])
    terms = [(term, start) for terms, start in zip(gradients, places, strict=False) for term in terms]
    beta1, beta2, eps, decay = coefficients
    copy = moments.parameters if moments.copy is None else moments.copy
    adamw_kernel[(places[-1] // ALIGNMENT,)](
        tuple(term.contiguous() for term, _ in terms), tuple(start for _, start in terms),
        tuple(term.numel() for term, _ in terms), moments.parameters, moments.first, moments.second, copy,
        moments.steps, learning_rate, beta1, beta2, math.log2(beta1), math.log2(beta2), eps, decay,
        TERMS=len(terms), HAS_COPY=moments.copy is not None, BLOCK=ALIGNMENT, num_warps=4,
    )  # fmt: skip
