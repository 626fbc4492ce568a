"""Taylor linear attention: softmax attention with exp replaced by its second-order Taylor polynomial.

    s_ij = q_i . k_j / sqrt(K)        A_ij = 1 + s_ij + s_ij^2 / 2 = phi(q_i) . phi(k_j)
    y_i  = sum_j<=i A_ij v_j / (sum_j<=i A_ij + 1e-12)

Source: BASED, arXiv 2402.18668, section 4; Zhang et al., arXiv 2402.04347. A >= 1/2, so the normaliser of position t is
at least (t + 1) / 2.

phi(x) is packed: x x^T is symmetric, so only its upper triangle is kept, row by row, off-diagonal ones times sqrt(2):
    phi(x) = [1, x / K^(1/4), {x_i x_j c_ij}_i<=j],   c_ii = 1 / sqrt(2 K),  c_ij = 1 / sqrt(K)
F = 1 + K + K (K + 1) / 2 features (153 for K = 16) where the published code keeps 1 + K + K^2 (273).

The state (B,H,F,V+1) holds sum_j phi(k_j) [v_j, 1] in float32 (float64 for float64 inputs): in bfloat16 the constant
feature would stop counting tokens at 256.

On CUDA the Triton kernels compute what `taylor_attention_triton.unsupported` has no reason against; the reference takes
the rest: float64, key widths that are no multiple of 8 or beyond 32, key width 8 through states, gradients that pass
through states.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .chunked import Kernel, Weights, attention_flops, attention_step, chunked_attention
from .costs import total_bytes, total_flops
from .precision import without_autocast


def feature_count(key_dim: int) -> int:
    """F = 1 + K + K (K + 1) / 2."""
    return 1 + key_dim + key_dim * (key_dim + 1) // 2


class _PackedSquare(torch.autograd.Function):
    """x (..., K) -> {x_i x_j c_ij}_i<=j (..., K (K + 1) / 2).

    Autograd through indexing would scatter with atomics: slow, and in no fixed order on a GPU. Written out, the
    backward gathers: with the symmetric matrix G of gradients, dx = (G * c * (1 + I)) x.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        width = x.shape[-1]
        row, column = torch.triu_indices(width, width, device=x.device)
        scale = x.new_full(row.shape, width**-0.5).masked_fill_(row == column, (2 * width) ** -0.5)
        return x[..., row] * x[..., column] * scale

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        width = x.shape[-1]
        index = torch.arange(width, device=x.device)
        low, high = torch.minimum(index[:, None], index), torch.maximum(index[:, None], index)
        place = low * width - low * (low - 1) // 2 + high - low
        scale = x.new_full(place.shape, width**-0.5).masked_fill_(low == high, 2 * (2 * width) ** -0.5)
        return ((grad[..., place] * scale) @ x.unsqueeze(-1)).squeeze(-1)


def taylor_feature_map(x: Tensor) -> Tensor:
    """(..., K) -> (..., F), packed as in the module docstring: phi(q) . phi(k) = 1 + s + s^2 / 2."""
    return torch.cat([torch.ones_like(x[..., :1]), x * x.shape[-1] ** -0.25, _PackedSquare.apply(x)], dim=-1)


def _weights(q: Tensor, k: Tensor) -> Weights:
    """1 + s + s^2 / 2 = r^2 + 1/2 with r = (1 + s) / sqrt(2): one product, one square, one addition."""
    scale = (2 * q.shape[-1]) ** -0.5
    root = torch.baddbmm(q.new_full((), 0.5**0.5), q, k.transpose(1, 2), alpha=scale)
    return Weights((root * root).add_(0.5), slope=root, scale=2 * scale)


KERNEL = Kernel(_weights, taylor_feature_map)


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
    """`taylor_attention` in PyTorch: differentiable once, any device."""
    return chunked_attention(
        q_BLHK, k_BLHK, v_BLHV, KERNEL, initial_state=initial_state, return_state=return_state, chunk=chunk
    )


def taylor_attention(
    q_BLHK: Tensor,
    k_BLHK: Tensor,
    v_BLHV: Tensor,
    *,
    initial_state: Tensor | None = None,
    return_state: bool = False,
    chunk: int = 64,
) -> Tensor | tuple[Tensor, Tensor]:
    """Causal Taylor linear attention. q, k (B,L,H,K), v (B,L,H,V) -> y (B,L,H,V), and the state (B,H,F,V+1).

    `chunk` is the tokens per state update in sequences longer than 256; shorter ones are one quadratic block, which is
    cheaper there (the kernels choose for themselves). `initial_state` continues a sequence: a prefix, then the rest,
    gives the whole.
    """
    if q_BLHK.is_cuda:
        from . import taylor_attention_triton as kernels

        if kernels.unsupported(q_BLHK, k_BLHK, v_BLHV, initial_state, return_state) is None:
            return kernels.taylor_attention(
                q_BLHK, k_BLHK, v_BLHV, initial_state=initial_state, return_state=return_state
            )
    return reference(q_BLHK, k_BLHK, v_BLHV, initial_state=initial_state, return_state=return_state, chunk=chunk)


def taylor_attention_step(q_BHK: Tensor, k_BHK: Tensor, v_BHV: Tensor, state_BHFW: Tensor) -> Tensor:
    """One decode step. Adds the token to `state_BHFW` (B,H,F,V+1) in place; returns y (B,H,V) in the dtype of v."""
    if state_BHFW.is_cuda:
        from . import taylor_step_triton as kernels

        if kernels.unsupported(q_BHK, k_BHK, v_BHV, state_BHFW) is None:
            return kernels.step(q_BHK, k_BHK, v_BHV, state_BHFW)
    return step_reference(q_BHK, k_BHK, v_BHV, state_BHFW)


@without_autocast
def step_reference(q_BHK: Tensor, k_BHK: Tensor, v_BHV: Tensor, state_BHFW: Tensor) -> Tensor:
    """`taylor_attention_step` in PyTorch."""
    q, k = q_BHK.to(state_BHFW.dtype), k_BHK.to(state_BHFW.dtype)
    return attention_step(taylor_feature_map(q), taylor_feature_map(k), v_BHV, state_BHFW)


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
    """Per token-head the lesser of 4 F (V + 1) (state updated, state read) and (L + 1) (K + V) (quadratic)."""
    features = feature_count(key_dim)
    forward = attention_flops(batch * length * heads, length, key_dim, value_dim, features, state)
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
    """q, k, v in and y out: 2 K + 2 V elements per token-head; with `state` F (V + 1) float32 in and out per head."""
    tokens = batch * length * heads
    return total_bytes(
        tokens * (2 * key_dim + value_dim),
        tokens * value_dim,
        state=batch * heads * feature_count(key_dim) * (value_dim + 1) if state else 0,
        element_bytes=element_bytes,
        backward=backward,
    )
