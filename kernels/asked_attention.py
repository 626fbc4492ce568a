"""Causal attention whose queries are the asked tokens of each example (module `asked`), its keys all tokens.

    y_k = sum_j w_kj v_j / sum_j w_kj,     j <= p_k, the position of query k

    Taylor            w = 1 + s + s^2 / 2,  s = q . k / sqrt(F)              as in `taylor_attention`
    sliding window    w = exp(scale q . k),  j >= p_k - window               as in `sliding_window`

K queries instead of L: of 256 tokens the recall recipe asks for 16 to 64. No states for sequences this short.
Sums in float32 (float64 for float64 inputs).
"""

import torch
from torch import Tensor

from .packing import Packing
from .precision import accumulation_dtype, without_autocast
from .shapes import checked_shapes


@without_autocast
def reference(
    q_BKHF: Tensor,
    k_BLHF: Tensor,
    v_BLHV: Tensor,
    positions_BK: Tensor,
    *,
    window: int | None = None,
    scale: float | None = None,
    packing: Packing | None = None,
) -> Tensor:
    """Both in PyTorch: the sliding window's with a `window`, else Taylor's. Differentiable, any device."""
    if packing is not None:
        k_BLHF, v_BLHV = packing.spread(k_BLHF), packing.spread(v_BLHV)
    dtype = accumulation_dtype(v_BLHV.dtype)
    q, k, v = (x.to(dtype).transpose(1, 2) for x in (q_BKHF, k_BLHF, v_BLHV))
    s_BHKL = (q @ k.mT) * (q.shape[-1] ** -0.5 if scale is None else scale)
    distance_BKL = positions_BK[..., None] - torch.arange(k.shape[2], device=k.device)
    hidden_BHKL = ((distance_BKL < 0) if window is None else (distance_BKL < 0) | (distance_BKL > window))[:, None]
    if window is None:
        weights = ((0.5 * s_BHKL + 1) * s_BHKL + 1).masked_fill(hidden_BHKL, 0)
        weights = weights / weights.sum(-1, keepdim=True)
    else:
        weights = s_BHKL.masked_fill(hidden_BHKL, float("-inf")).softmax(-1)
    return (weights @ v).transpose(1, 2).to(v_BLHV.dtype)


@checked_shapes({"P is B, or 1 for packed examples": lambda P, B: P in (B, 1)}, k_BLHF="PLHF", v_BLHV="PLHV")
def taylor_attention_asked(
    q_BKHF: Tensor, k_BLHF: Tensor, v_BLHV: Tensor, positions_BK: Tensor, *, packing: Packing | None = None
) -> Tensor:
    """q (B,K,H,F), k (B,L,H,F), v (B,L,H,V), positions (B,K) int64 -> y (B,K,H,V).

    With `packing` k and v are (1,T,H,F) and (1,T,H,V).
    """
    return _attention(q_BKHF, k_BLHF, v_BLHV, positions_BK, None, None, packing)


@checked_shapes(
    {
        "P is B, or 1 for packed examples": lambda P, B: P in (B, 1),
        "E = H (2 F + V)": lambda E, H, F, V: E == H * (2 * F + V),
    },
    k_BLHF="PLHF",
    v_BLHV="PLHV",
)
def sliding_window_asked(
    q_BKHF: Tensor,
    k_BLHF: Tensor,
    v_BLHV: Tensor,
    positions_BK: Tensor,
    window: int,
    *,
    scale: float | None = None,
    packing: Packing | None = None,
    bias_E: Tensor | None = None,
) -> Tensor:
    """As `taylor_attention_asked`, with softmax over a window; scale 1 / sqrt(F) by default.

    bias (H F + H F + H V): what a projection has added to q, k and v and takes no gradient for. Here that needs no sums
    over all tokens: softmax's weights sum to one.
    """
    if window < 1:
        raise ValueError(f"window must be at least 1 (keys before the query's own), not {window}")
    return _attention(q_BKHF, k_BLHF, v_BLHV, positions_BK, window, scale, packing, bias_E)


def _attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    positions_BK: Tensor,
    window: int | None,
    scale: float | None,
    packing: Packing | None,
    bias_E: Tensor | None = None,
) -> Tensor:
    if q.is_cuda:
        from . import asked_attention_triton as fused

        if fused.supported(q, k, v):
            return fused.attention(q, k, v, positions_BK, window, scale, packing, bias_E)
    if bias_E is not None:  # added once more, as nothing that has its gradient
        parts = (bias_E - bias_E.detach()).split([x.shape[-2] * x.shape[-1] for x in (q, k, v)])
        q, k, v = (x + part.view(x.shape[-2:]).to(x.dtype) for x, part in zip((q, k, v), parts, strict=True))
    return reference(q, k, v, positions_BK, window=window, scale=scale, packing=packing)
