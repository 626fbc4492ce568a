"""A projection cut into parts, some of which go through a short convolution on the way: what Mamba's blocks begin with.

    y = [x_:start, conv(x)_start:start+D, x_start+D:],  cut into parts,   conv as in `short_conv`

Sources: Mamba, arXiv 2312.00752, figure 3 (x and z); Mamba-2, arXiv 2405.21060, figure 6 (z; x, B and C; dt). The parts
are views of x and of the convolution's output. What x has beyond the parts has no gradient.

On CUDA the backward reads the gradients of the parts where they are and writes one for x. Cutting before and after the
convolution would copy all of them into one tensor, and then those of the convolution's channels once more: per token
2 (E + D) elements read and written instead of 2 (E - D).
"""

from typing import cast

from torch import Tensor

from .shapes import checked_shapes
from .short_conv import check_activation, on_triton
from .short_conv import reference as convolved


def reference(
    x_BLE: Tensor,
    widths: list[int],
    weight_DW: Tensor,
    bias_D: Tensor | None = None,
    *,
    start: int = 0,
    activation: str | None = None,
) -> tuple[Tensor, ...]:
    """`split_conv` in PyTorch: differentiable, any device."""
    inner_BLD = x_BLE[..., start : start + len(weight_DW)]
    return cut(x_BLE, cast(Tensor, convolved(inner_BLD, weight_DW, bias_D, activation=activation)), widths, start)


def cut(x_BLE: Tensor, y_BLD: Tensor, widths: list[int], start: int) -> tuple[Tensor, ...]:
    """Parts of x, those of channels `start` to `start` + D from y."""
    parts, at = [], 0
    for width in widths:
        source, first = (y_BLD, at - start) if start <= at < start + y_BLD.shape[-1] else (x_BLE, at)
        parts.append(source[..., first : first + width])
        at += width
    return tuple(parts)


@checked_shapes()
def split_conv(
    x_BLE: Tensor,
    widths: list[int],
    weight_DW: Tensor,
    bias_D: Tensor | None = None,
    *,
    start: int = 0,
    activation: str | None = None,
) -> tuple[Tensor, ...]:
    """Parts of x (B,L,E) of these widths, those of channels `start` to `start` + D convolved: (B,L,width) each.

    No part may lie across an edge of those channels. Raises ValueError if one does, for parts wider than x, and for
    activations other than "silu".
    """
    check_activation(activation)
    edges = {sum(widths[:index]) for index in range(len(widths) + 1)}
    if not {start, start + len(weight_DW)} <= edges or max(edges) > x_BLE.shape[-1]:
        channels = f"channels {start} to {start + len(weight_DW)} of {x_BLE.shape[-1]}"
        raise ValueError(f"parts of {widths} do not fit {channels}")
    if on_triton(x_BLE, weight_DW):
        from .short_conv_triton import split_conv as by_triton

        return by_triton(x_BLE, widths, weight_DW, bias_D, start=start, activation=activation)
    return reference(x_BLE, widths, weight_DW, bias_D, start=start, activation=activation)
