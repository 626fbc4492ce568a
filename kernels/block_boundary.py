"""From one block's mixer to the next block's: add to the residual stream, normalise, add that too, normalise again.

    r = residual + h
    s = r + norm_first(r)                         (without `first`: s = r)
    y = norm(s)                                   -> y and the stream s

LayerNorm (arXiv 1607.06450) with `center`, RMSNorm (arXiv 1910.07467) without; `first` is always a LayerNorm. It is the
end of an add-then-norm block whose output is added once more, and the start of what follows: one pass over memory where
two norms and two sums would take four.

In front of a model's last mixer `last_boundary` gives the stream, and what that mixer reads, at asked tokens too
(module `asked`): the stream is needed nowhere else, and is not written there.

Statistics in float32 (float64 for float64 inputs). s has the promoted dtype of h and residual; y has `dtype`, or the
promoted dtype of s and weight.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .asked import Asked, Questions, ask
from .costs import total_bytes, total_flops
from .embedding import Rows
from .shapes import checked_shapes

Norm = tuple[Tensor, Tensor | None]


def reference(
    h_BLD: Tensor,
    residual_BLD: Tensor,
    norm: Norm,
    *,
    first: Norm | None = None,
    center: bool = True,
    eps: float = 1e-5,
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """`block_boundary` in PyTorch: differentiable, any device."""
    s = residual_BLD + h_BLD
    if first is not None:
        s = s + _norm(s, first, True, eps).to(s.dtype)
    y = _norm(s, norm, center, eps)
    return y if dtype is None else y.to(dtype), s


def last_reference(
    h_BLD: Tensor, residual_BLD: Tensor, norm: Norm, questions: Questions, **options: Any
) -> tuple[Tensor, Asked, Tensor]:
    """`last_boundary` in PyTorch: differentiable, any device."""
    y_BLD, s_BLD = reference(h_BLD, residual_BLD, norm, **options)
    return y_BLD, ask(y_BLD, questions), questions.rows(s_BLD)


def _norm(x: Tensor, norm: Norm, center: bool, eps: float) -> Tensor:
    weight, bias = norm
    x = x.to(torch.promote_types(x.dtype, weight.dtype))
    return F.layer_norm(x, weight.shape, weight, bias, eps) if center else F.rms_norm(x, weight.shape, weight, eps)


@checked_shapes(norm=("D", "D"), first=("D", "D"))
def block_boundary(
    h_xD: Tensor,
    residual_xD: Tensor,
    norm: Norm,
    *,
    rows: Rows | None = None,
    first: Norm | None = None,
    center: bool = True,
    eps: float = 1e-5,
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """h, residual (..., D), norms (weight (D,), bias (D,) or None) -> y and the stream s, (..., D).

    `rows`: what `unwritten_embedding_norm` gave beside a stream that it did not write. Raises ValueError for a bias
    without centering.
    """
    options: dict[str, Any] = {"first": first, "center": center, "eps": eps, "dtype": dtype}
    if _by_kernels(h_xD, residual_xD, norm, center):
        from .block_boundary_triton import block_boundary as by_triton

        return by_triton(h_xD, residual_xD, norm, rows=rows, **options)
    _require_none(rows)
    return reference(h_xD, residual_xD, norm, **options)


@checked_shapes(norm=("D", "D"), first=("D", "D"))
def last_boundary(
    h_BLD: Tensor,
    residual_BLD: Tensor,
    norm: Norm,
    questions: Questions,
    *,
    rows: Rows | None = None,
    first: Norm | None = None,
    center: bool = True,
    eps: float = 1e-5,
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, Asked, Tensor]:
    """As `block_boundary`, from (B,L,D) -> y (B,L,D), y at the asked tokens (B,K,D), s there.

    Raises ValueError for a bias without centering.
    """
    options: dict[str, Any] = {"first": first, "center": center, "eps": eps, "dtype": dtype}
    if _by_kernels(h_BLD, residual_BLD, norm, center):
        from .block_boundary_triton import last_boundary as by_triton

        return by_triton(h_BLD, residual_BLD, norm, questions, rows=rows, **options)
    _require_none(rows)
    return last_reference(h_BLD, residual_BLD, norm, questions, **options)


def _require_none(rows: Rows | None) -> None:
    if rows is not None:
        raise ValueError("a stream that was not written goes to the kernels only; h must be on a GPU and not float64")


def _by_kernels(h: Tensor, residual: Tensor, norm: Norm, center: bool) -> bool:
    if norm[1] is not None and not center:
        raise ValueError("a norm without centering has no bias; give (weight, None) or center=True")
    return h.is_cuda and torch.float64 not in (h.dtype, residual.dtype, norm[0].dtype)


def flops(*, rows: int, width: int, backward: bool = False) -> int:
    """Per element: two additions to the stream, seven for each norm."""
    return total_flops(16 * rows * width, backward=backward)


def bytes_moved(*, rows: int, width: int, element_bytes: int = 4, backward: bool = False) -> int:
    """h, residual and the parameters in, y and s out; backward: r and both output gradients in, one gradient out."""
    forward = total_bytes(2 * rows * width + 4 * width, 2 * rows * width, element_bytes=element_bytes, backward=False)
    return forward + (4 * rows * width + 6 * width) * element_bytes if backward else forward
