"""A causal convolution as long as the sequence, and the same between gates: what Hyena and H3 are made of.

    long_conv:        y[t, d] = skip[d mod G] x[t, d] + sum_{s <= t} taps[t - s, d mod G] x[s, d]
    gated_long_conv:  y[t, j, h] = sum_i q[t, i, h] long_conv(k[:, i, h] v[:, j, h])[t],  with the filter of head h

Hyena (arXiv 2302.10866, order 2) has one channel a head: y = q * long_conv(k * v). H3 (arXiv 2212.14052) has R: every
key with every value, all by the head's filter, and before that k = long_conv(k, shift), with a filter for each of its
channels. A filter (N,G) has the current token's tap first; N may be less or more than L. A head's channel i is i H + h.

Filters are float32 and so are products and sums (float64 for float64 inputs), autocast or not; x may be narrower, and
y, and the shifted k, have its dtype. What matrix units multiply, taps, k v and q dy, is rounded to the dtype of x.
Stored for the backward: x, the shifted k and the convolution of every product, R numbers for each of y, in the dtype of
x; by matrix units the products, and a table of each filter, 8 N numbers, too. Gradients of filters are sums over all
sequences in a fixed order.

The reference multiplies short sequences by the filter's Toeplitz matrix: more arithmetic than the FFT's, but as
matrix products which read every operand once; the FFT's passes over complex numbers twice as long pay later. On CUDA
the Triton kernels take every length, with L (L + 1) / 2 multiply-adds for each channel: gated, for bfloat16, on
matrix units (`long_conv_toeplitz_triton`), otherwise in float32 (`long_conv_gluon`). float64 stays with the
reference, and heads of more than `MOST_CHANNELS` channels have their products formed by PyTorch.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from .costs import causal_pairs, total_bytes, total_flops
from .gluon_modules import usable
from .packing import Packing, examples_apart
from .precision import without_autocast
from .shapes import checked_shapes

TOEPLITZ_LENGTH = 256  # the longest sequence for the product; at 512 a CPU core does the FFT seven times as fast
MOST_CHANNELS = 2  # of a head


@without_autocast
def reference(x_BLD: Tensor, taps_NG: Tensor, skip_G: Tensor | None = None) -> Tensor:
    """`long_conv` in PyTorch: differentiable, any device."""
    length, groups = x_BLD.shape[1], taps_NG.shape[1]
    if not length:
        return x_BLD.clone()
    convolve = toeplitz_conv if length <= TOEPLITZ_LENGTH else fft_conv
    near_NG = taps_NG[:length]
    filter_LG = F.pad(near_NG, (0, 0, 0, length - len(near_NG)))
    if skip_G is not None:
        filter_LG = filter_LG + F.pad(skip_G[None], (0, 0, 0, length - 1))
    x_BLRG = x_BLD.to(filter_LG.dtype).unflatten(-1, (-1, groups))
    return convolve(x_BLRG, filter_LG).flatten(-2).to(x_BLD.dtype)


def toeplitz_conv(x_BLRG: Tensor, filter_LG: Tensor) -> Tensor:
    """The convolution as one L x L product per filter."""
    length = len(filter_LG)
    windows_GLL = F.pad(filter_LG.t(), (length - 1, 0)).unfold(1, length, 1)  # row t: filter[t - L + 1] ... filter[t]
    x_GLBR = x_BLRG.permute(3, 1, 0, 2)
    y_GLX = torch.bmm(windows_GLL.flip(2), x_GLBR.flatten(2))
    return y_GLX.view(x_GLBR.shape).permute(2, 1, 3, 0)


def fft_conv(x_BLRG: Tensor, filter_LG: Tensor) -> Tensor:
    """The convolution as a product of spectra, padded to a power of two of at least 2 L - 1: nothing wraps round."""
    length = len(filter_LG)
    size = 1 << (2 * length - 2).bit_length()
    spectrum = torch.fft.rfft(x_BLRG, size, dim=1) * torch.fft.rfft(filter_LG[:, None], size, dim=0)
    return torch.fft.irfft(spectrum, size, dim=1)[:, :length]


def gated_reference(
    x_BLE: Tensor,
    taps_NH: Tensor,
    skip_H: Tensor | None = None,
    shift_ND: Tensor | None = None,
    shift_skip_D: Tensor | None = None,
    *,
    order: str = "qkv",
    bias_E: Tensor | None = None,
    convolve: Callable[[Tensor, Tensor, Tensor | None], Tensor] = reference,
) -> Tensor:
    """`gated_long_conv` in PyTorch: differentiable, any device. Forms every product before it convolves."""
    dtype, wide = x_BLE.dtype, taps_NH.dtype
    x_BLE = x_BLE if bias_E is None else x_BLE.to(wide) + bias_E.to(wide)
    q_BLD, k_BLD, v_BLD = (x_BLE.chunk(3, -1)[order.index(name)] for name in "qkv")
    if shift_ND is not None:
        k_BLD = convolve(k_BLD, shift_ND, shift_skip_D)
    heads = taps_NH.shape[1]
    q_BLRH, k_BLRH, v_BLRH = (x.to(taps_NH.dtype).unflatten(-1, (-1, heads)) for x in (q_BLD, k_BLD, v_BLD))
    kv_BLRRH = k_BLRH.unsqueeze(-2) * v_BLRH.unsqueeze(-3)
    c_BLRRH = convolve(kv_BLRRH.flatten(2), taps_NH, skip_H).view(kv_BLRRH.shape)
    return (q_BLRH.unsqueeze(-2) * c_BLRRH).sum(-3).flatten(-2).to(dtype)


@checked_shapes({"G divides D": lambda G, D: G > 0 and D % G == 0})
def long_conv(x_BLD: Tensor, taps_NG: Tensor, skip_G: Tensor | None = None) -> Tensor:
    """x (B,L,D), filters (N,G) and the token's own weight (G,), G a divisor of D -> y (B,L,D)."""
    if not on_triton(x_BLD, taps_NG):
        return reference(x_BLD, taps_NG, skip_G)
    from .long_conv_triton import long_conv as by_triton

    return by_triton(x_BLD, taps_NG, skip_G)


