"""Sliding-window softmax attention: position i reads the keys i - window ... i, its own included (window + 1 keys).

    y_i = sum_j softmax_j(scale q_i . k_j) v_j,   max(0, i - window) <= j <= i,   scale = 1 / sqrt(K) by default

Source: Beltagy et al., arXiv 2004.05150; BASED, arXiv 2402.18668, section 4. The reference works in blocks of queries, each
against its own keys and the `window` keys before them: memory is linear in the length. Softmax in float32 (float64 for
float64 inputs).
"""

import torch
from torch import Tensor

from .chunked import accumulation_dtype


def _softmax_attention(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor, scale: float) -> Tensor:
    """q (..., T, K), k (..., S, K), v (..., S, V), allowed (..., T, S) -> (..., T, V)."""
    scores = (q * scale) @ k.transpose(-1, -2)
    return scores.masked_fill(~allowed, float("-inf")).softmax(-1) @ v


def _blocks(x_BHLX: Tensor, block: int) -> Tensor:
    """(B,H,L,X) -> (B,H,n,T,X), zeros after the end."""
    padding = -x_BHLX.shape[2] % block
    return torch.nn.functional.pad(x_BHLX, (0, 0, 0, padding)).unflatten(2, (-1, block))


def _with_previous(x: Tensor, window: int) -> Tensor:
    """(B,H,n,T,X) -> (B,H,n,window+T,X): each block behind the last `window` rows of the block before it."""
    tails = x[:, :, :-1, x.shape[3] - window :]
    return torch.cat([torch.nn.functional.pad(tails, (0, 0, 0, 0, 1, 0)), x], dim=3)


def reference(q_BLHK: Tensor, k_BLHK: Tensor, v_BLHV: Tensor, window: int, *, scale: float | None = None) -> Tensor:
    """`sliding_window` in PyTorch: differentiable, any device."""
    if window < 1:
        raise ValueError(f"window must be at least 1 (keys before the query's own), not {window}")
    length = q_BLHK.shape[1]
    scale = q_BLHK.shape[-1] ** -0.5 if scale is None else scale
    dtype = accumulation_dtype(v_BLHV.dtype)
    q, k, v = (x.to(dtype).transpose(1, 2) for x in (q_BLHK, k_BLHK, v_BLHV))
    if window >= length - 1:
        allowed = torch.ones(length, length, dtype=torch.bool, device=q.device).tril()
        y = _softmax_attention(q, k, v, allowed, scale)
    else:
        block = max(window, 16)  # as wide as the window: half of every block of scores is used
        q, k, v = (
            _blocks(q, block),
            _with_previous(_blocks(k, block), window),
            _with_previous(_blocks(v, block), window),
        )
        query = torch.arange(q.shape[2] * block, device=q.device).unflatten(0, (-1, block))
        key = torch.arange(-window, block, device=q.device) + query[:, :1]
        distance = query.unsqueeze(-1) - key.unsqueeze(-2)
        allowed = (distance >= 0) & (distance <= window) & (key >= 0).unsqueeze(-2)
        y = _softmax_attention(q, k, v, allowed, scale).flatten(2, 3)[:, :, :length]
    return y.transpose(1, 2).to(v_BLHV.dtype)


def sliding_window(
    q_BLHK: Tensor, k_BLHK: Tensor, v_BLHV: Tensor, window: int, *, scale: float | None = None
) -> Tensor:
    """Causal attention to the last `window` keys and the query's own. q, k (B,L,H,K), v (B,L,H,V) -> y (B,L,H,V).

    Raises ValueError if `window` is below 1.
    """
    return reference(q_BLHK, k_BLHK, v_BLHV, window, scale=scale)


def sliding_window_step(
    q_BHK: Tensor,
    k_BHK: Tensor,
    v_BHV: Tensor,
    k_BWHK: Tensor,
    v_BWHV: Tensor,
    position_B: Tensor,
    *,
    scale: float | None = None,
) -> Tensor:
    """One decode step against a ring buffer of the last W = window keys and values; returns y (B,H,V).

    The new token attends to itself and to the filled slots, then takes slot `position % W`, the oldest. The buffers and
    `position_B` (int32, tokens seen so far) are updated in place, without reading anything back to the host.
    """
    window = k_BWHK.shape[1]
    scale = q_BHK.shape[-1] ** -0.5 if scale is None else scale
    dtype = accumulation_dtype(v_BHV.dtype)
    q, k, v = q_BHK.to(dtype), k_BHK.to(dtype), v_BHV.to(dtype)
    ring = torch.einsum("bhk,bwhk->bhw", q, k_BWHK.to(dtype))
    filled = torch.arange(window, device=q.device) < position_B.unsqueeze(-1)
    ring = ring.masked_fill(~filled.unsqueeze(1), float("-inf"))
    own = (q * k).sum(-1, keepdim=True)
    weights = (scale * torch.cat([ring, own], dim=-1)).softmax(-1)
    y = torch.einsum("bhw,bwhv->bhv", weights[..., :-1], v_BWHV.to(dtype)) + weights[..., -1:] * v
    slot = (position_B % window).long().view(-1, 1, 1, 1)
    k_BWHK.scatter_(1, slot.expand(-1, 1, *k_BHK.shape[1:]), k_BHK.to(k_BWHK.dtype).unsqueeze(1))
    v_BWHV.scatter_(1, slot.expand(-1, 1, *v_BHV.shape[1:]), v_BHV.to(v_BWHV.dtype).unsqueeze(1))
    position_B += 1
    return y.to(v_BHV.dtype)
