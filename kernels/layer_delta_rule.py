"""The delta rule as layers have it: what a token writes and what it takes back stand under one key.

    S_t = (I - beta_t k_t k_t^T) diag(exp(g_t)) S_t-1 + beta_t k_t v_t^T        y_t = S_t^T q_t

per head with a state S (K,V), step sizes beta, and g <= 0 the log of the decay: one for each channel (B,L,H,K), for a
head (B,L,H,1), or none. With keys of unit norm these are DeltaNet (arXiv 2406.06484), with decays of heads Gated
DeltaNet (2412.06464), of channels Kimi delta attention (2510.26692). q is not scaled. It is `delta_rule` with a =
-beta k, b = exp(g) k and beta k for k. Told by k and beta alone, in a chunk of T tokens behind a state S and without
decays,

    W = V - K S - A W,   Y = Q S + P W,   S' = S + (beta K)^T W,   A = tril(K K^T, -1) beta,   P = tril(Q K^T) beta

with W = v_t - S_t-1^T k_t, what is new in each value. float32 (float64 for float64 inputs), and so is the state.

On CUDA the Triton kernels compute what `layer_delta_rule_triton.unsupported` has no reason against; `delta_rule` takes
the rest, with a, b and beta k made for it.
"""

from typing import Any

import torch
from torch import Tensor

from .costs import total_bytes, total_flops
from .delta_rule import delta_rule
from .delta_rule import reference as general_reference
from .delta_rule import step_reference as general_step_reference
from .precision import accumulation_dtype, without_autocast
from .shapes import checked_shapes


def with_both_keys(
    k_xHK: Tensor, beta_xH: Tensor, g_xHK: Tensor | None, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """k, a and b of `delta_rule`, in this dtype."""
    k, wide = k_xHK.to(accumulation_dtype(dtype)), accumulation_dtype(dtype)
    written = (beta_xH.to(wide).unsqueeze(-1) * k).to(dtype)
    read = k if g_xHK is None else g_xHK.to(wide).exp() * k
    return written, -written, read.to(dtype)


@without_autocast
def reference(
    q_BLHK: Tensor,
    k_BLHK: Tensor,
    v_BLHV: Tensor,
    beta_BLH: Tensor,
    g_BLHK: Tensor | None = None,
    *,
    initial_state: Tensor | None = None,
    return_state: bool = False,
) -> Any:
    """`layer_delta_rule` in PyTorch: differentiable once, any device."""
    dtype = accumulation_dtype(v_BLHV.dtype)
    k, a, b = with_both_keys(k_BLHK, beta_BLH, g_BLHK, dtype)
    options: Any = {"initial_state": initial_state, "return_state": return_state}
    found = general_reference(q_BLHK.to(dtype), k, v_BLHV.to(dtype), a, b, g_BLHK, **options)
    return (found[0].to(v_BLHV.dtype), found[1]) if return_state else found.to(v_BLHV.dtype)  # type: ignore[union-attr]


@checked_shapes({"J is K or 1": lambda J, K: J in (K, 1)}, g_BLHK="BLHJ", initial_state="BHKV")
def layer_delta_rule(
    q_BLHK: Tensor,
    k_BLHK: Tensor,
    v_BLHV: Tensor,
    beta_BLH: Tensor,
    g_BLHK: Tensor | None = None,
    *,
    initial_state: Tensor | None = None,
    return_state: bool = False,
) -> Any:
    """q, k (B,L,H,K), v (B,L,H,V), beta (B,L,H), g (B,L,H,K or 1) -> y (B,L,H,V), and the state (B,H,K,V) if asked for.

    `initial_state` continues a sequence: a prefix, then the rest, gives the whole.
    """
    tensors = q_BLHK, k_BLHK, v_BLHV, beta_BLH, g_BLHK
    options: Any = {"initial_state": initial_state, "return_state": return_state}
    if not v_BLHV.is_cuda:
        return reference(*tensors, **options)
    from . import layer_delta_rule_triton as kernels

    if kernels.unsupported(*tensors, initial_state) is None:
        return kernels.layer_delta_rule(*tensors, **options)
    k, a, b = with_both_keys(k_BLHK, beta_BLH, g_BLHK, v_BLHV.dtype)
    return delta_rule(q_BLHK, k, v_BLHV, a, b, g_BLHK, **options)


@checked_shapes({"J is K or 1": lambda J, K: J in (K, 1)}, g_BHK="BHJ")
def layer_delta_rule_step(
    q_BHK: Tensor, k_BHK: Tensor, v_BHV: Tensor, beta_BH: Tensor, g_BHK: Tensor | None, state_BHKV: Tensor
) -> Tensor:
    """One decode step. Updates `state_BHKV` in place; returns y (B,H,V) in the dtype of v."""
    if state_BHKV.is_cuda:
        from . import delta_rule_step_triton as kernels

        if kernels.unsupported(q_BHK, k_BHK, v_BHV, beta_BH, None, g_BHK, state_BHKV) is None:
            return kernels.step(q_BHK, k_BHK, v_BHV, beta_BH, None, g_BHK, state_BHKV)
    return step_reference(q_BHK, k_BHK, v_BHV, beta_BH, g_BHK, state_BHKV)


@without_autocast
def step_reference(
    q_BHK: Tensor, k_BHK: Tensor, v_BHV: Tensor, beta_BH: Tensor, g_BHK: Tensor | None, state_BHKV: Tensor
) -> Tensor:
    """`layer_delta_rule_step` in PyTorch."""
    k, a, b = with_both_keys(k_BHK, beta_BH, g_BHK, state_BHKV.dtype)
    return general_step_reference(q_BHK, k, v_BHV, a, b, g_BHK, state_BHKV)


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
    """Per token-head the lesser of 6 K V (state read twice, updated once) and 2 (L + 1) (K + V) (quadratic)."""
    tokens = batch * length * heads
    through_state = tokens * 6 * key_dim * value_dim
    quadratic = tokens * 2 * (length + 1) * (key_dim + value_dim)  # (L + 1) / 2 pairs, two weights and what they weigh
    return total_flops(through_state if state else min(through_state, quadratic), backward=backward)


def bytes_moved(
    *,
    batch: int,
    length: int,
    heads: int,
    key_dim: int,
    value_dim: int,
    decay_dim: int = 0,
    element_bytes: int = 2,
    state: bool = False,
    backward: bool = False,
) -> int:
    """q, k, v, beta and g in (`decay_dim` K, 1, or 0 for none), y out; with `state` K V float32 in and out per head."""
    tokens = batch * length * heads
    return total_bytes(
        tokens * (2 * key_dim + decay_dim + value_dim + 1),
        tokens * value_dim,
        state=batch * heads * key_dim * value_dim if state else 0,
        element_bytes=element_bytes,
        backward=backward,
    )
