"""`split_ssd` of which outputs are asked for at a few tokens only: the scan as attention, by their rows alone.

    xBC, dt = split(p);   x, B, C = split(silu(conv(xBC)));   dt = softplus(dt + b);   c_t = sum over j <= t of dt_j A
    y_k = (sum over j <= p_k of exp(c_p - c_j) dt_j (C_p . B_j) x_j + D x_p) * silu(z_k)        p: the asked positions

which is the recurrence of `ssd` written out (Mamba-2, arXiv 2405.21060, section 5). p (B,L,F) has the parts in this
order, and perhaps columns beyond them, which have no gradient; z (B,K,E) is only there at asked tokens. A query weighs
L tokens instead of reading a state that all of them have passed through: nothing of the width of x but x itself is
read, and its gradient written.
"""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from .asked import Asked
from .asked import reference as rows_of
from .packing import Packing, examples_apart
from .precision import accumulation_dtype, without_autocast
from .short_conv import on_triton
from .split_conv import reference as split_reference
from .split_conv import split_conv
from .split_ssd import heads_and_groups, part_widths
from .ssd import ssd


def asked_widths(weight_DW: Tensor, heads: int, head_dim: int) -> list[int]:
    """Of x, B, C and dt."""
    return part_widths(weight_DW, heads, head_dim)[1:]


@without_autocast
def reference(
    z_BKE: Tensor,
    p_BLF: Tensor,
    positions_BK: Tensor,
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
    """`split_ssd_asked` in PyTorch: differentiable, any device."""
    if packing is not None:
        p_BLF = packing.spread(p_BLF)
    dtype = accumulation_dtype(p_BLF.dtype)
    parts = split_reference(p_BLF, asked_widths(weight_DW, len(A_H), head_dim), weight_DW, bias_D, activation="silu")
    x, B, C, dt = (part.to(dtype) for part in heads_and_groups(parts, head_dim, groups))
    B, C = (part.repeat_interleave(len(A_H) // groups, 2) for part in (B, C))
    dt = F.softplus(dt + dt_bias_H.to(dtype))
    total_BLH = (dt * A_H.to(dtype)).cumsum(1)
    total_BKH, C_BKR, x_BKE = (rows_of(part.flatten(2), positions_BK) for part in (total_BLH, C, x))
    C_BKHN, x_BKHP = C_BKR.unflatten(-1, C.shape[2:]), x_BKE.unflatten(-1, x.shape[2:])
    sums_BHKL = (total_BKH.unsqueeze(2) - total_BLH.unsqueeze(1)).permute(0, 3, 1, 2)
    later_BKL = torch.arange(p_BLF.shape[1], device=p_BLF.device) > positions_BK.unsqueeze(-1)
    # Hidden before exp: later ones could overflow, and inf * 0 spoils gradients.
    decay_BHKL = sums_BHKL.masked_fill(later_BKL.unsqueeze(1), float("-inf")).exp()
    scores_BHKL = torch.einsum("bkhn,blhn->bhkl", C_BKHN, B)
    y_BKHP = torch.einsum("bhkl,blhp->bkhp", scores_BHKL * decay_BHKL, x * dt.unsqueeze(-1))
    y_BKHP = (y_BKHP + x_BKHP * D_H.to(dtype).unsqueeze(-1)) * F.silu(z_BKE.to(dtype)).view_as(y_BKHP)
    return cast(Tensor, y_BKHP.to(p_BLF.dtype))


def split_ssd_asked(
    z_BKE: Tensor,
    p_BLF: Tensor,
    asked: Asked,
    weight_DW: Tensor,
    bias_D: Tensor | None,
    A_H: Tensor,
    D_H: Tensor,
    dt_bias_H: Tensor,
    *,
    head_dim: int,
    groups: int,
) -> Tensor:
    """z (B,K,E) at asked tokens, p (B,L,F), weight (D,W) and bias of the convolution, A, D and the bias of dt (H,)
    -> y (B,K,H,P) in the dtype of p. With `asked.packing` p is (1,T,F).

    On CUDA what `split_ssd_asked_triton.unsupported` has a reason against takes the rows of a whole scan.
    """
    rates = A_H, D_H, dt_bias_H
    if not p_BLF.is_cuda:
        positions_BK, packing = asked.positions_BK, asked.packing
        return reference(
            z_BKE, p_BLF, positions_BK, weight_DW, bias_D, *rates, head_dim=head_dim, groups=groups, packing=packing
        )
    if on_triton(p_BLF, weight_DW):
        from . import split_ssd_asked_triton as kernels

        if kernels.unsupported(z_BKE, p_BLF, weight_DW, bias_D, *rates, head_dim, groups) is None:
            return kernels.split_ssd_asked(z_BKE, p_BLF, asked, weight_DW, bias_D, *rates, head_dim, groups)
    return by_whole_scan(z_BKE, p_BLF, asked, weight_DW, bias_D, *rates, head_dim=head_dim, groups=groups)


def by_whole_scan(
    z_BKE: Tensor,
    p_BLF: Tensor,
    asked: Asked,
    weight_DW: Tensor,
    bias_D: Tensor | None,
    A_H: Tensor,
    D_H: Tensor,
    dt_bias_H: Tensor,
    *,
    head_dim: int,
    groups: int,
) -> Tensor:
    """`split_ssd_asked` by rows of the outputs of all tokens."""

    def scanned(p_BLF: Tensor) -> Tensor:
        parts = split_conv(p_BLF, asked_widths(weight_DW, len(A_H), head_dim), weight_DW, bias_D, activation="silu")
        x, B, C, dt = heads_and_groups(parts, head_dim, groups)
        return cast(Tensor, ssd(x, dt, A_H, B, C, D_H=D_H, dt_bias_H=dt_bias_H, dt_softplus=True))

    y_BLHP = examples_apart(scanned, p_BLF, asked.packing)
    return (asked.rows(y_BLHP.flatten(2)) * F.silu(z_BKE)).unflatten(-1, (-1, head_dim))
