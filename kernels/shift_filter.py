"""The filter that H3's shift is, from its parameters: a correlation within each channel (arXiv 2212.14052).

    taps[j, d] = sum_i B[d, i] C[d, i + j],   i + j < N

float32 (float64 for float64 parameters), autocast or not. On CUDA up to `MOST_TAPS` taps are a launch, and the
gradients of B and C together another.
"""

import torch
from torch import Tensor

from .costs import total_bytes, total_flops
from .long_conv import reference as convolved
from .precision import accumulation_dtype
from .shapes import checked_shapes

MOST_TAPS = 64  # of which every pair is in a program's registers


def reference(B_DN: Tensor, C_DN: Tensor) -> Tensor:
    """`shift_filter` in PyTorch: differentiable, any device; a convolution of C from its end on."""
    B_ND, C_ND = (x.to(accumulation_dtype(x.dtype)).t() for x in (B_DN, C_DN))
    return convolved(C_ND.flip(0)[None], B_ND)[0].flip(0)


@checked_shapes()
def shift_filter(B_DN: Tensor, C_DN: Tensor) -> Tensor:
    """B and C (D,N) -> taps (N,D), the current token's first."""
    if not B_DN.is_cuda or B_DN.shape[1] > MOST_TAPS or torch.float64 in (B_DN.dtype, C_DN.dtype):
        return reference(B_DN, C_DN)
    from .shift_filter_triton import shift_filter as by_triton

    return by_triton(B_DN, C_DN)


def flops(*, channels: int, taps: int, backward: bool = False) -> int:
    """Two for every pair."""
    return total_flops(channels * taps * (taps + 1), backward=backward)


def bytes_moved(*, channels: int, taps: int, element_bytes: int = 4, backward: bool = False) -> int:
    """B and C in, the taps out."""
    return total_bytes(2 * channels * taps, channels * taps, element_bytes=element_bytes, backward=backward)
