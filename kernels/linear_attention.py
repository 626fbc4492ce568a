"""Linear attention with the feature map elu(x) + 1.

    A_ij = phi(q_i) . phi(k_j),  phi(x) = elu(x) + 1 > 0       y_i = sum_j<=i A_ij v_j / (sum_j<=i A_ij + 1e-12)

Source: Katharopoulos et al., arXiv 2006.16236, equations 9 to 12. The state (B,H,K,V+1) holds sum_j phi(k_j) [v_j, 1] in
float32 (float64 for float64 inputs).
"""

import torch.nn.functional as F
from torch import Tensor

from .chunked import accumulation_dtype, attention_step, chunked_attention


def _feature_map(x: Tensor) -> Tensor:
    return F.elu(x.to(accumulation_dtype(x.dtype))) + 1


def _weights(q: Tensor, k: Tensor) -> Tensor:
    return q @ k.transpose(-1, -2)


def _identity(x: Tensor) -> Tensor:
    return x


def reference(
    q_BLHK: Tensor,
    k_BLHK: Tensor,
    v_BLHV: Tensor,
    *,
    initial_state: Tensor | None = None,
    return_state: bool = False,
    chunk: int = 64,
) -> Tensor | tuple[Tensor, Tensor]:
    """`linear_attention` in PyTorch: differentiable, any device."""
    y, state = chunked_attention(
        _feature_map(q_BLHK),
        _feature_map(k_BLHK),
        v_BLHV,
        weights=_weights,
        features=_identity,  # as wide as the keys, so mapped once for the whole sequence
        initial_state=initial_state,
        return_state=return_state,
        chunk=chunk,
    )
    return y if state is None else (y, state)


def linear_attention(
    q_BLHK: Tensor,
    k_BLHK: Tensor,
    v_BLHV: Tensor,
    *,
    initial_state: Tensor | None = None,
    return_state: bool = False,
    chunk: int = 64,
) -> Tensor | tuple[Tensor, Tensor]:
    """Causal linear attention. q, k (B,L,H,K), v (B,L,H,V) -> y (B,L,H,V), and the state (B,H,K,V+1) on request.

    `chunk` is the tokens per state update for sequences longer than 256; shorter ones are one quadratic block.
    `initial_state` continues a sequence: a prefix, then the rest, gives the whole.
    """
    return reference(q_BLHK, k_BLHK, v_BLHV, initial_state=initial_state, return_state=return_state, chunk=chunk)


def linear_attention_step(q_BHK: Tensor, k_BHK: Tensor, v_BHV: Tensor, state_BHKW: Tensor) -> Tensor:
    """One decode step. Adds the token to `state_BHKW` (B,H,K,V+1) in place; returns y (B,H,V) in the dtype of v."""
    return attention_step(_feature_map(q_BHK), _feature_map(k_BHK), v_BHV, state_BHKW)
