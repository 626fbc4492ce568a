"""`diagonal_filter` in Triton: a launch for the taps, and one for the gradients of all parameters.

A program has one filter, all of its modes and, forward, some of its taps. Complex numbers are pairs. The gradient of a
complex number z is (d / d Re z) + i (d / d Im z) of the loss: behind a product z w it is the result's times conj(w).
"""

# mypy: allow-untyped-defs

import torch
import triton
import triton.language as tl
from torch import Tensor

from .exponentials_triton import exponential

TAPS = 32  # of a tile


@triton.jit
def _times(a, b, c, d):
    """(a + i b) (c + i d)."""
    return a * c - b * d, a * d + b * c


@triton.jit
def _over(a, b, c, d):
    """(a + i b) conj(c + i d)."""
    return a * c + b * d, b * c - a * d


@triton.jit
def _power(re, im, t, BITS: tl.constexpr):
    """(re + i im)^t for whole numbers t, by squaring."""
    size = t + tl.zeros_like(re).to(tl.int32)
    out_re, out_im = (size >= 0).to(tl.float32), (size < 0).to(tl.float32)  # 1
    for bit in tl.static_range(BITS):
        taken = ((t >> bit) & 1) == 1
        next_re, next_im = _times(out_re, out_im, re, im)
        out_re, out_im = tl.where(taken, next_re, out_re), tl.where(taken, next_im, out_im)
        re, im = _times(re, im, re, im)
    return out_re, out_im


@triton.jit
def _constants(log_dt, A_log, A_imag, B, C, h, modes, M: tl.constexpr, BLOCK_M: tl.constexpr):
    """Of a filter: dt, x, 1 / (1 - x), p, B, C and the gain, zero beyond the last mode."""
    m = tl.arange(0, BLOCK_M)
    at, there = h * M + m, m < modes
    dt = exponential(tl.load(log_dt + h).to(tl.float32), 0.0)
    x_re = -exponential(tl.load(A_log + at, mask=there, other=0.0).to(tl.float32), 0.0) * (dt / 2)
    x_im = tl.load(A_imag + at, mask=there, other=0.0).to(tl.float32) * (dt / 2)
    size = (1 - x_re) * (1 - x_re) + x_im * x_im
    u_re, u_im = (1 - x_re) / size, x_im / size
    p_re, p_im = _times(1 + x_re, x_im, u_re, u_im)
    b_re = tl.load(B + 2 * at, mask=there, other=0.0).to(tl.float32)
    b_im = tl.load(B + 2 * at + 1, mask=there, other=0.0).to(tl.float32)
    c_re = tl.load(C + 2 * at, mask=there, other=0.0).to(tl.float32)
    c_im = tl.load(C + 2 * at + 1, mask=there, other=0.0).to(tl.float32)
    g_re, g_im = _times(b_re, b_im, c_re, c_im)
    g_re, g_im = _times(2 * dt * g_re, 2 * dt * g_im, u_re, u_im)
    return dt, x_re, x_im, u_re, u_im, p_re, p_im, b_re, b_im, c_re, c_im, g_re, g_im


@triton.jit
def taps_kernel(
    log_dt, A_log, A_imag, B, C, taps, length, H: tl.constexpr, M: tl.constexpr, BLOCK_M: tl.constexpr,
    TAPS: tl.constexpr, BITS: tl.constexpr,
):  # fmt: skip
    h, t = tl.program_id(0), tl.program_id(1) * TAPS + tl.arange(0, TAPS)
    _, _, _, _, _, p_re, p_im, _, _, _, _, g_re, g_im = _constants(log_dt, A_log, A_imag, B, C, h, M, M, BLOCK_M)
    re, im = _power(p_re[None, :], p_im[None, :], t[:, None], BITS)
    tap = tl.sum(g_re[None, :] * re - g_im[None, :] * im, 1)
    tl.store(taps + h.to(tl.int64) * length + t, tap, mask=t < length)


