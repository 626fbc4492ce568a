"""`implicit_filter` in Triton: a program takes a few positions through the whole network, and back.

The backward keeps nothing but the parameters: it computes the layers' sums again. Units beyond the last one have zero
weights and biases, so that they are zero. Products are sums of FMA: on matrix units, which would take three parts of
tf32, Triton gives each warp a whole weight matrix, which does not fit into its registers.
"""

# mypy: allow-untyped-defs

import torch
import triton
import triton.language as tl
from torch import Tensor

from .partial_sums_triton import sum_parts

ROWS = 16  # positions of a program
CHANNELS = 64  # at a time
WARPS = 8


@triton.jit
def _matrix(pointer, rows, columns, R: tl.constexpr, C: tl.constexpr):
    """(rows, columns) of a dense (R,C), zeros outside."""
    inside = (rows < R)[:, None] & (columns < C)[None, :]
    return tl.load(pointer + rows[:, None] * C + columns[None, :], mask=inside, other=0.0)


@triton.jit
def _store(pointer, x, rows, columns, R: tl.constexpr, C: tl.constexpr):
    inside = (rows < R)[:, None] & (columns < C)[None, :]
    tl.store(pointer + rows[:, None] * C + columns[None, :], x, mask=inside)


@triton.jit
def _sums(h, weight, bias, units, inputs, U: tl.constexpr, E: tl.constexpr):
    """W h + b."""
    w = _matrix(weight, units, inputs, U, E)
    return _times(h, tl.trans(w)) + tl.load(bias + units, mask=units < U, other=0.0)[None, :]


@triton.jit
def _times(x, y):
    """x y."""
    return tl.dot(x, y, input_precision="ieee")


@triton.jit
def _damping(t, channel, last, slowest, fastest, D: tl.constexpr):
    """exp(-rate t / (N - 1))."""
    steps: tl.constexpr = D - 1 if D > 1 else 1
    rate = slowest + (fastest - slowest) * (channel.to(tl.float32) / steps)
    return tl.exp(-(t.to(tl.float32) / last)[:, None] * rate[None, :])


