"""y = x W^T + b, whose bias gradient is a sum of partial sums.

The products are PyTorch's. Its bias gradient is one reduction over all tokens that leaves most of a GPU idle: with
65,536 tokens it is a tenth of a small model's training step. db = sum over tokens of dy, in float32, in a fixed order.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .costs import total_bytes, total_flops
from .shapes import checked_shapes


class _BiasGradient(torch.autograd.Function):
    """The identity in y, which already holds the bias, and the bias's gradient."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(bias)
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor]:
        from .linear_triton import column_sum

        (bias,) = ctx.saved_tensors
        return dy, column_sum(dy.flatten(0, -2), bias.dtype, bias)


def reference(x_xD: Tensor, weight_ED: Tensor, bias_E: Tensor) -> Tensor:
    """`linear` in PyTorch, any device."""
    return F.linear(x_xD, weight_ED, bias_E)


@checked_shapes()
def linear(x_xD: Tensor, weight_ED: Tensor, bias_E: Tensor) -> Tensor:
    """x (..., D), weight (E,D), bias (E,) -> (..., E), under autocast in its dtype."""
    if x_xD.is_cuda and bias_E.element_size() <= 4 and bias_E.requires_grad and x_xD.dim() > 2:
        # As a matrix, for of more dimensions PyTorch adds the bias in a pass of its own where they are no dense rows.
        y_XE = F.linear(x_xD.flatten(0, -2), weight_ED, bias_E.detach())
        return _BiasGradient.apply(y_XE.unflatten(0, x_xD.shape[:-1]), bias_E)
    return reference(x_xD, weight_ED, bias_E)


def flops(*, rows: int, width: int, outputs: int, backward: bool = False) -> int:
    """2 D E per row."""
    return total_flops(2 * rows * width * outputs, backward=backward)


def bytes_moved(*, rows: int, width: int, outputs: int, element_bytes: int = 4, backward: bool = False) -> int:
    """x, weight and bias in, y out."""
    inputs = rows * width + outputs * (width + 1)
    return total_bytes(inputs, rows * outputs, element_bytes=element_bytes, backward=backward)