@checked_shapes(
    {"E = 3 D": lambda E, D: E == 3 * D, "3 H divides E": lambda H, E: H > 0 and E % (3 * H) == 0}, shift_ND="MD"
)
def gated_long_conv(
    x_BLE: Tensor,
    taps_NH: Tensor,
    skip_H: Tensor | None = None,
    shift_ND: Tensor | None = None,
    shift_skip_D: Tensor | None = None,
    *,
    order: str = "qkv",
    bias_E: Tensor | None = None,
    packing: Packing | None = None,
) -> Tensor:
    """x (B,L,3 D), which is q, k and v (B,L,D) side by side in this order, and filters (N,H), (N,D) -> y (B,L,D).

    A bias (3 D,) is added to x first. What the kernels for planes take and give has time innermost in memory. With
    `packing` x and y are (1,T,...).
    """
    if sorted(order) != ["k", "q", "v"]:
        raise ValueError(f"order must name q, k and v once each, not {order!r}")
    filters = (taps_NH, skip_H, shift_ND, shift_skip_D)
    narrow = x_BLE.shape[2] <= 3 * MOST_CHANNELS * taps_NH.shape[1]
    if narrow and taps_NH.dtype != torch.float64 and on_planes(x_BLE):
        from .long_conv_planes_triton import gated_long_conv as by_planes

        return by_planes(x_BLE, *filters, order=order, bias_E=bias_E, packing=packing)

    def apart(x_BLE: Tensor) -> Tensor:
        if not on_triton(x_BLE, taps_NH):
            return gated_reference(x_BLE, *filters, order=order, bias_E=bias_E)
        if bias_E is not None or not narrow:
            return gated_reference(x_BLE, *filters, order=order, bias_E=bias_E, convolve=long_conv)
        from .long_conv_triton import gated_long_conv as by_triton

        return by_triton(x_BLE, *filters, order=order)

    return examples_apart(apart, x_BLE, packing)


def on_planes(x: Tensor, dtype: torch.dtype | None = None) -> bool:
    """Whether matrix units take the gated convolution of what is x's shape, in this dtype or x's own."""
    taken = x.is_cuda and (dtype or x.dtype) == torch.bfloat16 and x.numel() > 0
    return taken and usable("long_conv_planes_triton", "gated_long_conv")


def on_triton(x: Tensor, taps: Tensor) -> bool:
    """Whether the kernels take a convolution of x with these filters."""
    return x.is_cuda and torch.float64 not in (x.dtype, taps.dtype) and usable("long_conv_triton", "long_conv")


def flops(*, batch: int, length: int, channels: int, backward: bool = False) -> int:
    """Two for every channel and pair of tokens."""
    return total_flops(2 * batch * causal_pairs(length) * channels, backward=backward)


def bytes_moved(*, batch: int, length: int, channels: int, element_bytes: int = 2, backward: bool = False) -> int:
    """x and the filters in, y out; the filters at `element_bytes` too."""
    tokens = batch * length * channels
    return total_bytes(tokens + length * channels, tokens, element_bytes=element_bytes, backward=backward)


def gated_flops(*, batch: int, length: int, channels: int, head_channels: int = 1, backward: bool = False) -> int:
    """Two for every product of a head and pair of tokens, three for its gates."""
    products = batch * channels * head_channels
    return total_flops(products * (2 * causal_pairs(length) + 3 * length), backward=backward)


def gated_bytes_moved(
    *, batch: int, length: int, channels: int, head_channels: int = 1, element_bytes: int = 2, backward: bool = False
) -> int:
    """x and the heads' filters in, y out; the filters at `element_bytes` too."""
    tokens = batch * length * channels
    inputs = 3 * tokens + length * channels // head_channels
    return total_bytes(inputs, tokens, element_bytes=element_bytes, backward=backward)