@triton.jit
def network_kernel(
    features, w1, b1, w2, b2, w3, b3, frequency, out, taps, length, last, slowest, fastest,
    E: tl.constexpr, U: tl.constexpr, D: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_U: tl.constexpr,
    ROWS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    t = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    units, inputs = tl.arange(0, BLOCK_U), tl.arange(0, BLOCK_E)
    f = tl.load(frequency + units, mask=units < U, other=0.0)[None, :]
    inside = (t < length)[:, None] & (inputs < E)[None, :]
    h = tl.load(features + t[:, None] * E + inputs[None, :], mask=inside, other=0.0)
    h = tl.sin(f * _sums(h, w1, b1, units, inputs, U, E))
    h = tl.sin(f * _sums(h, w2, b2, units, units, U, U))
    h = tl.sin(f * _sums(h, w3, b3, units, units, U, U))
    for start in range(0, D, CHANNELS):
        channel = start + tl.arange(0, CHANNELS)
        y = _times(h, tl.trans(_matrix(out, channel, units, D, U)))
        y *= _damping(t, channel, last, slowest, fastest, D)
        place = channel.to(tl.int64)[None, :] * length + t[:, None]
        tl.store(taps + place, y, mask=(t < length)[:, None] & (channel < D)[None, :])


@triton.jit
def _back(grad, total, h, f, units, inputs, d_weight, d_bias, U: tl.constexpr, E: tl.constexpr):
    """Through a layer: writes the gradients of W and b; returns those of W h + b and, unit by unit, of f."""
    slope = grad * tl.cos(f * total)
    of_total = slope * f
    _store(d_weight, _times(tl.trans(of_total), h), units, inputs, U, E)
    tl.store(d_bias + units, tl.sum(of_total, 0), mask=units < U)
    return of_total, tl.sum(slope * total, 0)


@triton.jit
def network_gradient_kernel(
    d_taps, features, w1, b1, w2, b2, w3, b3, frequency, out, d_features, partials, rows, length, last, slowest,
    fastest, width, d_channel, d_tap,
    E: tl.constexpr, U: tl.constexpr, D: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_U: tl.constexpr,
    ROWS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    t = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    units, inputs = tl.arange(0, BLOCK_U), tl.arange(0, BLOCK_E)
    beyond = (t >= length)[:, None] & (t < rows)[:, None] & (inputs < E)[None, :]
    tl.store(d_features + t[:, None] * E + inputs[None, :], tl.zeros((ROWS, BLOCK_E), tl.float32), mask=beyond)
    if tl.program_id(0) * ROWS >= length:
        return
    f = tl.load(frequency + units, mask=units < U, other=0.0)[None, :]
    inside = (t < length)[:, None] & (inputs < E)[None, :]
    h0 = tl.load(features + t[:, None] * E + inputs[None, :], mask=inside, other=0.0)
    total1 = _sums(h0, w1, b1, units, inputs, U, E)
    h1 = tl.sin(f * total1)
    total2 = _sums(h1, w2, b2, units, units, U, U)
    h2 = tl.sin(f * total2)
    total3 = _sums(h2, w3, b3, units, units, U, U)
    h3 = tl.sin(f * total3)
    # The order of a row of partial gradients is that of `_parameters`.
    d_w1 = partials + tl.program_id(0) * width
    d_b1 = d_w1 + U * E
    d_w2 = d_b1 + U
    d_b2 = d_w2 + U * U
    d_w3 = d_b2 + U
    d_b3 = d_w3 + U * U
    d_frequency = d_b3 + U
    d_out = d_frequency + U
    grad = tl.zeros((ROWS, BLOCK_U), tl.float32)
    for start in range(0, D, CHANNELS):
        channel = start + tl.arange(0, CHANNELS)
        there = (channel < D)[:, None] & (t < length)[None, :]
        place = channel.to(tl.int64)[:, None] * d_channel + t.to(tl.int64)[None, :] * d_tap
        g = tl.load(d_taps + place, mask=there, other=0.0)
        g *= tl.trans(_damping(t, channel, last, slowest, fastest, D))
        grad += _times(tl.trans(g), _matrix(out, channel, units, D, U))
        _store(d_out, _times(g, h3), channel, units, D, U)
    of_total, of_f3 = _back(grad, total3, h2, f, units, units, d_w3, d_b3, U, U)
    grad = _times(of_total, _matrix(w3, units, units, U, U))
    of_total, of_f2 = _back(grad, total2, h1, f, units, units, d_w2, d_b2, U, U)
    grad = _times(of_total, _matrix(w2, units, units, U, U))
    of_total, of_f1 = _back(grad, total1, h0, f, units, inputs, d_w1, d_b1, U, E)
    tl.store(d_frequency + units, of_f1 + of_f2 + of_f3, mask=units < U)
    grad = _times(of_total, _matrix(w1, units, inputs, U, E))
    tl.store(d_features + t[:, None] * E + inputs[None, :], grad, mask=inside)


def _shape(features: Tensor, frequency: Tensor, out: Tensor) -> dict[str, int]:
    return {
        "E": features.shape[1],
        "U": len(frequency),
        "D": len(out),
        "BLOCK_E": max(16, triton.next_power_of_2(features.shape[1])),
        "BLOCK_U": max(16, triton.next_power_of_2(len(frequency))),
        "ROWS": ROWS,
        "CHANNELS": CHANNELS,
    }


@torch.library.custom_op("basedbench::implicit_filter", mutates_args=())
def _filter(
    features: Tensor, hidden: list[Tensor], frequency: Tensor, out: Tensor, length: int, slowest: float, fastest: float
) -> Tensor:
    """(D,L): a filter's taps side by side, as its convolution reads them."""
    taps = features.new_empty((len(out), length))
    tensors = [x.contiguous() for x in (features, *hidden, frequency, out)]
    last = max(1, len(features) - 1)
    network_kernel[(triton.cdiv(length, ROWS),)](
        *tensors,
        taps,
        length,
        last,
        slowest,
        fastest,
        **_shape(features, frequency, out),
        num_warps=WARPS,
    )
    return taps


@_filter.register_fake
def _(
    features: Tensor, hidden: list[Tensor], frequency: Tensor, out: Tensor, length: int, slowest: float, fastest: float
) -> Tensor:
    return features.new_empty((len(out), length))


@torch.library.custom_op("basedbench::implicit_filter_backward", mutates_args=())
def _filter_backward(
    d_taps: Tensor,
    features: Tensor,
    hidden: list[Tensor],
    frequency: Tensor,
    out: Tensor,
    slowest: float,
    fastest: float,
) -> tuple[Tensor, Tensor]:
    """The gradients of the features, and of all parameters in one row."""
    length, last = d_taps.shape[1], max(1, len(features) - 1)
    d_features = features.new_empty(features.shape)
    width = sum(x.numel() for x in (*hidden, frequency, out))
    programs = triton.cdiv(length, ROWS)
    partials = torch.empty((programs, width), dtype=torch.float32, device=features.device)
    tensors = [x.contiguous() for x in (features, *hidden, frequency, out)]
    network_gradient_kernel[(triton.cdiv(len(features), ROWS),)](
        d_taps,
        *tensors,
        d_features,
        partials,
        len(features),
        length,
        last,
        slowest,
        fastest,
        width,
        *d_taps.stride(),
        **_shape(features, frequency, out),
        num_warps=WARPS,
    )
    return d_features, sum_parts(partials, torch.float32)


@_filter_backward.register_fake
def _(
    d_taps: Tensor,
    features: Tensor,
    hidden: list[Tensor],
    frequency: Tensor,
    out: Tensor,
    slowest: float,
    fastest: float,
) -> tuple[Tensor, Tensor]:
    return features.new_empty(features.shape), features.new_empty(sum(x.numel() for x in (*hidden, frequency, out)))


def _setup(ctx, inputs, output) -> None:
    features, hidden, frequency, out, _, *ctx.rates = inputs
    ctx.save_for_backward(features, *hidden, frequency, out)


def _gradients(ctx, d_taps: Tensor):
    features, *hidden, frequency, out = ctx.saved_tensors
    d_features, row = _filter_backward(d_taps, features, hidden, frequency, out, *ctx.rates)
    parameters = (*hidden, frequency, out)
    parts = row.split([x.numel() for x in parameters])
    *d_hidden, d_frequency, d_out = (part.view(x.shape) for part, x in zip(parts, parameters, strict=True))
    return d_features, d_hidden, d_frequency, d_out, None, None, None


_filter.register_autograd(_gradients, setup_context=_setup)


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
    """`implicit_filter.reference` by the kernels above."""
    return _filter(features_NE, hidden, frequency_F, out_DF, length, slowest, fastest).t()
