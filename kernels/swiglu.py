"""SwiGLU, the gate of the language models' MLPs: y = a silu(b) for x = [a, b], the output of one product.

    silu(b) = b s,   s = 1 / (1 + exp(-b)),   da = dy b s,   db = dy a s (1 + b (1 - s))

Source: Shazeer, arXiv 2002.05202, without biases; the second half gates, as in the released BASED models. float32
inside (float64 for float64 inputs); saved: x.
"""

import torch.nn.functional as F
from torch import Tensor

from .costs import total_bytes
from .precision import accumulation_dtype
from .shapes import checked_shapes


def reference(x_xE: Tensor) -> Tensor:
    """`swiglu` in PyTorch: differentiable, any device."""
    value, gate = x_xE.to(accumulation_dtype(x_xE.dtype)).chunk(2, dim=-1)
    return (F.silu(gate) * value).to(x_xE.dtype)


@checked_shapes()
def swiglu(x_xE: Tensor) -> Tensor:
    """x (..., 2 I) -> y (..., I). Raises ValueError for an odd last dimension."""
    if x_xE.shape[-1] % 2:
        raise ValueError(f"swiglu halves the last dimension, which is {x_xE.shape[-1]}")
    if x_xE.is_cuda:
        from . import swiglu_triton as kernels

        if x_xE.dtype in kernels.DTYPES:
            return kernels.swiglu(x_xE)
    return reference(x_xE)


def flops(*, rows: int, inner: int, backward: bool = False) -> int:
    """Two products per output, the exponential as one operation more; backward: seven more."""
    return rows * inner * (10 if backward else 3)


def bytes_moved(*, rows: int, inner: int, element_bytes: int = 2, backward: bool = False) -> int:
    """x in, y out; the backward reads x and dy and writes dx."""
    return total_bytes(rows * 2 * inner, rows * inner, element_bytes=element_bytes, backward=backward)
