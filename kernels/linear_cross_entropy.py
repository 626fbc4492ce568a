"""Output projection and cross-entropy in one: per-position loss, and whether the target is the largest logit.

    loss_n = logsumexp_v(x_n . w_v) - x_n . w_target        hit_n = (argmax_v x_n . w_v == target_n)

The product is taken in the dtype of x, or in autocast's where it is on; the softmax in float32 (float64 for float64
inputs). The reference keeps one (N,V) tensor for the backward, the exponentials, which are scaled into the gradient.
"""

from typing import Any

import torch
from torch import Tensor

from .costs import total_bytes, total_flops
from .differentiated import once_differentiable
from .precision import accumulation_dtype, without_autocast
from .shapes import checked_shapes


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        logits = (x @ weight.t()).to(accumulation_dtype(x.dtype))
        peak, best = logits.max(-1)
        wanted = logits.gather(-1, target.unsqueeze(-1)).squeeze(-1)
        exponentials = logits.sub_(peak.unsqueeze(-1)).exp_()
        total = exponentials.sum(-1)
        hit = best == target
        ctx.save_for_backward(x, weight, target, exponentials, total)
        ctx.mark_non_differentiable(hit)
        return total.log() + peak - wanted, hit

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, target, exponentials, total = ctx.saved_tensors
        grad = exponentials * (grad_loss / total).unsqueeze(-1)
        grad.scatter_add_(-1, target.unsqueeze(-1), -grad_loss.unsqueeze(-1))
        grad = grad.to(x.dtype)
        grad_x = grad @ weight if ctx.needs_input_grad[0] else None
        grad_weight = grad.t() @ x if ctx.needs_input_grad[1] else None
        return grad_x, grad_weight, None


def _in_autocast(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """The operands in autocast's dtype, where it is on."""
    device = x.device.type
    if not torch.is_autocast_enabled(device):
        return x, weight
    dtype = torch.get_autocast_dtype(device)
    return x.to(dtype), weight.to(dtype)


def reference(x_ND: Tensor, weight_VD: Tensor, target_N: Tensor) -> tuple[Tensor, Tensor]:
    """`linear_cross_entropy` in PyTorch: differentiable once, any device."""
    x_ND, weight_VD = _in_autocast(x_ND, weight_VD)
    return without_autocast(_LinearCrossEntropy.apply)(x_ND, weight_VD, target_N)


@checked_shapes()
def linear_cross_entropy(x_ND: Tensor, weight_VD: Tensor, target_N: Tensor) -> tuple[Tensor, Tensor]:
    """x (N,D), weight (V,D), target (N,) int64 -> loss (N,) float32 (float64 for float64 x), hit (N,) bool.

    Of equal logits the first is taken as the largest. On CUDA kernels compute what they were seen to compute
    right and faster: half precision of any width, float32 up to a width of 128 (`supported` there); the reference the
    rest. Half precision wider than 256, without gradients 512, has its logits rounded to that, as the reference has.
    """
    if x_ND.is_cuda:
        from . import linear_cross_entropy_triton as fused
        from . import linear_cross_entropy_wide_triton as wide

        operands = _in_autocast(x_ND, weight_VD)
        for one in (fused, wide):
            if one.supported(*operands):
                return one.linear_cross_entropy(*operands, target_N)
    return reference(x_ND, weight_VD, target_N)


def flops(*, positions: int, width: int, vocabulary: int, backward: bool = False) -> int:
    """2 N D V: the logits."""
    return total_flops(2 * positions * width * vocabulary, backward=backward)


def bytes_moved(*, positions: int, width: int, vocabulary: int, element_bytes: int = 2, backward: bool = False) -> int:
    """x and weight in, the targets (8 bytes each) in; loss (4 bytes each) and hits (1 byte each) out."""
    inputs = positions * width + vocabulary * width
    rows = positions * (8 + 4 + 1) * (2 if backward else 1)
    return total_bytes(inputs, 0, element_bytes=element_bytes, backward=backward) + rows
