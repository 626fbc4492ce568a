"""What delta rules read, from what a layer projects: unit keys, step sizes and decays, in one launch.

DeltaNet, Gated DeltaNet and Kimi delta attention (arXiv 2406.06484, 2412.06464, 2510.26692), per head of K channels,

    beta = sigmoid(beta logit),   log alpha = -exp(A_log) softplus(decay logit + bias)
    q <- q / |q| / sqrt(K),   k <- k / |k|,   g = log alpha

with a decay for a head, for a channel, or none, read by `layer_delta_rule`; RWKV-7 (arXiv 2503.14456, section 4),

    eta = sigmoid(rate logit),   kappa = k xi / |k xi|
    k <- k (1 + (eta - 1) alpha),   a = -eta kappa,   b = kappa,   g = -exp(-1/2) sigmoid(decay logit).

read by `delta_rule`. |x| is sqrt(sum x^2 + 1e-6). float32 inside (float64 for float64 inputs), and so are beta and g.
"""

import math

import torch.nn.functional as F
from torch import Tensor

from .costs import total_bytes
from .precision import accumulation_dtype, negative_exp, without_autocast
from .shapes import checked_shapes

EPS = 1e-6
RWKV7_DECAY = -math.exp(-0.5)  # g of RWKV-7 at its strongest


def unit(x: Tensor) -> Tensor:
    """x / |x| over the last dimension."""
    return x * (x.square().sum(-1, keepdim=True) + EPS).rsqrt()


@without_autocast
def reference(
    q_xHK: Tensor,
    k_xHK: Tensor,
    beta_xH: Tensor,
    decay_xE: Tensor | None = None,
    A_log_H: Tensor | None = None,
    bias_E: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """`delta_inputs` in PyTorch: differentiable, any device."""
    dtype, wide = q_xHK.dtype, accumulation_dtype(q_xHK.dtype)
    q, n, g = unit(q_xHK.to(wide)) * q_xHK.shape[-1] ** -0.5, unit(k_xHK.to(wide)), None
    if decay_xE is not None and A_log_H is not None and bias_E is not None:
        steps_xE = F.softplus(decay_xE.to(wide) + bias_E.to(wide))
        g = negative_exp(A_log_H).to(wide).unsqueeze(-1) * steps_xE.unflatten(-1, (len(A_log_H), -1))
    return q.to(dtype), n.to(dtype), beta_xH.to(wide).sigmoid(), g


@checked_shapes({"E is H or H K": lambda E, H, K: E in (H, H * K)})
def delta_inputs(
    q_xHK: Tensor,
    k_xHK: Tensor,
    beta_xH: Tensor,
    decay_xE: Tensor | None = None,
    A_log_H: Tensor | None = None,
    bias_E: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """q, k (..., H, K) and logits -> q, k in their dtype, beta (..., H), and g (..., H, K or 1) or None.

    beta (..., H) and decay are logits; decay and bias have H entries, or H K for decays of channels, or there are none.
    """
    tensors = q_xHK, k_xHK, beta_xH, decay_xE, A_log_H, bias_E
    if q_xHK.is_cuda:
        from . import delta_inputs_triton as kernels

        if kernels.unsupported(*tensors) is None:
            return kernels.delta_inputs(*tensors)
    return reference(*tensors)


@without_autocast
def rwkv7_reference(
    k_xHK: Tensor, rate_xHK: Tensor, decay_xHK: Tensor, xi_HK: Tensor, alpha_HK: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`rwkv7_inputs` in PyTorch: differentiable, any device."""
    dtype, wide = k_xHK.dtype, accumulation_dtype(k_xHK.dtype)
    k, eta, xi, alpha = k_xHK.to(wide), rate_xHK.to(wide).sigmoid(), xi_HK.to(wide), alpha_HK.to(wide)
    kappa, g = unit(k * xi), RWKV7_DECAY * decay_xHK.to(wide).sigmoid()
    return (k * (1 + (eta - 1) * alpha)).to(dtype), (-eta * kappa).to(dtype), kappa.to(dtype), g


@checked_shapes()
def rwkv7_inputs(
    k_xHK: Tensor, rate_xHK: Tensor, decay_xHK: Tensor, xi_HK: Tensor, alpha_HK: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """k and the logits of eta and of decays (..., H, K), xi, alpha (H,K) -> k, a, b in the dtype of k, and g."""
    tensors = k_xHK, rate_xHK, decay_xHK, xi_HK, alpha_HK
    if k_xHK.is_cuda:
        from . import rwkv7_inputs_triton as kernels

        if kernels.unsupported(*tensors) is None:
            return kernels.rwkv7_inputs(*tensors)
    return rwkv7_reference(*tensors)


def flops(*, tokens: int, heads: int, key_dim: int, backward: bool = False) -> int:
    """Per channel eight: two norms of three, q and k scaled; backward: twice as many more."""
    return tokens * heads * key_dim * 8 * (3 if backward else 1)


def bytes_moved(*, tokens: int, heads: int, key_dim: int, element_bytes: int = 2, backward: bool = False) -> int:
    """q and k in and out. Logits of heads are few."""
    elements = tokens * heads * key_dim
    return total_bytes(2 * elements, 2 * elements, element_bytes=element_bytes, backward=backward)
