"""Operators of `long_conv` and `gated_long_conv` by the kernels of `long_conv_gluon`: tiles, grids, gradients."""

# mypy: allow-untyped-defs

import torch
import triton
from torch import Tensor

from .company import most_programs
from .dense_rows import dense_rows
from .differentiated import differentiated
from .long_conv_gluon import convolution_kernel, filter_gradient_kernel, gated_backward_kernel, gated_forward_kernel

# Tokens of a tile and sources of a block by the channels of a head. Larger ones load less for each multiply-add.
TILES = {1: (16, 16), 2: (16, 8)}
LAGS, LAG_SOURCES = 32, 8  # the same of the filter's gradient
LANES = 128  # threads of a program
CHANNELS = 32  # of a program, at most
PROGRAMS = 2048  # of the filter's gradient, about; fixed, so that the order of its sums is the same on every device


def _dense(x: Tensor) -> Tensor:
    """x contiguous, with its rows evenly apart: torch has any strides between tokens where there is one of them."""
    return x.contiguous().flatten().view(x.shape)


def _rows(x: Tensor) -> Tensor:
    """x with channels side by side and the rows of (B,L) evenly apart, as a part of a wider tensor has them."""
    even = x.stride(2) == 1 and x.stride(0) == x.shape[1] * x.stride(1)
    return x if even else _dense(x)


def _blocks(sequences: int, length: int, heads: int, parts: int) -> tuple[tuple[int, int], dict[str, int | bool]]:
    """The grid, and what the tiles of all kernels are; a head has so many channels."""
    channels = min(CHANNELS, triton.next_power_of_2(heads))
    lanes = LANES // channels
    tile, sources = TILES[parts]
    groups = triton.cdiv(heads, channels)
    even = length % tile == 0 and heads % channels == 0 and sequences % lanes == 0
    shape: dict[str, int | bool] = {
        "TILE": tile,
        "SOURCES": sources,
        "BLOCK_B": lanes,
        "BLOCK_H": channels,
        "EVEN": even,
        "num_warps": LANES // 32,
    }
    return (triton.cdiv(length, tile), groups * triton.cdiv(sequences, lanes)), shape


def _convolve(x: Tensor, taps: Tensor, skip: Tensor | None, y: Tensor, *, backwards: bool) -> None:
    """y = taps * x + skip x, or with time reversed; rows of both may be parts of wider ones."""
    sequences, length, width = x.shape
    grid, shape = _blocks(sequences, length, width, 1)
    convolution_kernel[grid](
        x, taps, dense_rows(skip), y, sequences, length, len(taps), ROW=x.stride(1), OUT_ROW=y.stride(1), D=width,
        G=taps.shape[1], REVERSED=backwards, **shape,
    )  # fmt: skip


