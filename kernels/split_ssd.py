"""What a Mamba-2 block does between its projections: a cut, a short convolution, the scan, the gate.

    z, xBC, dt = split(p);   x, B, C = split(silu(conv(xBC)));   y = ssd(x, softplus(dt + b), A, B, C, D) * silu(z)

Source: Mamba-2, arXiv 2405.21060, figure 6. p (B,L,E) has the parts in this order, and perhaps columns beyond them,
which have no gradient. The two halves: `split_conv` and `ssd`.

On CUDA, where the scan is a walk (`ssd_walk`), the backward writes all gradients of p to their places; cut and scan by
themselves would leave that of z in a tensor of its own, for another launch to copy: 4 bytes a channel in bf16.
"""

from typing import Any

import torch
from torch import Tensor

from .packing import Packing, examples_apart
from .short_conv import on_triton
from .split_conv import reference as split_reference
from .split_conv import split_conv
from .ssd import reference as ssd_reference
from .ssd import ssd


def part_widths(weight_DW: Tensor, heads: int, head_dim: int) -> list[int]:
    """Of z, x, B, C and dt."""
    inner = heads * head_dim
    keys = (len(weight_DW) - inner) // 2
    return [inner, inner, keys, keys, heads]


def heads_and_groups(parts: tuple[Tensor, ...], head_dim: int, groups: int) -> tuple[Tensor, ...]:
    """z, x (B,L,H,P), B, C (B,L,G,N) and dt, which stays (B,L,H); z may be missing."""
    *inner, B, C, dt = parts
    return (
        *(part.unflatten(-1, (-1, head_dim)) for part in inner),
        *(part.unflatten(-1, (groups, -1)) for part in (B, C)),
        dt,
    )


def _composed(
    split: Any, scan: Any, p: Tensor, weight: Tensor, bias: Tensor | None, *rates: Tensor, **sizes: int
) -> Tensor:
    """The two halves, one after the other."""
    A, D, dt_bias = rates
    widths = part_widths(weight, len(A), sizes["head_dim"])
    parts = split(p, widths, weight, bias, start=widths[0], activation="silu")
    z, x, B, C, dt = heads_and_groups(parts, **sizes)
    y: Tensor = scan(x, dt, A, B, C, D_H=D, z_BLHP=z, dt_bias_H=dt_bias, dt_softplus=True)
    return y


def reference(
    p_BLE: Tensor,
    weight_DW: Tensor,
    bias_D: Tensor | None,
    A_H: Tensor,
    D_H: Tensor,
    dt_bias_H: Tensor,
    *,
    head_dim: int,
    groups: int,
) -> Tensor:
    """`split_ssd` in PyTorch: differentiable, any device."""
    sizes = {"head_dim": head_dim, "groups": groups}
    return _composed(split_reference, ssd_reference, p_BLE, weight_DW, bias_D, A_H, D_H, dt_bias_H, **sizes)


def split_ssd(
    p_BLE: Tensor,
    weight_DW: Tensor,
    bias_D: Tensor | None,
    A_H: Tensor,
    D_H: Tensor,
    dt_bias_H: Tensor,
    *,
    head_dim: int,
    groups: int,
    packing: Packing | None = None,
) -> Tensor:
    """A projection p (B,L,E), weight (D,W) and bias of the convolution, A, D and the bias of dt (H,) -> y (B,L,H,P).

    With `packing` p is (1,T,E) and y (1,T,H,P).
    """
    parameters = weight_DW, bias_D, A_H, D_H, dt_bias_H
    if on_triton(p_BLE, weight_DW) and torch.is_grad_enabled():
        from . import split_ssd_triton as kernels

        if kernels.walks(p_BLE, weight_DW, A_H, D_H, dt_bias_H, head_dim, groups, packing):
            return kernels.split_ssd(p_BLE, *parameters, head_dim, groups, packing)

    def composed(p_BLE: Tensor) -> Tensor:
        return _composed(split_conv, ssd, p_BLE, *parameters, head_dim=head_dim, groups=groups)

    return examples_apart(composed, p_BLE, packing)
