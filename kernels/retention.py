"""Retention: linear attention with a fixed decay per head, without a feature map and without a normaliser.

    S_t = gamma S_{t-1} + scale v_t k_t^T        y_t = S_t q_t

per head with a state S (V,K). Source: RetNet, arXiv 2307.08621, section 2. float32 (float64 for float64 inputs). The
decays are constants: no gradient is formed for them.

The reference is that of `ssd`, with step size `scale` and every head a group. On CUDA the Triton kernels of
linear_attention compute it, which form nothing for decays that depend on the token; float64 goes to the reference.
"""

from typing import Any

import torch
from torch import Tensor

from .costs import STATE_BYTES
from .gated_linear_attention import flops as gated_flops
from .linear_attention import bytes_moved as linear_bytes
from .precision import accumulation_dtype
from .shapes import checked_shapes
from .ssd import reference as ssd_reference


def reference(
    q_BLHK: Tensor,
    k_BLHK: Tensor,
    v_BLHV: Tensor,
    log_decay_H: Tensor,
    *,
    scale: float = 1.0,
    initial_state: Tensor | None = None,
    return_state: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """`retention` in PyTorch: differentiable, any device."""
    dtype = accumulation_dtype(v_BLHV.dtype)
    steps_BLH = v_BLHV.new_full(v_BLHV.shape[:-1], scale, dtype=dtype)
    rates_H = log_decay_H.detach().to(dtype) / scale
    return ssd_reference(
        v_BLHV, steps_BLH, rates_H, k_BLHK, q_BLHK, initial_state=initial_state, return_state=return_state
    )


@checked_shapes(initial_state="BHVK")
def retention(
    q_BLHK: Tensor,
    k_BLHK: Tensor,
    v_BLHV: Tensor,
    log_decay_H: Tensor,
    *,
    scale: float = 1.0,
    initial_state: Tensor | None = None,
    return_state: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """q, k (B,L,H,K), v (B,L,H,V), log gamma (H) <= 0 -> y (B,L,H,V), and the state (B,H,V,K) if asked for.

    `scale` is not zero. `initial_state` continues a sequence: a prefix, then the rest, gives the whole. A decode step
    is `ssd_step` with the reference's arguments.
    """
    if not scale:
        raise ValueError(f"scale must not be {scale}: decays are divided by it")
    options: dict[str, Any] = {"scale": scale, "initial_state": initial_state, "return_state": return_state}
    if v_BLHV.is_cuda and v_BLHV.dtype != torch.float64:
        from . import linear_attention_triton as kernels

        if kernels.unsupported(q_BLHK, k_BLHK, v_BLHV, initial_state, normalise=False) is None:
            return kernels.retention(q_BLHK, k_BLHK, v_BLHV, log_decay_H, **options)
    return reference(q_BLHK, k_BLHK, v_BLHV, log_decay_H, **options)


flops = gated_flops  # products are the same, whatever decays


def bytes_moved(*, batch: int, heads: int, key_dim: int, state: bool = False, **sizes: Any) -> int:
    """q, k, v in and y out, as `linear_attention`; with `state` K V float32 in and out per head, no normaliser."""
    whole = linear_bytes(batch=batch, heads=heads, key_dim=key_dim, state=state, **sizes)
    return whole - (2 * STATE_BYTES * batch * heads * key_dim if state else 0)
