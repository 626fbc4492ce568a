"""`plane_conv` in Triton: a program has some tokens of one channel, whose sequences lie one after another in memory.

Neighbours in time are loads of the same lines again, shifted. The backward's programs each leave one row of partial
sums for the parameters, added in a fixed order.
"""

# mypy: allow-untyped-defs, disable-error-code="assignment,misc"
# ruff: noqa: RUF005 (Triton's tuples cannot be unpacked)

import torch
import triton
import triton.language as tl
from torch import Tensor

from .partial_sums_triton import sum_parts

TOKENS = 2048  # of a tile
PROGRAMS = 16  # of a channel's backward, at most; fixed, so that the order of its sums is the same on every device


@triton.jit
def _shifted(x, place, t, tokens, length, BACK: tl.constexpr):
    """The numbers so many tokens earlier, or later, of the same sequence; zeros outside of it."""
    inside = (place < tokens) & (t >= BACK) & (t < length + BACK)
    return tl.load(x + place - BACK, mask=inside, other=0.0).to(tl.float32), inside


@triton.jit
def forward_kernel(x, input_bias, weight, bias, y, tokens, length, TAPS: tl.constexpr, TOKENS: tl.constexpr):
    channel = tl.program_id(1).to(tl.int64)
    place = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    t = place % length
    x += channel * tokens
    own = tl.load(input_bias + channel).to(tl.float32)
    total = tl.zeros((TOKENS,), tl.float32) + tl.load(bias + channel).to(tl.float32)
    for back in tl.static_range(TAPS):
        found, inside = _shifted(x, place, t, tokens, length, back)
        total += tl.load(weight + channel * TAPS + TAPS - 1 - back).to(tl.float32) * tl.where(inside, found + own, 0.0)
    tl.store(y + channel * tokens + place, total.to(y.dtype.element_ty), mask=place < tokens)


@triton.jit
def backward_kernel(
    dy, x, input_bias, weight, dx, partials, tokens, length, D: tl.constexpr, TAPS: tl.constexpr, TOKENS: tl.constexpr,
):  # fmt: skip
    """Partial sums: weight (D,TAPS), bias (D), the input's bias (D)."""
    channel = tl.program_id(1).to(tl.int64)
    x += channel * tokens
    dy += channel * tokens
    dx += channel * tokens
    own = tl.load(input_bias + channel).to(tl.float32)
    zero = tl.zeros((TOKENS,), tl.float32)
    of_weight = (zero,)
    for _ in tl.static_range(1, TAPS):
        of_weight = of_weight + (zero,)
    of_bias, of_input = zero, zero
    for tile in range(tl.program_id(0), tl.cdiv(tokens, TOKENS), tl.num_programs(0)):
        place = tile * TOKENS + tl.arange(0, TOKENS)
        t = place % length
        upper, _ = _shifted(dy, place, t, tokens, length, 0)
        gradient = zero
        found = ()
        for back in tl.static_range(TAPS):
            earlier, inside = _shifted(x, place, t, tokens, length, back)
            found = found + (of_weight[back] + upper * tl.where(inside, earlier + own, 0.0),)
            later, _ = _shifted(dy, place, t, tokens, length, -back)
            gradient += tl.load(weight + channel * TAPS + TAPS - 1 - back).to(tl.float32) * later
        of_weight = found
        of_bias += upper
        of_input += gradient
        tl.store(dx + place, gradient.to(dx.dtype.element_ty), mask=place < tokens)
    row = partials + tl.program_id(0) * (D * (TAPS + 2))
    for back in tl.static_range(TAPS):
        tl.store(row + channel * TAPS + TAPS - 1 - back, tl.sum(of_weight[back], 0))
    tl.store(row + D * TAPS + channel, tl.sum(of_bias, 0))
    tl.store(row + D * (TAPS + 1) + channel, tl.sum(of_input, 0))


def _tokens(x: Tensor) -> tuple[int, int, int]:
    """Of a channel, of a sequence, and tiles of a channel."""
    tokens = x.shape[1] * x.shape[2]
    return tokens, x.shape[2], triton.cdiv(tokens, TOKENS)


@torch.library.custom_op("basedbench::plane_conv", mutates_args=())
def _conv(x: Tensor, input_bias: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Of planes (D,B,L)."""
    y = x.new_empty(x.shape)
    tokens, length, tiles = _tokens(x)
    if y.numel():
        forward_kernel[(tiles, len(x))](
            x, input_bias, weight.contiguous(), bias, y, tokens, length, TAPS=weight.shape[1], TOKENS=TOKENS
        )
    return y


@_conv.register_fake
def _(x, input_bias, weight, bias):
    return x.new_empty(x.shape)


@torch.library.custom_op("basedbench::plane_conv_backward", mutates_args=())
def _conv_backward(dy: Tensor, x: Tensor, input_bias: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of x, and in one row of the weight (D W), the bias and the input's bias."""
    dx, (width, taps) = x.new_empty(x.shape), weight.shape
    tokens, length, tiles = _tokens(x)
    if not dx.numel():
        return dx, weight.new_zeros(width * (taps + 2))
    programs = min(PROGRAMS, tiles)
    partials = torch.empty((programs, width * (taps + 2)), dtype=torch.float32, device=x.device)
    backward_kernel[(programs, width)](
        dy, x, input_bias, weight.contiguous(), dx, partials, tokens, length, D=width, TAPS=taps, TOKENS=TOKENS
    )
    return dx, sum_parts(partials, weight.dtype)


@_conv_backward.register_fake
def _(dy, x, input_bias, weight):
    return x.new_empty(x.shape), weight.new_empty(len(weight) * (weight.shape[1] + 2))


def _setup(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs[:3])


def _gradients(ctx, dy: Tensor):
    x, input_bias, weight = ctx.saved_tensors
    dx, sums = _conv_backward(dy.contiguous(), x, input_bias, weight)
    of_weight, of_bias, of_input = sums.split([weight.numel(), len(weight), len(weight)])
    return dx, of_input, of_weight.view_as(weight), of_bias


_conv.register_autograd(_gradients, setup_context=_setup)


def plane_conv(x_BLD: Tensor, input_bias_D: Tensor, weight_DW: Tensor, bias_D: Tensor) -> Tensor:
    """`plane_conv.reference` by the kernels above."""
    return _conv(x_BLD.permute(2, 0, 1).contiguous(), input_bias_D, weight_DW, bias_D).permute(1, 2, 0)
