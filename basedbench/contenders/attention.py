"""Causal softmax attention in plain PyTorch: the reference of the operator that basedbench.kernels leaves to others.

    y_i = sum_j<=i softmax_j(q_i . k_j / sqrt(K)) v_j

In blocks of queries, each recomputed in the backward, so that memory stays linear in the length. Softmax and sums in
float32 (float64 for float64 inputs).
"""

from typing import Any

import torch
from torch import Tensor

# Scores of one block: 256 MB in float32.
BLOCK_ELEMENTS = 2**26


def attention_reference(q_BLHK: Tensor, k_BLHK: Tensor, v_BLHV: Tensor) -> Tensor:
    """q, k (B,L,H,K), v (B,L,H,V) -> y (B,L,H,V) in the dtype of v. Differentiable, any device."""
    dtype = torch.float64 if v_BLHV.dtype == torch.float64 else torch.float32
    q, k, v = (x.to(dtype).transpose(1, 2) for x in (q_BLHK, k_BLHK, v_BLHV))
    batch, heads, length, _ = q.shape
    block = max(1, min(length, BLOCK_ELEMENTS // (batch * heads * length)))
    starts = range(0, length, block)
    rows = _Recomputed.apply if len(starts) > 1 and torch.is_grad_enabled() else _rows
    y = torch.cat([rows(q, k, v, start, min(start + block, length)) for start in starts], dim=2)
    return y.transpose(1, 2).to(v_BLHV.dtype)


def attention_step_reference(q_BHK: Tensor, k_BLHK: Tensor, v_BLHV: Tensor) -> Tensor:
    """One query against a cache of L keys and values, its own included: -> y (B,H,V)."""
    dtype = torch.float64 if v_BLHV.dtype == torch.float64 else torch.float32
    scores = torch.einsum("bhk,blhk->bhl", q_BHK.to(dtype) * q_BHK.shape[-1] ** -0.5, k_BLHK.to(dtype))
    return torch.einsum("bhl,blhv->bhv", scores.softmax(-1), v_BLHV.to(dtype)).to(v_BLHV.dtype)


class _Recomputed(torch.autograd.Function):
    """`_rows`, of which only q, k and v are kept. (torch.utils.checkpoint imports torch's compiler: two seconds.)"""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, start: int, stop: int) -> Tensor:
        ctx.save_for_backward(q, k, v)
        ctx.rows = start, stop
        return _rows(q, k, v, start, stop)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        given = [x.detach().requires_grad_() for x in ctx.saved_tensors]
        with torch.enable_grad():
            y = _rows(*given, *ctx.rows)
        return *torch.autograd.grad(y, given, grad), None, None


def _rows(q: Tensor, k: Tensor, v: Tensor, start: int, stop: int) -> Tensor:
    """Rows start ... stop - 1 of the output, which read the first `stop` keys."""
    scores = q[:, :, start:stop] * q.shape[-1] ** -0.5 @ k[:, :, :stop].transpose(-1, -2)
    future = torch.ones(stop - start, stop, dtype=torch.bool, device=q.device).triu(start + 1)
    return scores.masked_fill_(future, float("-inf")).softmax(-1) @ v[:, :, :stop]