@triton.jit
def mode_gradient_kernel(
    d_taps, log_dt, A_log, A_imag, B, C, d_log_dt, d_A_log, d_A_imag, d_B, d_C, length, d_head, d_tap,
    H: tl.constexpr, M: tl.constexpr, BLOCK_M: tl.constexpr, TAPS: tl.constexpr, BITS: tl.constexpr,
):  # fmt: skip
    h, m = tl.program_id(0), tl.arange(0, BLOCK_M)
    constants = _constants(log_dt, A_log, A_imag, B, C, h, M, M, BLOCK_M)
    dt, x_re, x_im, u_re, u_im, p_re, p_im, b_re, b_im, c_re, c_im, g_re, g_im = constants
    zero = tl.zeros((BLOCK_M,), tl.float32)
    sum_re, sum_im, slope_re, slope_im = zero, zero, zero, zero
    d_taps += h.to(tl.int64) * d_head
    for start in range(0, length, TAPS):
        t = start + tl.arange(0, TAPS)
        g = tl.load(d_taps + t.to(tl.int64) * d_tap, mask=t < length, other=0.0)[:, None]
        before = tl.maximum(t - 1, 0)[:, None]  # p^(t - 1), and p^t from it
        re, im = _power(p_re[None, :], p_im[None, :], before, BITS)
        slope_re += tl.sum(g * t[:, None].to(tl.float32) * re, 0)
        slope_im += tl.sum(g * t[:, None].to(tl.float32) * im, 0)
        next_re, next_im = _times(re, im, p_re[None, :], p_im[None, :])
        sum_re += tl.sum(g * tl.where(t[:, None] > 0, next_re, 1.0), 0)
        sum_im += tl.sum(g * tl.where(t[:, None] > 0, next_im, 0.0), 0)
    # Gradients of the gain, of p, and of x through both: dp / dx = 2 u^2, d gain / dx = gain u.
    of_g_re, of_g_im = sum_re, -sum_im
    of_p_re, of_p_im = _times(g_re, g_im, slope_re, slope_im)
    of_x_re, of_x_im = _over(2 * of_p_re, -2 * of_p_im, u_re, u_im)
    add_re, add_im = _over(of_g_re, of_g_im, g_re, g_im)
    add_log_dt = add_re
    of_x_re, of_x_im = _over(of_x_re + add_re, of_x_im + add_im, u_re, u_im)
    of_bc_re, of_bc_im = _over(2 * dt * of_g_re, 2 * dt * of_g_im, u_re, u_im)
    of_b_re, of_b_im = _over(of_bc_re, of_bc_im, c_re, c_im)
    of_c_re, of_c_im = _over(of_bc_re, of_bc_im, b_re, b_im)
    at, there = h * M + m, m < M
    tl.store(d_A_log + at, of_x_re * x_re, mask=there)
    tl.store(d_A_imag + at, of_x_im * (dt / 2), mask=there)
    tl.store(d_B + 2 * at, of_b_re, mask=there)
    tl.store(d_B + 2 * at + 1, of_b_im, mask=there)
    tl.store(d_C + 2 * at, of_c_re, mask=there)
    tl.store(d_C + 2 * at + 1, of_c_im, mask=there)
    of_log_dt = of_x_re * x_re + of_x_im * x_im + add_log_dt
    tl.store(d_log_dt + h, tl.sum(tl.where(there, of_log_dt, 0.0), 0))


def _shape(A_log: Tensor, length: int) -> dict[str, int]:
    heads, modes = A_log.shape
    return {
        "H": heads,
        "M": modes,
        "BLOCK_M": triton.next_power_of_2(modes),
        "TAPS": TAPS,
        "BITS": max(1, (length - 1).bit_length()),
    }


@torch.library.custom_op("basedbench::diagonal_filter", mutates_args=())
def _diagonal_filter(log_dt: Tensor, A_log: Tensor, A_imag: Tensor, B: Tensor, C: Tensor, length: int) -> Tensor:
    """(H,L) float32: a filter's taps side by side, as its convolution reads them."""
    taps = log_dt.new_empty((len(log_dt), length), dtype=torch.float32)
    parameters = [x.contiguous() for x in (log_dt, A_log, A_imag, B, C)]
    if taps.numel():
        taps_kernel[(len(log_dt), triton.cdiv(length, TAPS))](*parameters, taps, length, **_shape(A_log, length))
    return taps


@_diagonal_filter.register_fake
def _(log_dt: Tensor, A_log: Tensor, A_imag: Tensor, B: Tensor, C: Tensor, length: int) -> Tensor:
    return log_dt.new_empty((len(log_dt), length), dtype=torch.float32)


@torch.library.custom_op("basedbench::diagonal_filter_backward", mutates_args=())
def _diagonal_filter_backward(
    d_taps: Tensor, log_dt: Tensor, A_log: Tensor, A_imag: Tensor, B: Tensor, C: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    parameters = [x.contiguous() for x in (log_dt, A_log, A_imag, B, C)]
    gradients = [x.new_empty(x.shape) for x in parameters]
    length = d_taps.shape[1]
    mode_gradient_kernel[(len(log_dt),)](
        d_taps, *parameters, *gradients, length, *d_taps.stride(), **_shape(A_log, length), num_warps=8
    )
    return gradients[0], gradients[1], gradients[2], gradients[3], gradients[4]


@_diagonal_filter_backward.register_fake
def _(
    d_taps: Tensor, log_dt: Tensor, A_log: Tensor, A_imag: Tensor, B: Tensor, C: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    log_dt, A_log, A_imag, B, C = (x.new_empty(x.shape) for x in (log_dt, A_log, A_imag, B, C))
    return log_dt, A_log, A_imag, B, C


def _setup(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs[:-1])


def _gradients(ctx, d_taps: Tensor):
    return *_diagonal_filter_backward(d_taps, *ctx.saved_tensors), None


_diagonal_filter.register_autograd(_gradients, setup_context=_setup)


def diagonal_filter(
    log_dt_H: Tensor, A_log_HM: Tensor, A_imag_HM: Tensor, B_HM2: Tensor, C_HM2: Tensor, length: int
) -> Tensor:
    """`diagonal_filter.reference` by the kernels above."""
    return _diagonal_filter(log_dt_H, A_log_HM, A_imag_HM, B_HM2, C_HM2, length).t()
