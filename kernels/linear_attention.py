"""Linear attention with the feature map elu(x) + 1.

    A_ij = phi(q_i) . phi(k_j),  phi(x) = elu(x) + 1 > 0       y_i = sum_j<=i A_ij v_j / (sum_j<=i A_ij + 1e-12)

Source: Katharopoulos et al., arXiv 2006.16236, equations 9 to 12. The state (B,H,K,V+1) holds sum_j phi(k_j) [v_j, 1]
in float32 (float64 for float64 inputs).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .chunked import Kernel, Weights, attention_flops, attention_step, chunked_attention
from .costs import total_bytes, total_flops
from .precision import accumulation_dtype, without_autocast


def _feature_map(x: Tensor, dtype: torch.dtype) -> Tensor:
    return F.elu(x.to(dtype)) + 1


def _weights(q: Tensor, k: Tensor) -> Weights:
    return Weights(q @ k.transpose(1, 2), slope=None, scale=1.0)


# The features are no wider than the keys, so they are formed once for the whole sequence, before the loop.
KERNEL = Kernel(_weights, features=lambda x: x)


@without_autocast
def reference(
    q_BLHK: Tensor,
    k_BLHK: Tensor,
    v_BLHV: Tensor,
    *,
    initial_state: Tensor | None = None,
    return_state: bool = False,
    chunk: int = 64,
) -> Tensor | tuple[Tensor, Tensor]:
    """`linear_attention` in PyTorch: differentiable once, any device."""
    q, k = (_feature_map(x, accumulation_dtype(v_BLHV.dtype)) for x in (q_BLHK, k_BLHK))
    return chunked_attention(q, k, v_BLHV, KERNEL, initial_state=initial_state, return_state=return_state, chunk=chunk)


def linear_attention(
    q_BLHK: Tensor,
    k_BLHK: Tensor,
    v_BLHV: Tensor,
    *,
    initial_state: Tensor | None = None,
    return_state: bool = False,
    chunk: int = 64,
) -> Tensor | tuple[Tensor, Tensor]:
    """Causal linear attention. q, k (B,L,H,K), v (B,L,H,V) -> y (B,L,H,V), and the state (B,H,K,V+1) if asked for.

    `chunk` is the tokens per state update in sequences longer than 256; shorter ones are one quadratic block.
    `initial_state` continues a sequence: a prefix, then the rest, gives the whole.
    """
    return reference(q_BLHK, k_BLHK, v_BLHV, initial_state=initial_state, return_state=return_state, chunk=chunk)


@without_autocast
def linear_attention_step(q_BHK: Tensor, k_BHK: Tensor, v_BHV: Tensor, state_BHKW: Tensor) -> Tensor:
    """One decode step. Adds the token to `state_BHKW` (B,H,K,V+1) in place; returns y (B,H,V) in the dtype of v."""
    dtype = state_BHKW.dtype
    return attention_step(_feature_map(q_BHK, dtype), _feature_map(k_BHK, dtype), v_BHV, state_BHKW)


def flops(
    *,
    batch: int,
    length: int,
    heads: int,
    key_dim: int,
    value_dim: int,
    state: bool = False,
    backward: bool = False,
) -> int:
    """Per token-head the lesser of 4 K (V + 1) (state updated, state read) and (L + 1) (K + V) (quadratic)."""
    forward = attention_flops(batch * length * heads, length, key_dim, value_dim, key_dim, state)
    return total_flops(forward, backward=backward)


def bytes_moved(
    *,
    batch: int,
    length: int,
    heads: int,
    key_dim: int,
    value_dim: int,
    element_bytes: int = 2,
    state: bool = False,
    backward: bool = False,
) -> int:
    """q, k, v in and y out: 2 K + 2 V elements per token-head; with `state` K (V + 1) float32 in and out per head."""
    tokens = batch * length * heads
    return total_bytes(
        tokens * (2 * key_dim + value_dim),
        tokens * value_dim,
        state=batch * heads * key_dim * (value_dim + 1) if state else 0,
        element_bytes=element_bytes,
        backward=backward,
    )
