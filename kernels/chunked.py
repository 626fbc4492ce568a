"""The chunk loop shared by the linear attentions: quadratic inside a chunk, a running state between chunks.

Causal kernel attention is y_i = sum_j<=i A_ij v_j / sum_j<=i A_ij with A_ij = phi(q_i).phi(k_j) >= 0. Inside a chunk of T
tokens A is formed as a T x T block; everything before the chunk has been folded into a state S = sum_j phi(k_j) [v_j, 1]
of size (features, V + 1). The extra column of ones makes the normaliser just another value column, so that numerator and
denominator come out of the same products. Work and memory are linear in the length.
"""

from collections.abc import Callable

import torch
from torch import Tensor

EPSILON = 1e-12
# Up to this length one quadratic block is cheaper than any state: a state costs about 4 F (V + 1) operations per token and
# pass (F = 153 features, V = 64: 40 thousand), a block of 256 tokens only (K + V) * 2 * 256 (41 thousand) in one product.
QUADRATIC_LIMIT = 256


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """float64 accumulates in itself, everything narrower in float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def with_ones(v: Tensor) -> Tensor:
    """(..., V) -> (..., V + 1): the column that sums to the normaliser."""
    return torch.cat([v, v.new_ones(v.shape[:-1] + (1,))], dim=-1)


def normalise(sums: Tensor) -> Tensor:
    """(..., V + 1) -> (..., V): the value columns over the last one."""
    return sums[..., :-1] / (sums[..., -1:] + EPSILON)


def chunked_attention(
    q_BLHK: Tensor,
    k_BLHK: Tensor,
    v_BLHV: Tensor,
    *,
    weights: Callable[[Tensor, Tensor], Tensor],
    features: Callable[[Tensor], Tensor],
    initial_state: Tensor | None,
    return_state: bool,
    chunk: int,
) -> tuple[Tensor, Tensor | None]:
    """Causal attention with the kernel `weights(q, k) = features(q) features(k)^T`, in accumulation precision throughout.

    `weights` maps (B,H,T,K) twice to (B,H,T,T), `features` maps (B,H,T,K) to (B,H,T,F). Returns y (B,L,H,V) in the dtype
    of v and, on request, the state (B,H,F,V+1) in accumulation precision.
    """
    length = v_BLHV.shape[1]
    dtype = accumulation_dtype(v_BLHV.dtype)
    q, k, v = (x.to(dtype).transpose(1, 2) for x in (q_BLHK, k_BLHK, v_BLHV))
    v = with_ones(v)
    state = None if initial_state is None else initial_state.to(dtype)
    chunk = length if length <= QUADRATIC_LIMIT else chunk
    outputs = []
    for start in range(0, length, chunk):
        part = slice(start, start + chunk)
        q_c, k_c, v_c = q[:, :, part], k[:, :, part], v[:, :, part]
        sums = weights(q_c, k_c).tril() @ v_c
        if state is not None:
            sums = sums + features(q_c) @ state
        outputs.append(normalise(sums))
        if return_state or start + chunk < length:
            update = features(k_c).transpose(-1, -2) @ v_c
            state = update if state is None else state + update
    y = outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=2)
    return y.transpose(1, 2).to(v_BLHV.dtype), state if return_state else None


def attention_step(features_q: Tensor, features_k: Tensor, v_BHV: Tensor, state_BHFW: Tensor) -> Tensor:
    """One token: adds features(k) [v, 1] to the state in place, then reads it with features(q). Returns y (B,H,V)."""
    v = with_ones(v_BHV.to(state_BHFW.dtype))
    state_BHFW += features_k.to(state_BHFW.dtype).unsqueeze(-1) * v.unsqueeze(-2)
    sums = (features_q.to(state_BHFW.dtype).unsqueeze(-2) @ state_BHFW).squeeze(-2)
    return normalise(sums).to(v_BHV.dtype)
