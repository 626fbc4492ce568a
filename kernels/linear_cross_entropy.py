"""Output projection and cross-entropy in one: per-position loss and whether the target is the largest logit.

    loss_n = logsumexp_v(x_n . w_v) - x_n . w_target        hit_n = (argmax_v x_n . w_v == target_n)

The product is taken in the dtype of x, the softmax in float32 (float64 for float64 inputs). The reference keeps the (N,V)
logits for the backward and turns them into their gradient in place: one (N,V) tensor instead of three.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .chunked import accumulation_dtype


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        logits = (x @ weight.t()).to(accumulation_dtype(x.dtype))
        normaliser = logits.logsumexp(-1)
        loss = normaliser - logits.gather(-1, target.unsqueeze(-1)).squeeze(-1)
        hit = logits.argmax(-1) == target
        ctx.save_for_backward(x, weight, target, logits, normaliser)
        ctx.mark_non_differentiable(hit)
        return loss, hit

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, target, logits, normaliser = ctx.saved_tensors
        grad = (logits - normaliser.unsqueeze(-1)).exp_()
        index = target.unsqueeze(-1)
        grad.scatter_add_(-1, index, torch.full_like(index, -1, dtype=grad.dtype))
        grad = grad.mul_(grad_loss.unsqueeze(-1)).to(x.dtype)
        dx = grad @ weight if ctx.needs_input_grad[0] else None
        dweight = grad.t() @ x if ctx.needs_input_grad[1] else None
        return dx, dweight, None


def reference(x_ND: Tensor, weight_VD: Tensor, target_N: Tensor) -> tuple[Tensor, Tensor]:
    """`linear_cross_entropy` in PyTorch: differentiable once, any device."""
    return _LinearCrossEntropy.apply(x_ND, weight_VD, target_N)


def linear_cross_entropy(x_ND: Tensor, weight_VD: Tensor, target_N: Tensor) -> tuple[Tensor, Tensor]:
    """x (N,D), weight (V,D), target (N,) int64 -> loss (N,) float32 (float64 for float64 x), hit (N,) bool."""
    return reference(x_ND, weight_VD, target_N)
