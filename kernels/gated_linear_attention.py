"""Gated linear attention: linear attention whose state decays by a rate of its own in every channel of the keys.

    S_t = diag(exp(g_t)) S_t-1 + k_t v_t^T        y_t = S_t^T q_t

per head with a state S (K,V); g <= 0 the logarithm of the decay. Nothing is scaled or normalised. Source: arXiv
2312.06635, section 4. float32 (float64 for float64 inputs).

Chunks of C tokens, all at once: y = A v + (q exp(sum of g up to i)) S with A_ij = sum_k q_ik k_jk exp(sum_j<m<=i g_mk),
and S, the state before the chunk, the only thing that is carried from one to the next. A is put together from the
diagonal outwards: a block of 2h tokens is two blocks of h and, below the diagonal, the product of the right half's
q exp(sum from the middle to i) with the left half's k exp(sum from j to the middle). Every exponent is the sum of the
decays that lie between: none is positive, and none is the small difference of two large sums.

On CUDA the Triton kernels of the delta rule, without its term of rank one, compute what `delta_rule_triton.unsupported`
has no reason against; the reference takes the rest: float64 and keys wider than 128.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .costs import total_bytes, total_flops
from .precision import accumulation_dtype, without_autocast
from .shapes import checked_shapes


def _halves(x: Tensor) -> tuple[Tensor, Tensor]:
    """(..., n, h, K), n blocks of h tokens -> the left and the right one of every two, (..., n / 2, h, K)."""
    left, right = x.unflatten(-3, (-1, 2)).unbind(-3)
    return left, right


def _within(q: Tensor, k: Tensor, g: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """q, k, g (...,C,K), C a power of two -> A (...,C,C), and the sums of g up to (...,C,K) and after each token."""
    weights = (q * k).sum(-1)[..., None, None]
    upto, after = g.unsqueeze(-2), torch.zeros_like(g).unsqueeze(-2)
    for half in (1 << level for level in range((q.shape[-2] - 1).bit_length())):
        left, right = _halves(weights)
        q_right, k_left = _halves(q.unflatten(-2, (-1, half)))[1], _halves(k.unflatten(-2, (-1, half)))[0]
        (upto_left, upto_right), (after_left, after_right) = _halves(upto), _halves(after)
        across = (q_right * upto_right.exp()) @ (k_left * after_left.exp()).mT
        weights = torch.cat([F.pad(left, (0, half)), torch.cat([across, right], -1)], -2)
        upto, after = (
            torch.cat([upto_left, upto_right + upto_left[..., -1:, :]], -2),
            torch.cat([after_left + upto_right[..., -1:, :], after_right], -2),
        )
    return weights.squeeze(-3), upto.squeeze(-3), after.squeeze(-3)


def _carried(updates: Tensor, decays: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
    """What each chunk adds (B,H,M,K,V) and keeps (B,H,M,K,1) -> the state before each, and the one after the last."""
    state = torch.zeros_like(updates[:, :, 0]) if state is None else state
    before = []
    for update, decay in zip(updates.unbind(2), decays.unbind(2), strict=True):
        before.append(state)
        state = torch.addcmul(update, decay, state)
    return torch.stack(before, 2), state


def _attend(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, state: Tensor | None, return_state: bool
) -> tuple[Tensor, Tensor | None]:
    """All chunks: q, k, g (B,H,M,C,K), v (B,H,M,C,V), the state (B,H,K,V) -> y (B,H,M,C,V) and the last state."""
    weights, upto, after = _within(q, k, g)
    y = weights @ v
    if state is None and not return_state and q.shape[2] == 1 < q.shape[3]:  # one token goes on: g's gradient is zeros
        return y, None
    updates = (k * after.exp()).mT @ v
    before, state = _carried(updates, upto[..., -1:, :].exp().mT, state)
    return y + (q * upto.exp()) @ before, state


def _chunked(x_BLHK: Tensor, dtype: torch.dtype, chunk: int) -> Tensor:
    """(B,L,H,K) -> (B,H,M,C,K), zeros behind the end: they add nothing to a state and decay nothing."""
    x = x_BLHK.to(dtype).transpose(1, 2)
    return F.pad(x, (0, 0, 0, -x.shape[2] % chunk)).contiguous().unflatten(2, (-1, chunk))


@without_autocast
def reference(
    q_BLHK: Tensor,
    k_BLHK: Tensor,
    v_BLHV: Tensor,
    g_BLHK: Tensor,
    *,
    initial_state: Tensor | None = None,
    return_state: bool = False,
    chunk: int = 32,
) -> Tensor | tuple[Tensor, Tensor]:
    """`gated_linear_attention` in PyTorch: differentiable, any device."""
    dtype, length = accumulation_dtype(v_BLHV.dtype), v_BLHV.shape[1]
    chunk = 1 << (min(chunk, length) - 1).bit_length()
    q, k, v, g = (_chunked(x, dtype, chunk) for x in (q_BLHK, k_BLHK, v_BLHV, g_BLHK))
    state = None if initial_state is None else initial_state.to(dtype)
    y, state = _attend(q, k, v, g, state, return_state)
    y_BLHV = y.flatten(2, 3)[:, :, :length].transpose(1, 2).to(v_BLHV.dtype)
    return (y_BLHV, state) if return_state and state is not None else y_BLHV


@checked_shapes(initial_state="BHKV")
def gated_linear_attention(
    q_BLHK: Tensor,
    k_BLHK: Tensor,
    v_BLHV: Tensor,
    g_BLHK: Tensor,
    *,
    initial_state: Tensor | None = None,
    return_state: bool = False,
    chunk: int = 32,
) -> Tensor | tuple[Tensor, Tensor]:
    """q, k, g (B,L,H,K), v (B,L,H,V) -> y (B,L,H,V), and the state (B,H,K,V) if asked for.

    g is the logarithm of the decay, at most 0. `initial_state` continues a sequence: a prefix, then the rest, gives the
    whole. `chunk`, the tokens between two states, is the reference's, rounded up to a power of two.
    """
    if v_BLHV.is_cuda:
        from . import delta_rule_triton as kernels

        tensors = q_BLHK, k_BLHK, v_BLHV, None, None, g_BLHK
        if kernels.unsupported(*tensors, initial_state) is None:
            return kernels.delta_rule(*tensors, initial_state=initial_state, return_state=return_state)
    return reference(
        q_BLHK, k_BLHK, v_BLHV, g_BLHK, initial_state=initial_state, return_state=return_state, chunk=chunk
    )


@checked_shapes()
def gated_linear_attention_step(
    q_BHK: Tensor, k_BHK: Tensor, v_BHV: Tensor, g_BHK: Tensor, state_BHKV: Tensor
) -> Tensor:
    """One decode step. Updates `state_BHKV` in place; returns y (B,H,V) in the dtype of v."""
    if state_BHKV.is_cuda:
        from . import delta_rule_step_triton as kernels

        tensors = q_BHK, k_BHK, v_BHV, None, None, g_BHK, state_BHKV
        if kernels.unsupported(*tensors) is None:
            return kernels.step(*tensors)
    return step_reference(q_BHK, k_BHK, v_BHV, g_BHK, state_BHKV)


@without_autocast
def step_reference(q_BHK: Tensor, k_BHK: Tensor, v_BHV: Tensor, g_BHK: Tensor, state_BHKV: Tensor) -> Tensor:
    """`gated_linear_attention_step` in PyTorch."""
    q, k, v, g = (x.to(state_BHKV.dtype) for x in (q_BHK, k_BHK, v_BHV, g_BHK))
    state_BHKV *= g.exp().unsqueeze(-1)
    state_BHKV += k.unsqueeze(-1) * v.unsqueeze(-2)
    return (q.unsqueeze(-2) @ state_BHKV).squeeze(-2).to(v_BHV.dtype)


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
    """Per token-head the lesser of 4 K V (state updated, state read) and (L + 1) (K + V) (quadratic)."""
    tokens = batch * length * heads
    through_state, quadratic = tokens * 4 * key_dim * value_dim, tokens * (length + 1) * (key_dim + value_dim)
    return total_flops(through_state if state else min(through_state, quadratic), backward=backward)


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
    """q, k, v, g in and y out: 3 K + 2 V elements per token-head; with `state` K V float32 in and out per head."""
    tokens = batch * length * heads
    return total_bytes(
        tokens * (3 * key_dim + value_dim),
        tokens * value_dim,
        state=batch * heads * key_dim * value_dim if state else 0,
        element_bytes=element_bytes,
        backward=backward,
    )
