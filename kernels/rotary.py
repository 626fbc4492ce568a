"""Rotary position embedding: the first 2 R numbers of each head turn, in pairs (x_r, x_(r+R)), with their position.

    y_r     = x_r cos(p f_r) - x_(r+R) sin(p f_r)
    y_(r+R) = x_r sin(p f_r) + x_(r+R) cos(p f_r)        r < R = ceil(width / 2),   f_r = base^(-2 r / width)

The rest of a head passes. Source: Su et al., arXiv 2104.09864, in the half-split convention of GPT-NeoX and of the
released BASED models, whose `width` may be odd: R is rounded up there, the frequencies keep it.

`rotary_angles` makes cosines and sines (L,R) once for all layers; in decoding there is one position per sequence, and
they are (B,R). Frequencies are made in float64; angles and products are float32 (float64 for float64), outputs have the
dtype of their inputs. On CUDA one launch makes the angles and one turns q and k; the decode steps of attention turn
them on the way (`attention_decode`, `sliding_window_step`).
"""

import torch
from torch import Tensor

from .precision import accumulation_dtype, without_autocast
from .shapes import checked_shapes

Angles = tuple[Tensor, Tensor]  # cosines and sines (..., R)


def angles_reference(
    position_L: Tensor, width: int, *, base: float = 10000.0, dtype: torch.dtype = torch.float32
) -> Angles:
    """`rotary_angles` in PyTorch: any device."""
    frequency_R = base ** (-torch.arange(0, width, 2, dtype=torch.float64, device=position_L.device) / width)
    angle_LR = position_L.to(dtype).unsqueeze(-1) * frequency_R.to(dtype)
    return angle_LR.cos(), angle_LR.sin()


def rotary_angles(
    position_L: Tensor, width: int, *, base: float = 10000.0, dtype: torch.dtype = torch.float32
) -> Angles:
    """Cosines and sines (L,R) at positions (L) of whole numbers, for heads of which `width` numbers turn."""
    if position_L.is_cuda and dtype == torch.float32:
        from . import rotary_triton as kernels

        cos, sin = kernels.angles_operator(position_L, width, base)
        return cos, sin
    return angles_reference(position_L, width, base=base, dtype=dtype)


def turned(x_xHK: Tensor, angles_xR: Angles) -> Tensor:
    """Each head of x (..., H, K) turned by the angles of its token."""
    dtype, half = accumulation_dtype(x_xHK.dtype), angles_xR[0].shape[-1]
    cos, sin = (x.to(dtype).unsqueeze(-2) for x in angles_xR)
    first, second = (x.to(dtype) for x in (x_xHK[..., :half], x_xHK[..., half : 2 * half]))
    both = torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1).to(x_xHK.dtype)
    return torch.cat([both, x_xHK[..., 2 * half :]], dim=-1)


@without_autocast
def reference(q_xHK: Tensor, k_xGK: Tensor, angles_LR: Angles) -> tuple[Tensor, Tensor]:
    """`rotary` in PyTorch: differentiable by q and k, any device."""
    return turned(q_xHK, angles_LR), turned(k_xGK, angles_LR)


@checked_shapes({"2 R <= K": lambda R, K: 2 * R <= K}, q_xHK="xLHK", k_xGK="xLGK", angles_LR=("LR", "LR"))
def rotary(q_xHK: Tensor, k_xGK: Tensor, angles_LR: Angles) -> tuple[Tensor, Tensor]:
    """q (...,L,H,K) and k (...,L,G,K) turned by the angles of their tokens; one token each: (B,H,K) and (B,R).

    On CUDA without a gradient by the angles.
    """
    if q_xHK.is_cuda:
        from . import rotary_triton as kernels

        if kernels.unsupported(q_xHK, k_xGK, angles_LR) is None:
            return kernels.rotary(q_xHK, k_xGK, angles_LR)
    return reference(q_xHK, k_xGK, angles_LR)


def flops(*, batch: int, length: int, heads: int, rotated: int, backward: bool = False) -> int:
    """3 per turned number of q and of k: two products and a sum. The backward turns the gradients back, no more."""
    return batch * length * 2 * heads * rotated * 3 * (2 if backward else 1)


def bytes_moved(
    *, batch: int, length: int, heads: int, key_dim: int, element_bytes: int = 2, backward: bool = False
) -> int:
    """q and k in and out, and in the backward their gradients; all sequences read the same angles: not counted."""
    return batch * length * heads * key_dim * 4 * element_bytes * (2 if backward else 1)
