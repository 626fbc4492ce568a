"""A short depthwise causal convolution of planes, after the bias of the projection that wrote them (`plane_linear`).

    y_t,d = bias_d + sum_w weight_d,w (x + input_bias)_t-(W-1)+w,d,   zeros before the start

The same as `short_conv` of x + input_bias, with time innermost in memory: x and y are (B,L,D) and lie as (D,B,L).
Products and sums are float32. The backward gives the gradients of both biases with that of the weight, as sums of
partial sums in a fixed order.
"""

from typing import cast

from torch import Tensor

from .costs import total_bytes, total_flops
from .packing import Packing, examples_apart
from .precision import accumulation_dtype
from .shapes import checked_shapes
from .short_conv import MOST_TAPS
from .short_conv import reference as convolved


def reference(x_BLD: Tensor, input_bias_D: Tensor, weight_DW: Tensor, bias_D: Tensor) -> Tensor:
    """`plane_conv` in PyTorch: differentiable, any device and layout."""
    dtype = accumulation_dtype(x_BLD.dtype)
    wide = x_BLD.to(dtype) + input_bias_D.to(dtype)
    return cast(Tensor, convolved(wide, weight_DW, bias_D)).to(x_BLD.dtype)


@checked_shapes()
def plane_conv(
    x_BLD: Tensor, input_bias_D: Tensor, weight_DW: Tensor, bias_D: Tensor, packing: Packing | None = None
) -> Tensor:
    """x (B,L,D), biases (D), weight (D,W) -> y (B,L,D), which on CUDA lies in memory as (D,B,L); `packing`: (1,T,D)."""
    if not x_BLD.is_cuda or weight_DW.shape[1] > MOST_TAPS:
        return examples_apart(lambda x_BLD: reference(x_BLD, input_bias_D, weight_DW, bias_D), x_BLD, packing)
    from .plane_conv_triton import plane_conv as by_triton

    return by_triton(x_BLD, input_bias_D, weight_DW, bias_D, packing)


def flops(*, batch: int, length: int, channels: int, taps: int, backward: bool = False) -> int:
    """2 W per token and channel, and one for the input's bias."""
    return total_flops(batch * length * channels * (2 * taps + 1), backward=backward)


def bytes_moved(
    *, batch: int, length: int, channels: int, taps: int, element_bytes: int = 2, backward: bool = False
) -> int:
    """x and the parameters in, y out."""
    tokens = batch * length * channels
    return total_bytes(tokens + channels * (taps + 2), tokens, element_bytes=element_bytes, backward=backward)
