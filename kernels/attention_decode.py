"""Softmax attention of one new token per sequence against a cache of keys and values of fixed size.

    y = sum_j softmax_j(scale q . k_j) v_j over the keys 0 ... length - 1 of the cache and the new one

The new key and value take slot `length` of the cache, in place. Query head h reads key head h // (H / G) (grouped
queries, arXiv 2305.13245). With `angles` (`rotary_angles` at `length_B`), q and k are turned first, and the key is kept
turned. Scores, softmax and sums in float32 (float64 for float64 inputs).

Lengths stay on the device and may differ between sequences; what lies beyond them is never read. So one CUDA graph
serves every length. The sequence is cut into parts for separate programs where there are few sequences and heads
(Dao et al., "Flash-Decoding for long-context inference", 2023).
"""

import torch
from torch import Tensor

from .cache_append import reference as appended
from .costs import total_bytes, total_flops
from .precision import accumulation_dtype, without_autocast
from .rotary import Angles
from .shapes import checked_shapes


@without_autocast
def reference(
    q_BHK: Tensor,
    k_BGK: Tensor,
    v_BGV: Tensor,
    k_BLGK: Tensor,
    v_BLGV: Tensor,
    length_B: Tensor,
    *,
    scale: float | None = None,
    angles: Angles | None = None,
) -> Tensor:
    """`attention_decode` in PyTorch: any device."""
    q_BHK = appended(q_BHK, k_BGK, v_BGV, k_BLGK, v_BLGV, length_B, angles=angles)
    dtype = accumulation_dtype(v_BGV.dtype)
    unread = torch.arange(k_BLGK.shape[1], device=length_B.device) > length_B.unsqueeze(-1)
    keys = k_BLGK.to(dtype).masked_fill(unread[..., None, None], 0)  # whatever lies there: 0 x NaN is NaN
    values = v_BLGV.to(dtype).masked_fill(unread[..., None, None], 0)
    q = q_BHK.to(dtype).unflatten(1, (k_BGK.shape[1], -1)) * (q_BHK.shape[-1] ** -0.5 if scale is None else scale)
    scores = torch.einsum("bghk,blgk->bghl", q, keys).masked_fill(unread[:, None, None], float("-inf"))
    return torch.einsum("bghl,blgv->bghv", scores.softmax(-1), values).flatten(1, 2).to(v_BGV.dtype)


@checked_shapes(
    {"G divides H": lambda G, H: G > 0 and H % G == 0, "2 R <= K": lambda R, K: 2 * R <= K}, angles=("BR", "BR")
)
def attention_decode(
    q_BHK: Tensor,
    k_BGK: Tensor,
    v_BGV: Tensor,
    k_BLGK: Tensor,
    v_BLGV: Tensor,
    length_B: Tensor,
    *,
    scale: float | None = None,
    angles: Angles | None = None,
) -> Tensor:
    """One decode step: writes k and v into the caches (B,L,G,.) at `length_B`, returns y (B,H,V) in the dtype of v.

    `length_B` (int32) holds the tokens before this one, fewer than L; several layers may share it, so whoever owns it
    counts the token. `angles` are (B,R). No gradient on CUDA.
    """
    if q_BHK.is_cuda:
        from . import attention_decode_triton as kernels

        if kernels.unsupported(q_BHK, k_BGK, v_BGV, k_BLGK, v_BLGV, angles) is None:
            return kernels.attention_decode(
                q_BHK, k_BGK, v_BGV, k_BLGK, v_BLGV, length_B, scale=scale, angles=angles, ring=False
            )
    return reference(q_BHK, k_BGK, v_BGV, k_BLGK, v_BLGV, length_B, scale=scale, angles=angles)


def flops(*, batch: int, length: int, heads: int, key_dim: int, value_dim: int) -> int:
    """2 (K + V) per query and key read; `length` is the keys read, the new one included."""
    return total_flops(batch * length * heads * 2 * (key_dim + value_dim), backward=False)


def bytes_moved(
    *,
    batch: int,
    length: int,
    heads: int,
    key_dim: int,
    value_dim: int,
    key_heads: int | None = None,
    element_bytes: int = 2,
) -> int:
    """q, k, v and the keys and values before them in; y, and k and v into the cache, out."""
    width = batch * (heads if key_heads is None else key_heads) * (key_dim + value_dim)
    inputs = batch * heads * key_dim + length * width
    return total_bytes(inputs, batch * heads * value_dim + width, element_bytes=element_bytes, backward=False)
