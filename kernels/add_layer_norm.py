"""The step between two mixers of a pre-norm network: add to the residual stream, normalise the sum.

    r = residual + h * kept / keep          (without residual: r = h; without kept: no dropout)
    y = (r - mean(r)) / sqrt(var(r) + eps) * weight + bias

LayerNorm: Ba et al., arXiv 1607.06450, equations 3 and 4; with `center=False` no mean is taken off, var is the mean
square and there is no bias: RMSNorm (arXiv 1910.07467). The dropout's mask is an input, one byte per element, so that
its draws stay with whoever owns the generator; or a stream of draws, from which the kernel takes it.

Statistics in float32 (float64 for float64 inputs) from r as it is stored. r has the promoted dtype of h and residual, y
that of r and weight (under autocast, with float32 parameters, float32 as PyTorch's own LayerNorm has it) or `dtype`.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .costs import total_bytes, total_flops
from .draws import Draws
from .shapes import checked_shapes


def reference(
    h_xD: Tensor,
    residual_xD: Tensor | None,
    weight_D: Tensor,
    bias_D: Tensor | None = None,
    *,
    eps: float = 1e-5,
    kept_xD: Tensor | Draws | None = None,
    keep: float = 1.0,
    center: bool = True,
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """`add_layer_norm` in PyTorch: differentiable, any device."""
    _check(bias_D, center)
    kept_xD = kept_xD.kept(h_xD, keep) if isinstance(kept_xD, Draws) else kept_xD
    r_xD = h_xD if kept_xD is None else h_xD * kept_xD.to(h_xD.dtype).div_(keep)
    r_xD = r_xD if residual_xD is None else residual_xD + r_xD
    wide_xD = r_xD.to(torch.promote_types(r_xD.dtype, weight_D.dtype))
    if center:
        y_xD = F.layer_norm(wide_xD, weight_D.shape, weight_D, bias_D, eps)
    else:
        y_xD = F.rms_norm(wide_xD, weight_D.shape, weight_D.to(wide_xD.dtype), eps)
    return y_xD if dtype is None else y_xD.to(dtype), r_xD


@checked_shapes()
def add_layer_norm(
    h_xD: Tensor,
    residual_xD: Tensor | None,
    weight_D: Tensor,
    bias_D: Tensor | None = None,
    *,
    eps: float = 1e-5,
    kept_xD: Tensor | Draws | None = None,
    keep: float = 1.0,
    center: bool = True,
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """h, residual (..., D), weight, bias (D) -> y and the new residual r, both (..., D).

    `kept_xD` (bool, or where to draw it from) says which elements of h dropout leaves, each divided by the probability
    `keep`. Without residual and dropout r is h itself. Raises ValueError for a bias without centering.
    """
    _check(bias_D, center)
    options: dict[str, Any] = {"eps": eps, "kept_xD": kept_xD, "keep": keep, "center": center, "dtype": dtype}
    if h_xD.is_cuda and torch.float64 not in (h_xD.dtype, weight_D.dtype):
        from .add_layer_norm_triton import add_layer_norm as by_triton

        return by_triton(h_xD, residual_xD, weight_D, bias_D, **options)
    return reference(h_xD, residual_xD, weight_D, bias_D, **options)


def _check(bias_D: Tensor | None, center: bool) -> None:
    if bias_D is not None and not center:
        raise ValueError("a norm without centering has no bias; give bias_D=None or center=True")


def flops(*, rows: int, width: int, backward: bool = False) -> int:
    """Per element: one addition of the residual, three for mean and variance, four for y."""
    return total_flops(8 * rows * width, backward=backward)


def bytes_moved(*, rows: int, width: int, element_bytes: int = 4, backward: bool = False) -> int:
    """h, residual and the parameters in, y and r out; the backward reads r once more, beside both output gradients.

    One gradient stands for h and residual alike.
    """
    forward = total_bytes(2 * rows * width + 2 * width, 2 * rows * width, element_bytes=element_bytes, backward=False)
    return forward + (4 * rows * width + 3 * width) * element_bytes if backward else forward
