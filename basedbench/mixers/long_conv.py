"""A causal convolution as long as the sequence, one filter per channel: what Hyena and H3 are made of.

    y[t, d] = sum_{s <= t} filter[t - s, d] x[s, d]

Short sequences multiply by the filter's Toeplitz matrix. That is more arithmetic, but as matrix products which read
every operand once; the FFT's passes over complex numbers twice as long pay later. Both ways accumulate in float32
(float64 for float64) whatever autocast says.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from basedbench.kernels.precision import without_autocast

TOEPLITZ_LENGTH = 256  # the longest sequence for the product; at 512 a CPU core does the FFT seven times as fast


@without_autocast
def long_conv(x_BLxD: Tensor, filter_LD: Tensor) -> Tensor:
    """y (B, L, ..., D) in the dtype of x (B, L, ..., D), for a float32 or float64 filter (L, D), newest token first."""
    convolve = toeplitz_conv if len(filter_LD) <= TOEPLITZ_LENGTH else fft_conv
    return convolve(x_BLxD.to(filter_LD.dtype), filter_LD).to(x_BLxD.dtype)


def toeplitz_conv(x_BLxD: Tensor, filter_LD: Tensor) -> Tensor:
    """`long_conv` as one L x L product per channel."""
    length = len(filter_LD)
    windows_DLL = F.pad(filter_LD.t(), (length - 1, 0)).unfold(1, length, 1)  # row t: filter[t - L + 1] ... filter[t]
    x_DLBx = x_BLxD.movedim((-1, 1), (0, 1))
    y_DLX = torch.bmm(windows_DLL.flip(2), x_DLBx.flatten(2))
    return y_DLX.view(x_DLBx.shape).movedim((0, 1), (-1, 1))


def fft_conv(x_BLxD: Tensor, filter_LD: Tensor) -> Tensor:
    """`long_conv` as a product of spectra, padded to a power of two of at least 2 L - 1 so that nothing wraps round."""
    length, channels = filter_LD.shape
    size = 1 << (2 * length - 2).bit_length()
    filter_LxD = filter_LD.view(length, *[1] * (x_BLxD.dim() - 3), channels)
    spectrum = torch.fft.rfft(x_BLxD, size, dim=1) * torch.fft.rfft(filter_LxD, size, dim=0)
    return torch.fft.irfft(spectrum, size, dim=1)[:, :length]
