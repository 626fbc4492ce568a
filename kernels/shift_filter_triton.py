"""`shift_filter` in Triton: a program has one channel, and every pair of its taps in registers."""

# mypy: allow-untyped-defs

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _at(x, place, N: tl.constexpr, step=1):
    """Of a channel's N numbers, so far apart, those at these places, zeros elsewhere."""
    return tl.load(x + place * step, mask=(place >= 0) & (place < N), other=0.0).to(tl.float32)


@triton.jit
def taps_kernel(B, C, taps, N: tl.constexpr, BLOCK: tl.constexpr):
    row, n = tl.program_id(0) * N, tl.arange(0, BLOCK)
    pairs = _at(B + row, n, N)[None, :] * _at(C + row, n[:, None] + n[None, :], N)
    tl.store(taps + row + n, tl.sum(pairs, 1), mask=n < N)


@triton.jit
def gradient_kernel(d_taps, B, C, d_B, d_C, d_channel, d_tap, N: tl.constexpr, BLOCK: tl.constexpr):
    row, n = tl.program_id(0) * N, tl.arange(0, BLOCK)
    d_taps += tl.program_id(0) * d_channel
    of_B = _at(d_taps, n, N, d_tap)[None, :] * _at(C + row, n[:, None] + n[None, :], N)
    of_C = _at(B + row, n, N)[None, :] * _at(d_taps, n[:, None] - n[None, :], N, d_tap)
    tl.store(d_B + row + n, tl.sum(of_B, 1), mask=n < N)
    tl.store(d_C + row + n, tl.sum(of_C, 1), mask=n < N)


@torch.library.custom_op("basedbench::shift_filter", mutates_args=())
def _shift_filter(B: Tensor, C: Tensor) -> Tensor:
    """(D,N) float32: a filter's taps side by side, as its convolution reads them."""
    taps = B.new_empty(B.shape, dtype=torch.float32)
    if taps.numel():
        count = B.shape[1]
        taps_kernel[(len(B),)](B.contiguous(), C.contiguous(), taps, N=count, BLOCK=triton.next_power_of_2(count))
    return taps


@_shift_filter.register_fake
def _(B, C):
    return B.new_empty(B.shape, dtype=torch.float32)


@torch.library.custom_op("basedbench::shift_filter_backward", mutates_args=())
def _shift_filter_backward(d_taps: Tensor, B: Tensor, C: Tensor) -> tuple[Tensor, Tensor]:
    d_B, d_C = B.new_empty(B.shape), C.new_empty(C.shape)
    if d_B.numel():
        count = B.shape[1]
        gradient_kernel[(len(B),)](
            d_taps,
            B.contiguous(),
            C.contiguous(),
            d_B,
            d_C,
            *d_taps.stride(),
            N=count,
            BLOCK=triton.next_power_of_2(count),
        )
    return d_B, d_C


@_shift_filter_backward.register_fake
def _(d_taps, B, C):
    return B.new_empty(B.shape), C.new_empty(C.shape)


def _setup(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs)


def _gradients(ctx, d_taps: Tensor):
    return _shift_filter_backward(d_taps, *ctx.saved_tensors)


_shift_filter.register_autograd(_gradients, setup_context=_setup)


def shift_filter(B_DN: Tensor, C_DN: Tensor) -> Tensor:
    """`shift_filter.reference` by the kernels above."""
    return _shift_filter(B_DN, C_DN).t()
