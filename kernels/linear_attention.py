"""Linear attention with the feature map elu(x) + 1, or with features that the caller has formed.

    A_ij = phi(q_i) . phi(k_j),  phi(x) = elu(x) + 1 > 0       y_i = sum_j<=i A_ij v_j / (sum_j<=i A_ij + 1e-12)

Source: Katharopoulos et al., arXiv 2006.16236, equations 9 to 12. The state (B,H,F,V+1) holds sum_j phi(k_j) [v_j, 1]
in float32 (float64 for float64 inputs); F = K for elu(x) + 1.

Features of either sign can make the sum under y negative, or nearly zero and y large. It is divided by as it is, as in
the published code.

On CUDA the Triton kernels compute what `linear_attention_triton.unsupported` has no reason against, with elu(x) + 1,
max(x, 1e-12), x^2 and x inside of them; the reference takes the rest: float64, and gradients of more than 256 features
beside values of 16 bits.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from .chunked import EPSILON, Kernel, Weights, attention_flops, attention_step, chunked_attention
from .costs import total_bytes, total_flops
from .precision import accumulation_dtype, without_autocast
from .shapes import checked_shapes

FeatureMap = Callable[[Tensor], Tensor]


def pos_elu(x: Tensor) -> Tensor:
    """elu(x) + 1: (..., K) -> (..., K), positive."""
    return F.elu(x) + 1


def relu(x: Tensor) -> Tensor:
    """max(x, 1e-12): a token without a positive entry still weighs something."""
    return x.clamp_min(EPSILON)


def square(x: Tensor) -> Tensor:
    """x^2."""
    return x.square()


# What the kernels compute themselves; any other map comes to them as features.
_NAMES: dict[FeatureMap | None, str] = {None: "none", pos_elu: "pos_elu", relu: "relu", square: "square"}


def _mapped(x: Tensor, feature_map: FeatureMap | None, dtype: torch.dtype) -> Tensor:
    x = x.to(dtype)
    return x if feature_map is None else feature_map(x)


def _check(name: str, state: Tensor | None, features: Tensor) -> None:
    """How many features a map gives is known once it was called; a map of the kernels' own gives one for each."""
    if state is not None and state.shape[2] != features.shape[-1]:
        raise ValueError(
            f"{name} is {tuple(state.shape)}: F is {state.shape[2]}, but there are {features.shape[-1]} features"
        )


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
    _check("initial_state", initial_state, q)
    return chunked_attention(q, k, v_BLHV, KERNEL, initial_state=initial_state, return_state=return_state, chunk=chunk)


@checked_shapes({"W = V + 1": lambda W, V: W == V + 1}, initial_state="BHFW")
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
    if q_BLHK.is_cuda and v_BLHV.dtype != torch.float64:
        from . import linear_attention_triton as kernels

        q, k, name = _for_kernels(q_BLHK, k_BLHK, v_BLHV.dtype, feature_map)
        _check("initial_state", initial_state, q)
        if kernels.unsupported(q, k, v_BLHV, initial_state) is None:
            return kernels.linear_attention(
                q, k, v_BLHV, feature_map=name, initial_state=initial_state, return_state=return_state
            )
        if name == "none":
            q_BLHK, k_BLHK, feature_map = q, k, None
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
def _for_kernels(
    q: Tensor, k: Tensor, dtype: torch.dtype, feature_map: FeatureMap | None
) -> tuple[Tensor, Tensor, str]:
    """q, k and the name of the map that is left to the kernels."""
    name = _NAMES.get(feature_map)
    if name is not None:
        return q, k, name
    accumulation = accumulation_dtype(dtype)
    return _mapped(q, feature_map, accumulation), _mapped(k, feature_map, accumulation), "none"


@checked_shapes({"W = V + 1": lambda W, V: W == V + 1}, state_BHKW="BHFW")
def linear_attention_step(
    q_BHK: Tensor, k_BHK: Tensor, v_BHV: Tensor, state_BHKW: Tensor, *, feature_map: FeatureMap | None = pos_elu
) -> Tensor:
    """One decode step. Adds the token to `state_BHKW` (B,H,F,V+1) in place; returns y (B,H,V) in the dtype of v."""
    if state_BHKW.is_cuda:
        from . import linear_attention_step_triton as kernels

        q, k, name = _for_kernels(q_BHK, k_BHK, state_BHKW.dtype, feature_map)
        _check("state_BHKW", state_BHKW, q)
        if kernels.unsupported(q, k, v_BHV, state_BHKW) is None:
            return kernels.step(q, k, v_BHV, state_BHKW, name)
    return step_reference(q_BHK, k_BHK, v_BHV, state_BHKW, feature_map=feature_map)


@without_autocast
def step_reference(
    q_BHK: Tensor, k_BHK: Tensor, v_BHV: Tensor, state_BHKW: Tensor, *, feature_map: FeatureMap | None = pos_elu
) -> Tensor:
    """`linear_attention_step` in PyTorch."""
    q, k = (_mapped(x, feature_map, state_BHKW.dtype) for x in (q_BHK, k_BHK))
    _check("state_BHKW", state_BHKW, q)
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
