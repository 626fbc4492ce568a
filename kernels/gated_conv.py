"""BaseConv around its matrix product: a short causal convolution times a gate, plus the input.

    y_t = conv(u)_t * (gate_t + gate_bias) + u_t,   conv as in `short_conv`, with bias

Equation of BaseConv in Zoology, arXiv 2312.04927. The gate is a linear map of u: its product stays with cuBLAS, its
bias comes here, where the gradient costs no further pass. Products and sums in float32 (float64 for float64 inputs); y
has the promoted dtype of u and gate. The backward recomputes conv(u) from u; nothing else is stored.
"""

from typing import cast

import torch
from torch import Tensor

from .costs import total_bytes, total_flops
from .shapes import checked_shapes
from .short_conv import on_triton
from .short_conv import reference as convolved


def reference(u_BLD: Tensor, gate_BLD: Tensor, weight_DW: Tensor, bias_D: Tensor, gate_bias_D: Tensor) -> Tensor:
    """`gated_conv` in PyTorch: differentiable, any device."""
    return torch.addcmul(u_BLD, cast(Tensor, convolved(u_BLD, weight_DW, bias_D)), gate_BLD + gate_bias_D)


@checked_shapes()
def gated_conv(u_BLD: Tensor, gate_BLD: Tensor, weight_DW: Tensor, bias_D: Tensor, gate_bias_D: Tensor) -> Tensor:
    """u, gate (B,L,D), weight (D,W), the convolution's bias and the gate's (D) -> y (B,L,D)."""
    if on_triton(u_BLD, weight_DW):
        from .short_conv_triton import gated_conv as by_triton

        return by_triton(u_BLD, gate_BLD, weight_DW, bias_D, gate_bias_D)
    return reference(u_BLD, gate_BLD, weight_DW, bias_D, gate_bias_D)


def flops(*, batch: int, length: int, channels: int, taps: int, backward: bool = False) -> int:
    """2 W per token and channel for the convolution, 3 for gate and sum."""
    return total_flops(batch * length * channels * (2 * taps + 3), backward=backward)


def bytes_moved(
    *, batch: int, length: int, channels: int, taps: int, element_bytes: int = 4, backward: bool = False
) -> int:
    """u, gate and the parameters in, y out."""
    tokens = batch * length * channels
    return total_bytes(2 * tokens + channels * (taps + 2), tokens, element_bytes=element_bytes, backward=backward)
