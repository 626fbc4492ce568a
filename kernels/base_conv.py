"""BaseConv whole: `gated_conv` with the product that makes its gate.

    y = conv(u) * (W u + b) + u

Source: Zoology, arXiv 2312.04927. The product is PyTorch's. On CUDA one backward serves both: the gradient of u through
W is added to the convolution's by the product itself. Cut apart, autograd would add the two in a pass of its own: three
tensors (B,L,D) through memory.
"""

import torch.nn.functional as F
from torch import Tensor

from .gated_conv import gated_conv
from .gated_conv import reference as gated
from .packing import Packing, examples_apart
from .precision import product_dtype
from .shapes import checked_shapes
from .short_conv import on_triton


def reference(u_BLD: Tensor, gate_weight_DD: Tensor, gate_bias_D: Tensor, weight_DW: Tensor, bias_D: Tensor) -> Tensor:
    """`base_conv` in PyTorch: differentiable, any device."""
    return gated(u_BLD, F.linear(u_BLD, gate_weight_DD), weight_DW, bias_D, gate_bias_D)


@checked_shapes()
def base_conv(
    u_BLD: Tensor,
    gate_weight_DD: Tensor,
    gate_bias_D: Tensor,
    weight_DW: Tensor,
    bias_D: Tensor,
    packing: Packing | None = None,
) -> Tensor:
    """u (B,L,D), W (D,D) and b (D), the convolution's weight (D,W) and bias (D) -> y (B,L,D); with `packing` (1,T,D).

    Under autocast with u in another dtype than its products: `gated_conv` behind a product of its own.
    """
    if on_triton(u_BLD, weight_DW) and product_dtype(u_BLD) in (None, u_BLD.dtype):
        from .base_conv_triton import base_conv as joined

        return joined(u_BLD, gate_weight_DD, gate_bias_D, weight_DW, bias_D, packing)

    def composed(u_BLD: Tensor) -> Tensor:
        return gated_conv(u_BLD, F.linear(u_BLD, gate_weight_DD), weight_DW, bias_D, gate_bias_D)

    return examples_apart(composed, u_BLD, packing)
