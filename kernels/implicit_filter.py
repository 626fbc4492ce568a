"""The filter of Hyena: a small network of the position, with sines, damped in time (arXiv 2302.10866, section 3.3).

    h_0 = features[t],   h_i = sin(frequency * (W_i h_i-1 + b_i)) for i = 1, 2, 3
    taps[t, d] = (out h_3)[d] exp(-rate_d t / (N - 1)),   rate_d evenly from `slowest` to `fastest` over the channels

features (N,E) are positions and learned, as is one frequency a unit; the first L of N rows make L taps. float32
(float64 for float64 parameters), autocast or not. The kernels' products are float32 too, by FMA; the backward
computes the network again, and its programs leave one row of partial gradients each, added in a fixed order.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .costs import total_bytes, total_flops
from .precision import accumulation_dtype, without_autocast
from .shapes import checked_shapes

LAYERS = 3
WIDEST = 128  # units and features in a program's registers


@without_autocast
def reference(
    features_NE: Tensor,
    hidden: list[Tensor],
    frequency_F: Tensor,
    out_DF: Tensor,
    *,
    length: int,
    slowest: float,
    fastest: float,
) -> Tensor:
    """`implicit_filter` in PyTorch: differentiable, any device."""
    dtype, device = accumulation_dtype(features_NE.dtype), features_NE.device
    h = features_NE[:length].to(dtype)
    for weight, bias in zip(hidden[::2], hidden[1::2], strict=True):
        h = torch.sin(frequency_F.to(dtype) * F.linear(h, weight.to(dtype), bias.to(dtype)))
    rate_D = torch.linspace(slowest, fastest, len(out_DF), dtype=dtype, device=device)
    time_L = torch.arange(length, dtype=dtype, device=device) / (len(features_NE) - 1)
    return F.linear(h, out_DF.to(dtype)) * torch.exp(-time_L[:, None] * rate_D)


@checked_shapes(hidden=("FE", "F", "FF", "F", "FF", "F"))
def implicit_filter(
    features_NE: Tensor,
    hidden: list[Tensor],
    frequency_F: Tensor,
    out_DF: Tensor,
    *,
    length: int,
    slowest: float,
    fastest: float,
) -> Tensor:
    """features (N,E), W_1, b_1, W_2, b_2, W_3, b_3 of `hidden`, frequency (F,), out (D,F) -> taps (L,D)."""
    tensors = (features_NE, *hidden, frequency_F, out_DF)
    options = {"slowest": slowest, "fastest": fastest}
    usual = len(hidden) == 2 * LAYERS and max(features_NE.shape[1], len(frequency_F)) <= WIDEST
    if not (usual and features_NE.is_cuda and all(tensor.dtype == torch.float32 for tensor in tensors)):
        return reference(features_NE, hidden, frequency_F, out_DF, length=length, **options)
    from .implicit_filter_triton import implicit_filter as by_triton

    return by_triton(features_NE, hidden, frequency_F, out_DF, length=length, **options)


def flops(*, length: int, features: int, units: int, channels: int, backward: bool = False) -> int:
    """The network's products."""
    return total_flops(2 * length * units * (features + (LAYERS - 1) * units + channels), backward=backward)


def bytes_moved(
    *, length: int, features: int, units: int, channels: int, element_bytes: int = 4, backward: bool = False
) -> int:
    """Features and parameters in, taps out."""
    parameters = units * (features + (LAYERS - 1) * units + channels + LAYERS + 1)
    inputs = parameters + length * features
    return total_bytes(inputs, length * channels, element_bytes=element_bytes, backward=backward)
