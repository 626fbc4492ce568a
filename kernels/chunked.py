"""The chunk loop shared by the linear attentions: quadratic inside a chunk, a running state between chunks.

Causal kernel attention is y_i = sum_j<=i A_ij v_j / sum_j<=i A_ij with A_ij = phi(q_i) . phi(k_j) >= 0. Inside a chunk
of T tokens A is formed as a T x T block; everything before the chunk has been folded into a state
S = sum_j phi(k_j) [v_j, 1] of size (F, V + 1), whose last column is the normaliser. Work and memory are linear in the
length. Everything here is in accumulation precision, with batch and heads as one dimension (N below).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .differentiated import once_differentiable
from .precision import accumulation_dtype

EPSILON = 1e-12
# Up to this length one quadratic block is cheaper than any state: going through a state costs 4 F (V + 1) operations
# per token (F = 153, V = 64: 40 thousand), a block of 256 tokens 2 * 256 (K + V) (41 thousand) and no features.
QUADRATIC_LIMIT = 256


class Weights(NamedTuple):
    """A (N,T,T), not yet causal, and its derivative by the products: dA/d(q.k) = scale * slope, slope None for 1."""

    values: Tensor
    slope: Tensor | None
    scale: float


class Kernel(NamedTuple):
    """An attention kernel: `weights(q, k)` of (N,T,K) twice, and the `features` (..., K) -> (..., F) behind it."""

    weights: Callable[[Tensor, Tensor], Weights]
    features: Callable[[Tensor], Tensor]


class _Chunk(torch.autograd.Function):
    """q, k (N,T,K), v (N,T,V), what comes from before the chunk (N,T,V+1) or None -> y (N,T,V), normalised.

    Written out because the (T,T) tensors are nearly all of the time on short sequences: autograd would allocate four in
    the forward and four in the backward, this takes two and one.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, before: Tensor | None, kernel: Kernel) -> Tensor:
        values, slope, scale = kernel.weights(q, k)
        values.tril_()
        normaliser = values.sum(-1, keepdim=True).add_(EPSILON)
        if before is None:
            y = values @ v
        else:
            y = torch.baddbmm(before[..., :-1], values, v)
            normaliser += before[..., -1:]
        y /= normaliser
        ctx.save_for_backward(q, k, v, values, slope, normaliser, y)
        ctx.scale, ctx.has_before = scale, before is not None
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, values, slope, normaliser, y = ctx.saved_tensors
        grad_sum = grad_y / normaliser
        grad_normaliser = (grad_sum * y).sum(-1, keepdim=True).neg_()
        grad_values = torch.baddbmm(grad_normaliser, grad_sum, v.transpose(1, 2))
        if slope is not None:
            grad_values *= slope
        grad_values.tril_()
        grad_q = (grad_values @ k).mul_(ctx.scale)
        grad_k = (grad_values.transpose(1, 2) @ q).mul_(ctx.scale)
        grad_v = values.transpose(1, 2) @ grad_sum
        grad_before = torch.cat([grad_sum, grad_normaliser], -1) if ctx.has_before else None
        return grad_q, grad_k, grad_v, grad_before, None


def _with_ones(v: Tensor) -> Tensor:
    """(..., V) -> (..., V + 1): the column that sums to the normaliser."""
    return torch.cat([v, torch.ones_like(v[..., :1])], dim=-1)


def _attend(
    q: Tensor, k: Tensor, v: Tensor, kernel: Kernel, state: Tensor | None, return_state: bool, chunk: int
) -> tuple[Tensor, Tensor | None]:
    """The loop. q, k (N,L,K), v (N,L,V), state (N,F,V+1) or None -> y (N,L,V) and, if asked for, the last state."""
    # Split at once: the gradient of a slice is as long as the sequence, and there would be one for every chunk.
    parts = [x.split(chunk, dim=1) for x in (q, k, v)]
    outputs = []
    for q_c, k_c, v_c in zip(*parts, strict=True):
        before = None if state is None else kernel.features(q_c) @ state
        outputs.append(_Chunk.apply(q_c, k_c, v_c, before, kernel))
        if return_state or len(outputs) < len(parts[0]):
            update = kernel.features(k_c).transpose(1, 2) @ _with_ones(v_c)
            state = update if state is None else state + update
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1), state


def chunked_attention(
    q_BLHK: Tensor,
    k_BLHK: Tensor,
    v_BLHV: Tensor,
    kernel: Kernel,
    *,
    initial_state: Tensor | None,
    return_state: bool,
    chunk: int,
) -> Tensor | tuple[Tensor, Tensor]:
    """Causal attention with `kernel`: y (B,L,H,V) in the dtype of v, and the state (B,H,F,V+1) if asked for.

    Sequences up to QUADRATIC_LIMIT are one chunk, longer ones are cut into chunks of `chunk` tokens.
    """
    batch, length, heads = v_BLHV.shape[:3]
    dtype = accumulation_dtype(v_BLHV.dtype)
    q, k, v = (x.to(dtype).transpose(1, 2).flatten(0, 1) for x in (q_BLHK, k_BLHK, v_BLHV))
    state = None if initial_state is None else initial_state.to(dtype).flatten(0, 1)
    chunk = length if length <= QUADRATIC_LIMIT else chunk
    y, state = _attend(q, k, v, kernel, state, return_state, chunk)
    y_BLHV = y.unflatten(0, (batch, heads)).transpose(1, 2).to(v_BLHV.dtype)
    return (y_BLHV, state.unflatten(0, (batch, heads))) if return_state and state is not None else y_BLHV


def attention_step(features_q: Tensor, features_k: Tensor, v_BHV: Tensor, state_BHFW: Tensor) -> Tensor:
    """One token: adds features(k) [v, 1] to the state in place, then reads it with features(q). Returns y (B,H,V)."""
    v = _with_ones(v_BHV.to(state_BHFW.dtype))
    state_BHFW += features_k.unsqueeze(-1) * v.unsqueeze(-2)
    return read_state(features_q, state_BHFW[..., :-1], state_BHFW[..., -1]).to(v_BHV.dtype)


def read_state(features_q: Tensor, state_BHFV: Tensor, sums_BHF: Tensor) -> Tensor:
    """y (B,H,V): what features (B,H,F) of a query find in a state, over what they find in its sums."""
    found_BHV = (features_q.unsqueeze(-2) @ state_BHFV).squeeze(-2)
    return found_BHV / ((features_q * sums_BHF).sum(-1, keepdim=True) + EPSILON)


def attention_flops(tokens: int, length: int, key_dim: int, value_dim: int, features: int, state: bool) -> int:
    """Least operations for so many token-heads: through the state, or quadratic if that is less and no state is due."""
    through_state = tokens * 4 * features * (value_dim + 1)
    if state:
        return through_state
    quadratic = tokens * (length + 1) * (key_dim + value_dim)  # (length + 1) / 2 pairs, 2 (K + V) each
    return min(through_state, quadratic)
