"""`plane_conv` in Triton: a program has some tokens of one channel, whose sequences lie one after another in memory.

Tokens are taken in pairs, so that those before and behind are loads of the same lines again, shifted by whole pairs: a
shift by one would be a load for each number. The backward's programs each leave one row of partial sums for the
parameters, added in a fixed order.
"""

# mypy: allow-untyped-defs, disable-error-code="assignment,misc"
# ruff: noqa: RUF005 (Triton's tuples cannot be unpacked)

import torch
import triton
import triton.language as tl
from torch import Tensor

from .company import most_programs
from .dense_rows import dense_rows
from .packing import Packing, starts_and_longest
from .partial_sums_triton import sum_parts
from .plane_rows_triton import PlaneRows, plane_rows, sequence_rows

TOKENS, BACKWARD_TOKENS = 2048, 1024  # of a tile; the backward's sums take registers
LONGEST = 256  # tokens of one sequence in a tile
PROGRAMS = 16  # of a channel's backward, at most; fixed, so that the order of its sums is the same on every device


@triton.jit
def _place(tile, starts, sequences, length, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    """Of a tile of sequences x time: its places in a plane, its tokens, and how many its sequences have."""
    across = tl.cdiv(length, WIDTH)
    t = (tile % across * WIDTH + tl.arange(0, WIDTH))[None, :]
    begin, count = sequence_rows(tile // across * ROWS + tl.arange(0, ROWS), starts, sequences, length)
    return begin[:, None] + t, t, count[:, None]


@triton.jit
def _halves(tile, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    """Every other token: the first of each pair, and the second."""
    return tl.split(tl.reshape(tile, (ROWS, WIDTH // 2, 2)))


@triton.jit
def _earlier(x, own, place, t, count, COUNT: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    """x + own of the second token of each pair, of the first one, of those before, ...; zeros before the start."""
    found = ()
    for back in tl.static_range(0, COUNT, 2):
        there = (t >= back) & (t - back < count)
        tile = tl.where(there, tl.load(x + place - back, mask=there, other=0.0).to(tl.float32) + own, 0.0)
        first, second = _halves(tile, ROWS, WIDTH)
        found = found + (second, first)
    return found


@triton.jit
def _later(x, place, t, count, COUNT: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    """The first token of each pair, the second one, those behind, ...; zeros behind the last."""
    found = ()
    for ahead in tl.static_range(0, COUNT, 2):
        tile = tl.load(x + place + ahead, mask=t + ahead < count, other=0.0).to(tl.float32)
        first, second = _halves(tile, ROWS, WIDTH)
        found = found + (first, second)
    return found


@triton.jit
def _weighted(weights, tokens, FROM: tl.constexpr, TAPS: tl.constexpr):
    total = weights[0] * tokens[FROM]
    for n in tl.static_range(1, TAPS):
        total += weights[n] * tokens[FROM + n]
    return total


@triton.jit
def _weights(weight, channel, TAPS: tl.constexpr):
    """The current token's first."""
    found = ()
    for back in tl.static_range(TAPS):
        found = found + (tl.load(weight + channel * TAPS + TAPS - 1 - back).to(tl.float32),)
    return found


@triton.jit(do_not_specialize=["sequences", "units"])
def forward_kernel(
    x, input_bias, weight, bias, y, starts, sequences, length, units, TAPS: tl.constexpr, UNIT: tl.constexpr,
    ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    channel = tl.program_id(1).to(tl.int64)
    place, t, count = _place(tl.program_id(0), starts, sequences, length, ROWS, WIDTH)
    plane = channel * units * UNIT
    own, added = tl.load(input_bias + channel).to(tl.float32), tl.load(bias + channel).to(tl.float32)
    weights = _weights(weight, channel, TAPS)
    tokens = _earlier(x + plane, own, place, t, count, TAPS + 1, ROWS, WIDTH)
    pair = tl.join(_weighted(weights, tokens, 1, TAPS) + added, _weighted(weights, tokens, 0, TAPS) + added)
    tl.store(y + plane + place, tl.reshape(pair, (ROWS, WIDTH)).to(y.dtype.element_ty), mask=t < count)


@triton.jit(do_not_specialize=["sequences", "units"])
def backward_kernel(
    dy, x, input_bias, weight, dx, partials, starts, sequences, length, units, D: tl.constexpr, TAPS: tl.constexpr,
    UNIT: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Partial sums: weight (D,TAPS), bias (D), the input's bias (D)."""
    channel = tl.program_id(1).to(tl.int64)
    plane = channel * units * UNIT
    own = tl.load(input_bias + channel).to(tl.float32)
    weights = _weights(weight, channel, TAPS)
    zero = tl.zeros((ROWS, WIDTH // 2), tl.float32)
    of_weight = (zero,)
    for _ in tl.static_range(1, TAPS):
        of_weight = of_weight + (zero,)
    of_bias, of_input = zero, zero
    tiles = tl.cdiv(sequences, ROWS) * tl.cdiv(length, WIDTH)
    for tile in range(tl.program_id(0), tiles, tl.num_programs(0)):
        place, t, count = _place(tile, starts, sequences, length, ROWS, WIDTH)
        tokens = _earlier(x + plane, own, place, t, count, TAPS + 1, ROWS, WIDTH)
        upper = _later(dy + plane, place, t, count, TAPS + 1, ROWS, WIDTH)
        first, second = _weighted(weights, upper, 0, TAPS), _weighted(weights, upper, 1, TAPS)
        found = ()
        for back in tl.static_range(TAPS):
            found = found + (of_weight[back] + upper[1] * tokens[back] + upper[0] * tokens[back + 1],)
        of_weight = found
        of_bias += upper[0] + upper[1]
        of_input += first + second  # nothing beyond the last token, as there are no gradients of y
        pair = tl.reshape(tl.join(first, second), (ROWS, WIDTH))
        tl.store(dx + plane + place, pair.to(dx.dtype.element_ty), mask=t < count)
    line = partials + tl.program_id(0) * (D * (TAPS + 2))
    for back in tl.static_range(TAPS):
        tl.store(line + channel * TAPS + TAPS - 1 - back, tl.sum(tl.sum(of_weight[back], 1), 0))
    tl.store(line + D * TAPS + channel, tl.sum(tl.sum(of_bias, 1), 0))
    tl.store(line + D * (TAPS + 1) + channel, tl.sum(tl.sum(of_input, 1), 0))


def _tiles(rows: PlaneRows, tokens: int) -> tuple[int, dict[str, int]]:
    """How many of so many tokens a plane has, and their shape."""
    width = max(2, min(LONGEST, tokens, triton.next_power_of_2(rows.length)))
    height = min(tokens // width, triton.next_power_of_2(rows.sequences))
    tiles = triton.cdiv(rows.sequences, height) * triton.cdiv(rows.length, width)
    return tiles, {"UNIT": rows.unit, "ROWS": height, "WIDTH": width}


@torch.library.custom_op("basedbench::plane_conv", mutates_args=())
def _conv(x: Tensor, input_bias: Tensor, weight: Tensor, bias: Tensor, starts: Tensor | None, longest: int) -> Tensor:
    """Of planes (D,B,L), or of packed examples (D,1,T)."""
    y = x.new_empty(x.shape)
    if y.numel():
        rows = plane_rows(x, starts, longest)
        tiles, shape = _tiles(rows, TOKENS)
        vectors = dense_rows(input_bias), weight.contiguous(), dense_rows(bias)
        forward_kernel[(tiles, len(x))](x, *vectors, y, *rows.arguments, TAPS=weight.shape[1], **shape)
    return y


@_conv.register_fake
def _(x, input_bias, weight, bias, starts, longest):
    return x.new_empty(x.shape)


@torch.library.custom_op("basedbench::plane_conv_backward", mutates_args=())
def _conv_backward(
    dy: Tensor, x: Tensor, input_bias: Tensor, weight: Tensor, starts: Tensor | None, longest: int
) -> tuple[Tensor, Tensor]:
    """The gradients of x, and in one row of the weight (D W), the bias and the input's bias."""
    dx, (width, taps) = x.new_empty(x.shape), weight.shape
    if not dx.numel():
        return dx, weight.new_zeros(width * (taps + 2))
    rows = plane_rows(x, starts, longest)
    tiles, shape = _tiles(rows, BACKWARD_TOKENS)
    programs = min(most_programs(PROGRAMS), tiles)
    partials = torch.empty((programs, width * (taps + 2)), dtype=torch.float32, device=x.device)
    backward_kernel[(programs, width)](
        dy, x, dense_rows(input_bias), weight.contiguous(), dx, partials, *rows.arguments, D=width, TAPS=taps, **shape
    )
    return dx, sum_parts(partials, weight.dtype)


@_conv_backward.register_fake
def _(dy, x, input_bias, weight, starts, longest):
    return x.new_empty(x.shape), weight.new_empty(len(weight) * (weight.shape[1] + 2))


def _setup(ctx, inputs, output) -> None:
    x, input_bias, weight, _, starts, ctx.longest = inputs
    ctx.save_for_backward(x, input_bias, weight, starts)


def _gradients(ctx, dy: Tensor):
    x, input_bias, weight, starts = ctx.saved_tensors
    dx, sums = _conv_backward(dy.contiguous(), x, input_bias, weight, starts, ctx.longest)
    of_weight, of_bias, of_input = sums.split([weight.numel(), len(weight), len(weight)])
    return dx, of_input, of_weight.view_as(weight), of_bias, None, None


_conv.register_autograd(_gradients, setup_context=_setup)


def plane_conv(
    x_BLD: Tensor, input_bias_D: Tensor, weight_DW: Tensor, bias_D: Tensor, packing: Packing | None = None
) -> Tensor:
    """`plane_conv.reference` by the kernels above."""
    planes = x_BLD.permute(2, 0, 1).contiguous()
    return _conv(planes, input_bias_D, weight_DW, bias_D, *starts_and_longest(packing)).permute(1, 2, 0)
