"""The filter that a diagonal state space model is, from its parameters: S4D (arXiv 2206.11893) by the bilinear rule.

    taps[t, h] = sum_m Re(gain_h,m p_h,m^t)
    x = dt A / 2,   p = (1 + x) / (1 - x),   gain = 2 dt B C / (1 - x),   dt = exp(log_dt),   A = -exp(A_log) + i A_imag

M complex modes of each of H filters, B and C (H,M,2) as real and imaginary parts. Everything is computed in float32
(float64 for float64 parameters). Products are the only complex function used: PyTorch compiles many others when they
are first called on a GPU. The kernels raise p to powers by squaring, which rounds as an angle times t does; their
backward needs two sums over t for a mode, of g_t p^t and of g_t t p^(t-1), in a fixed order.
"""

import torch
from torch import Tensor

from .costs import total_bytes, total_flops
from .precision import accumulation_dtype
from .shapes import checked_shapes


def constants(
    log_dt_H: Tensor, A_log_HM: Tensor, A_imag_HM: Tensor, B_HM2: Tensor, C_HM2: Tensor
) -> tuple[Tensor, Tensor]:
    """p and the gain, complex (H,M)."""
    dtype = accumulation_dtype(log_dt_H.dtype)
    dt_Hx = log_dt_H.to(dtype).exp()[:, None]
    re, im = -A_log_HM.to(dtype).exp() * (dt_Hx / 2), A_imag_HM.to(dtype) * (dt_Hx / 2)
    size = (1 - re) ** 2 + im**2
    inverse_HM = torch.complex((1 - re) / size, im / size)  # of 1 - x
    B, C = (torch.view_as_complex(parameter.to(dtype)) for parameter in (B_HM2, C_HM2))
    return torch.complex(1 + re, im) * inverse_HM, B * C * (2 * dt_Hx) * inverse_HM


def powers(p_HM: Tensor, exponents_L: Tensor) -> tuple[Tensor, Tensor]:
    """The real and the imaginary part (L,H,M) of complex numbers to real powers."""
    exponents = exponents_L[:, None, None]
    size = torch.exp(exponents * (p_HM.real**2 + p_HM.imag**2).log() / 2)
    angle = exponents * torch.atan2(p_HM.imag, p_HM.real)
    return size * angle.cos(), size * angle.sin()


def reference(
    log_dt_H: Tensor, A_log_HM: Tensor, A_imag_HM: Tensor, B_HM2: Tensor, C_HM2: Tensor, length: int
) -> Tensor:
    """`diagonal_filter` in PyTorch: differentiable, any device."""
    p_HM, gain_HM = constants(log_dt_H, A_log_HM, A_imag_HM, B_HM2, C_HM2)
    re_LHM, im_LHM = powers(p_HM, torch.arange(length, dtype=gain_HM.real.dtype, device=log_dt_H.device))
    return (gain_HM.real * re_LHM - gain_HM.imag * im_LHM).sum(-1)


@checked_shapes()
def diagonal_filter(
    log_dt_H: Tensor, A_log_HM: Tensor, A_imag_HM: Tensor, B_HM2: Tensor, C_HM2: Tensor, length: int
) -> Tensor:
    """log_dt (H,), A_log and A_imag (H,M), B and C (H,M,2) -> the first `length` taps (L,H)."""
    parameters = (log_dt_H, A_log_HM, A_imag_HM, B_HM2, C_HM2)
    if not log_dt_H.is_cuda or any(parameter.dtype == torch.float64 for parameter in parameters):
        return reference(*parameters, length)
    from .diagonal_filter_triton import diagonal_filter as by_triton

    return by_triton(*parameters, length)


def flops(*, length: int, heads: int, modes: int, backward: bool = False) -> int:
    """For every mode and tap a complex product and the real part of another: 6 + 4."""
    return total_flops(10 * length * heads * modes, backward=backward)


def bytes_moved(*, length: int, heads: int, modes: int, element_bytes: int = 4, backward: bool = False) -> int:
    """The parameters in, the taps out."""
    return total_bytes(heads * (6 * modes + 1), length * heads, element_bytes=element_bytes, backward=backward)