def _filter_gradient(dy: Tensor, x: Tensor, reach: int, heads: int, gates: tuple[Tensor, Tensor] | None) -> Tensor:
    """(reach, heads) float32: sums of dy (times gates[0]) with the earlier x (times gates[1]) over all sequences."""
    sequences, length, width = dy.shape
    parts_of_head = width // heads if gates else 1
    columns = heads if gates else width
    channels = min(CHANNELS, triton.next_power_of_2(columns))
    lanes, groups = LANES // channels, triton.cdiv(columns, channels)
    lags = triton.cdiv(reach, LAGS)
    batches = triton.cdiv(sequences, lanes)
    rounds = triton.cdiv(batches, max(1, min(batches, most_programs(PROGRAMS) // (lags * groups))))
    parts = triton.cdiv(batches, rounds)
    partials = torch.empty((parts, reach, columns), dtype=torch.float32, device=dy.device)
    q, v = gates or (dy, x)
    even = length % LAGS == 0 and columns % channels == 0 and sequences == lanes * parts * rounds
    filter_gradient_kernel[(lags, groups * parts)](
        dy, q, x, v, partials, sequences, length, reach, rounds,
        DY_ROW=dy.stride(1), Q_ROW=q.stride(1), X_ROW=x.stride(1), V_ROW=v.stride(1), H=columns, R=parts_of_head,
        GATED=gates is not None, TILE=LAGS, SOURCES=LAG_SOURCES, BLOCK_B=lanes, BLOCK_H=channels, EVEN=even,
        num_warps=LANES // 32,
    )  # fmt: skip
    return partials.view(-1, reach, columns // heads, heads).sum((0, 2))


def _within(taps: Tensor, length: int) -> Tensor:
    """The taps that a sequence of this length meets, dense."""
    return taps[:length].contiguous()


def _extended(gradient: Tensor, taps: Tensor) -> Tensor:
    """With zeros for the taps that no sequence met."""
    missing = len(taps) - len(gradient)
    return torch.nn.functional.pad(gradient, (0, 0, 0, missing)) if missing else gradient


def _of_skip(d_taps: Tensor) -> Tensor:
    """The gradient of a skip, which is that of the first tap: not its memory, for gradients are changed in place."""
    return d_taps[0].clone()


@torch.library.custom_op("basedbench::long_conv", mutates_args=())
def _long_conv(x: Tensor, taps: Tensor, skip: Tensor | None) -> Tensor:
    """y (B,L,D) of x (B,L,D), taps (N,G) and skip (G,)."""
    y = x.new_empty(x.shape)
    if y.numel():
        _convolve(_rows(x), _within(taps, x.shape[1]), skip, y, backwards=False)
    return y


@_long_conv.register_fake
def _(x: Tensor, taps: Tensor, skip: Tensor | None) -> Tensor:
    return x.new_empty(x.shape)


@torch.library.custom_op("basedbench::long_conv_backward", mutates_args=())
def _long_conv_backward(dy: Tensor, x: Tensor, taps: Tensor, skip: Tensor | None) -> tuple[Tensor, Tensor]:
    dx = x.new_empty(x.shape)
    if not dx.numel():
        return dx, torch.zeros_like(taps)
    dy, x, near = _dense(dy), _rows(x), _within(taps, x.shape[1])
    _convolve(dy, near, skip, dx, backwards=True)
    return dx, _extended(_filter_gradient(dy, x, len(near), near.shape[1], None), taps)


@_long_conv_backward.register_fake
def _(dy: Tensor, x: Tensor, taps: Tensor, skip: Tensor | None) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), taps.new_empty(taps.shape)


def _long_conv_setup(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs)


def _long_conv_gradients(ctx, dy: Tensor):
    x, taps, skip = ctx.saved_tensors
    dx, d_taps = _long_conv_backward(dy, x, taps, skip)
    return dx, d_taps, None if skip is None else _of_skip(d_taps)


_long_conv.register_autograd(_long_conv_gradients, setup_context=_long_conv_setup)


def _thirds(x: Tensor, order: str) -> list[Tensor]:
    """q, k and v of x, whose thirds stand in this order."""
    return [x.chunk(3, -1)[order.index(name)] for name in "qkv"]


def _gated_outputs(x: Tensor, taps: Tensor, shift: Tensor | None, save: bool) -> tuple[Tensor, Tensor, Tensor]:
    sequences, length, width = x.shape
    width //= 3
    y = x.new_empty((sequences, length, width))
    c = x.new_empty((sequences, length, width, width // taps.shape[1]) if save else 0)
    return y, c, x.new_empty(0 if shift is None else y.shape)


@torch.library.custom_op("basedbench::gated_long_conv", mutates_args=())
def _gated(
    x: Tensor,
    taps: Tensor,
    skip: Tensor | None,
    shift: Tensor | None,
    shift_skip: Tensor | None,
    order: str,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """y (B,L,D); to save: the convolution of every product (B,L,D,R); the shifted k, empty without a shift."""
    x = _rows(x)
    q, k, v = _thirds(x, order)
    y, c, shifted = _gated_outputs(x, taps, shift, save)
    if not y.numel():
        return y, c, shifted
    sequences, length, width = y.shape
    if shift is not None:
        _convolve(k, _within(shift, length), shift_skip, shifted, backwards=False)
        k = shifted
    near, heads = _within(taps, length), taps.shape[1]
    grid, shape = _blocks(sequences, length, heads, width // heads)
    gated_forward_kernel[grid](
        q, k, v, near, dense_rows(skip), y, c, sequences, length, len(near), Q_ROW=q.stride(1), K_ROW=k.stride(1),
        V_ROW=v.stride(1), H=heads, R=width // heads, SAVE=save, **shape,
    )  # fmt: skip
    return y, c, shifted


@_gated.register_fake
def _(
    x: Tensor,
    taps: Tensor,
    skip: Tensor | None,
    shift: Tensor | None,
    shift_skip: Tensor | None,
    order: str,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    return _gated_outputs(x, taps, shift, save)


@torch.library.custom_op("basedbench::gated_long_conv_backward", mutates_args=())
def _gated_backward(
    dy: Tensor,
    x: Tensor,
    taps: Tensor,
    skip: Tensor | None,
    shift: Tensor | None,
    shift_skip: Tensor | None,
    c: Tensor,
    shifted: Tensor,
    order: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of x, of the taps, and of the shift (empty without one)."""
    x, dy = _rows(x), _dense(dy)
    dx = x.new_empty(x.shape)
    if not dx.numel():
        return dx, torch.zeros_like(taps), taps.new_zeros(0 if shift is None else shift.shape)
    (q, k, v), (dq, dk, dv) = _thirds(x, order), _thirds(dx, order)
    d_shifted = dk
    if shift is not None:
        k, d_shifted = shifted, x.new_empty(shifted.shape)
    sequences, length, width = dy.shape
    near, heads = _within(taps, length), taps.shape[1]
    grid, shape = _blocks(sequences, length, heads, width // heads)
    gated_backward_kernel[grid](
        dy, q, k, v, c, near, dense_rows(skip), dq, d_shifted, dv, sequences, length, len(near),
        Q_ROW=q.stride(1), K_ROW=k.stride(1), V_ROW=v.stride(1), DQ_ROW=dq.stride(1), DK_ROW=d_shifted.stride(1),
        DV_ROW=dv.stride(1), H=heads, R=width // heads, **shape,
    )  # fmt: skip
    d_taps = _extended(_filter_gradient(dy, k, len(near), heads, (q, v)), taps)
    if shift is None:
        return dx, d_taps, taps.new_empty(0)
    within = _within(shift, length)
    _convolve(d_shifted, within, shift_skip, dk, backwards=True)
    unshifted = _thirds(x, order)[1]
    return dx, d_taps, _extended(_filter_gradient(d_shifted, unshifted, len(within), width, None), shift)


@_gated_backward.register_fake
def _(
    dy: Tensor,
    x: Tensor,
    taps: Tensor,
    skip: Tensor | None,
    shift: Tensor | None,
    shift_skip: Tensor | None,
    c: Tensor,
    shifted: Tensor,
    order: str,
) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape), taps.new_empty(taps.shape), taps.new_empty(0 if shift is None else shift.shape)


def _gated_setup(ctx, inputs, output) -> None:
    *tensors, ctx.order, ctx.saved = inputs
    ctx.save_for_backward(*tensors, *output[1:])
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)  # otherwise zeros as large as what is saved would be written


def _gated_gradients(ctx, dy: Tensor, *_: Tensor | None):
    if not ctx.saved:
        raise RuntimeError("gated_long_conv was called for its output alone.")
    x, taps, skip, shift, shift_skip, c, shifted = ctx.saved_tensors
    dx, d_taps, d_shift = _gated_backward(dy, x, taps, skip, shift, shift_skip, c, shifted, ctx.order)
    d_skip = None if skip is None else _of_skip(d_taps)
    d_shift_skip = None if shift_skip is None else _of_skip(d_shift)
    return dx, d_taps, d_skip, None if shift is None else d_shift, d_shift_skip, None, None


_gated.register_autograd(_gated_gradients, setup_context=_gated_setup)


def long_conv(x_BLD: Tensor, taps_NG: Tensor, skip_G: Tensor | None) -> Tensor:
    """`long_conv.reference` by the kernels above."""
    return _long_conv(x_BLD, taps_NG, skip_G)


def gated_long_conv(
    x_BLE: Tensor,
    taps_NH: Tensor,
    skip_H: Tensor | None,
    shift_ND: Tensor | None,
    shift_skip_D: Tensor | None,
    *,
    order: str,
) -> Tensor:
    """`long_conv.gated_reference` by the kernels above, for heads of one or two channels."""
    given = (x_BLE, taps_NH, skip_H, shift_ND, shift_skip_D)
    save = differentiated(*given)
    return _gated(*given, order, save)[0]
