"""Linear attention with the feature map elu(x) + 1, or with features that the caller has formed.

    A_ij = phi(q_i) . phi(k_j),  phi(x) = elu(x) + 1 > 0       y_i = sum_j<=i A_ij v_j / (sum_j<=i A_ij + 1e-12)

Source: Katharopoulos et al., arXiv 2006.16236, equations 9 to 12. The state (B,H,F,V+1) holds sum_j phi(k_j) [v_j, 1]
in float32 (float64 for float64 inputs); F = K for elu(x) + 1.

Features of either sign can make the sum under y negative, or nearly zero and y large. It is divided by as it is, as in
the published code.

On CUDA the reference runs too. Triton's `ssd` with no decay and a column of ones would be the same sum, but it takes at
most 64 columns, one less than the 64 values of a common head and their normaliser, and it is unproven there.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from .chunked import Kernel, Weights, attention_flops, attention_step, chunked_attention
from .costs import total_bytes, total_flops
from .precision import accumulation_dtype, without_autocast

FeatureMap = Callable[[Tensor], Tensor]


def pos_elu(x: Tensor) -> Tensor:
    """elu(x) + 1: (..., K) -> (..., K), positive."""
    return F.elu(x) + 1


def _mapped(x: Tensor, feature_map: FeatureMap | None, dtype: torch.dtype) -> Tensor:
    x = x.to(dtype)
    return x if feature_map is None else feature_map(x)


def _weights(q: Tensor, k: Tensor) -> Weights:
    return Weights(q @ k.transpose(1, 2), slope=None, scale=1.0)


# The features are formed once for the whole sequence, before the loop: elu(x) + 1 is no wider than x.
KERNEL = Kernel(_weights, features=lambda x: x)


@without_autocast
def reference(
    q_BLHK: Tensor,
    k_BLHK: Tensor,
    v_BLHV: Tensor,
    *,
    feature_map: FeatureMap | None = pos_elu,
    initial_state: Tensor | None = None,
    return_state: bool = False,
    chunk: int = 64,
) -> Tensor | tuple[Tensor, Tensor]:
    """`linear_attention` in PyTorch: differentiable once, any device."""
    q, k = (_mapped(x, feature_map, accumulation_dtype(v_BLHV.dtype)) for x in (q_BLHK, k_BLHK))
    return chunked_attention(q, k, v_BLHV, KERNEL, initial_state=initial_state, return_state=return_state, chunk=chunk)


def linear_attention(
    q_BLHK: Tensor,
    k_BLHK: Tensor,
    v_BLHV: Tensor,
    *,
    feature_map: FeatureMap | None = pos_elu,
    initial_state: Tensor | None = None,
    return_state: bool = False,
    chunk: int = 64,
) -> Tensor | tuple[Tensor, Tensor]:
    """Causal linear attention. q, k (B,L,H,K), v (B,L,H,V) -> y (B,L,H,V), and the state (B,H,F,V+1) if asked for.

    `feature_map` takes (..., K) to (..., F); None: q and k (B,L,H,F) are features already.
    `chunk` is the tokens per state update in sequences longer than 256; shorter ones are one quadratic block.
    `initial_state` continues a sequence: a prefix, then the rest, gives the whole.
    """
    return reference(
        q_BLHK,
        k_BLHK,
        v_BLHV,
        feature_map=feature_map,
        initial_state=initial_state,
        return_state=return_state,
        chunk=chunk,
    )


@without_autocast
def linear_attention_step(
    q_BHK: Tensor, k_BHK: Tensor, v_BHV: Tensor, state_BHKW: Tensor, *, feature_map: FeatureMap | None = pos_elu
) -> Tensor:
    """One decode step. Adds the token to `state_BHKW` (B,H,F,V+1) in place; returns y (B,H,V) in the dtype of v."""
    q, k = (_mapped(x, feature_map, state_BHKW.dtype) for x in (q_BHK, k_BHK))
    return attention_step(q, k, v_BHV, state_BHKW)


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
