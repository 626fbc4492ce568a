"""Sliding-window softmax attention: position i reads the keys i - window ... i, its own included (window + 1 keys).

    y_i = sum_j softmax_j(scale q_i . k_j) v_j,   max(0, i - window) <= j <= i,   scale = 1 / sqrt(K) by default

Source: Beltagy et al., arXiv 2004.05150; BASED, arXiv 2402.18668, section 4. The reference works in blocks of queries,
each against its own keys and the `window` keys before them: memory is linear in the length. Softmax in float32 (float64
for float64 inputs).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .costs import causal_pairs, total_bytes, total_flops
from .precision import accumulation_dtype, without_autocast
from .rotary import Angles, turned
from .shapes import checked_shapes

# Below this many tokens one block is cheaper than cutting; below this many rows a block's products are too small.
SHORT_SEQUENCE = 64
SMALLEST_BLOCK = 16


def _blocks(x_BHLX: Tensor, block: int) -> Tensor:
    """(B,H,L,X) -> (B,H,n,T,X), zeros after the end."""
    padding = -x_BHLX.shape[2] % block
    return F.pad(x_BHLX, (0, 0, 0, padding)).unflatten(2, (-1, block))


def _with_previous(x_BHnTX: Tensor, window: int) -> Tensor:
    """(B,H,n,T,X) -> (B,H,n,window+T,X): each block behind the last `window` rows of the block before it."""
    tails = x_BHnTX[:, :, :-1, x_BHnTX.shape[3] - window :]
    return torch.cat([F.pad(tails, (0, 0, 0, 0, 1, 0)), x_BHnTX], dim=3)


def _mask(query: Tensor, key: Tensor, window: int, dtype: torch.dtype) -> Tensor:
    """Positions (..., T) and (..., S) -> (..., T, S): 0 where the query reads the key, -inf elsewhere."""
    distance = query.unsqueeze(-1) - key.unsqueeze(-2)
    hidden = (distance < 0) | (distance > window) | (key < 0).unsqueeze(-2)
    return torch.zeros(distance.shape, dtype=dtype, device=query.device).masked_fill_(hidden, float("-inf"))


@without_autocast
def reference(q_BLHK: Tensor, k_BLHK: Tensor, v_BLHV: Tensor, window: int, *, scale: float | None = None) -> Tensor:
    """`sliding_window` in PyTorch: differentiable, any device."""
    if window < 1:
        raise ValueError(f"window must be at least 1 (keys before the query's own), not {window}")
    length = q_BLHK.shape[1]
    scale = q_BLHK.shape[-1] ** -0.5 if scale is None else scale
    dtype = accumulation_dtype(v_BLHV.dtype)
    q, k, v = (x.to(dtype).transpose(1, 2) for x in (q_BLHK, k_BLHK, v_BLHV))
    one_block = length <= max(SHORT_SEQUENCE, 2 * window)
    block = length if one_block else max(window, SMALLEST_BLOCK)
    q, k, v = (_blocks(x, block) for x in (q, k, v))
    query = torch.arange(q.shape[2] * block, device=q.device).unflatten(0, (-1, block))
    key = query
    if not one_block:
        k, v = _with_previous(k, window), _with_previous(v, window)
        key = torch.arange(-window, block, device=q.device) + query[:, :1]
    scores = (q * scale) @ k.transpose(-1, -2)
    scores += _mask(query, key, window, dtype)
    y = (scores.softmax(-1) @ v).flatten(2, 3)[:, :, :length]
    return y.transpose(1, 2).to(v_BLHV.dtype)


@checked_shapes()
def sliding_window(
    q_BLHK: Tensor, k_BLHK: Tensor, v_BLHV: Tensor, window: int, *, scale: float | None = None
) -> Tensor:
    """Causal attention to the last `window` keys and the query's own. q, k (B,L,H,K), v (B,L,H,V) -> y (B,L,H,V).

    On CUDA the Triton kernels compute what they can (`supported`), the reference the rest: float64, heads wider than
    128. Raises ValueError if `window` is below 1.
    """
    if q_BLHK.is_cuda and window >= 1:
        from . import sliding_window_triton as fused

        if fused.supported(q_BLHK, k_BLHK, v_BLHV):
            return fused.sliding_window(q_BLHK, k_BLHK, v_BLHV, window, scale=scale)
    return reference(q_BLHK, k_BLHK, v_BLHV, window, scale=scale)


@without_autocast
def reference_step(
    q_BHK: Tensor,
    k_BHK: Tensor,
    v_BHV: Tensor,
    k_BWHK: Tensor,
    v_BWHV: Tensor,
    position_B: Tensor,
    *,
    scale: float | None = None,
    angles: Angles | None = None,
    count: bool = True,
) -> Tensor:
    """`sliding_window_step` in PyTorch: any device."""
    if angles is not None:
        q_BHK, k_BHK = turned(q_BHK, angles), turned(k_BHK, angles)
    window = k_BWHK.shape[1]
    scale = q_BHK.shape[-1] ** -0.5 if scale is None else scale
    dtype = accumulation_dtype(v_BHV.dtype)
    q, k, v = q_BHK.to(dtype), k_BHK.to(dtype), v_BHV.to(dtype)
    ring = torch.einsum("bhk,bwhk->bhw", q, k_BWHK.to(dtype))
    empty = torch.arange(window, device=q.device) >= position_B.unsqueeze(-1)
    ring = ring.masked_fill(empty.unsqueeze(1), float("-inf"))
    own = (q * k).sum(-1, keepdim=True)
    weights = (torch.cat([ring, own], dim=-1) * scale).softmax(-1)
    y = torch.einsum("bhw,bwhv->bhv", weights[..., :-1], v_BWHV.to(dtype)) + weights[..., -1:] * v
    slot = (position_B % window).long().view(-1, 1, 1, 1)
    k_BWHK.scatter_(1, slot.expand(-1, 1, *k_BHK.shape[1:]), k_BHK.to(k_BWHK.dtype).unsqueeze(1))
    v_BWHV.scatter_(1, slot.expand(-1, 1, *v_BHV.shape[1:]), v_BHV.to(v_BWHV.dtype).unsqueeze(1))
    if count:
        position_B += 1
    return y.to(v_BHV.dtype)


@checked_shapes({"2 R <= K": lambda R, K: 2 * R <= K}, angles=("BR", "BR"))
def sliding_window_step(
    q_BHK: Tensor,
    k_BHK: Tensor,
    v_BHV: Tensor,
    k_BWHK: Tensor,
    v_BWHV: Tensor,
    position_B: Tensor,
    *,
    scale: float | None = None,
    angles: Angles | None = None,
    count: bool = True,
) -> Tensor:
    """One decode step against a ring buffer of the last W = window keys and values; returns y (B,H,V).

    The new token attends to itself and to the filled slots, then takes slot `position % W`, the oldest. The buffers and
    `position_B` (int32, tokens seen so far) are updated in place, without reading anything back to the host. With
    `angles` (B,R) (module `rotary`) q and k are turned first. `count=False` leaves `position_B` to the caller, for
    layers that share it. On CUDA one launch, and one that counts; no gradient.
    """
    if q_BHK.is_cuda and q_BHK.shape[1] == k_BHK.shape[1]:
        from . import attention_decode_triton as kernels

        if kernels.unsupported(q_BHK, k_BHK, v_BHV, k_BWHK, v_BWHV, angles) is None:
            y_BHV = kernels.attention_decode(
                q_BHK, k_BHK, v_BHV, k_BWHK, v_BWHV, position_B, scale=scale, angles=angles, ring=True
            )
            if count:
                position_B += 1
            return y_BHV
    return reference_step(q_BHK, k_BHK, v_BHV, k_BWHK, v_BWHV, position_B, scale=scale, angles=angles, count=count)


def flops(
    *,
    batch: int,
    length: int,
    heads: int,
    key_dim: int,
    value_dim: int,
    window: int,
    state: bool = False,
    backward: bool = False,
) -> int:
    """2 (K + V) per query and key read; with `state` every query reads window + 1 keys."""
    pairs = length * (window + 1) if state else causal_pairs(length, window)
    return total_flops(batch * heads * pairs * 2 * (key_dim + value_dim), backward=backward)


def bytes_moved(
    *,
    batch: int,
    length: int,
    heads: int,
    key_dim: int,
    value_dim: int,
    window: int,
    element_bytes: int = 2,
    state: bool = False,
    backward: bool = False,
) -> int:
    """q, k, v in and y out; with `state` also window keys and values in, and the new ones out."""
    tokens, width = batch * length * heads, key_dim + value_dim
    inputs, outputs = tokens * (key_dim + width), tokens * value_dim
    if state:
        inputs += batch * heads * window * width
        outputs += batch * heads * min(length, window) * width
    return total_bytes(inputs, outputs, element_bytes=element_bytes, backward=backward)
