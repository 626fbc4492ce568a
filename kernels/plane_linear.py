"""A projection whose outputs have time innermost: a plane (B,L) for each channel, as depthwise convolutions read them.

    y[b, l, e] = sum_d weight[e, d] x[b, l, d],   as W x^T in memory

A matrix product writes either order at the same cost, so that no convolution needs to turn its input. Its bias would be
one number a row there, which is no epilogue of the product: who reads the planes adds it, with one number a program.
"""

import torch
from torch import Tensor

from .costs import total_bytes, total_flops
from .linear import linear
from .long_conv import on_planes
from .precision import product_dtype
from .shapes import checked_shapes


@checked_shapes()
def plane_linear(x_BLD: Tensor, weight_ED: Tensor, bias_E: Tensor) -> tuple[Tensor, Tensor | None]:
    """x (B,L,D), weight (E,D), bias (E) -> y (B,L,E), and the bias if y is still without it.

    That is where the convolutions have kernels for planes: y then lies in memory as (E,B,L).
    """
    if not on_planes(x_BLD, product_dtype(x_BLD)):
        return linear(x_BLD, weight_ED, bias_E), None
    return planes_of(x_BLD, weight_ED), bias_E


def planes_of(x_BLD: Tensor, weight_ED: Tensor) -> Tensor:
    """x W^T, in memory as (E,B,L)."""
    y_EX = torch.mm(weight_ED, x_BLD.flatten(0, 1).t())
    return y_EX.view(len(weight_ED), *x_BLD.shape[:2]).permute(1, 2, 0)


def flops(*, rows: int, width: int, outputs: int, backward: bool = False) -> int:
    """2 D E per row."""
    return total_flops(2 * rows * width * outputs, backward=backward)


def bytes_moved(*, rows: int, width: int, outputs: int, element_bytes: int = 2, backward: bool = False) -> int:
    """x and the weight in, y out."""
    return total_bytes(rows * width + outputs * width, rows * outputs, element_bytes=element_bytes, backward=backward)
