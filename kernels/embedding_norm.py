"""What stands before the first mixer of a pre-norm network: rows of a table, dropout, the norm; see both operators.

    r = weight_[token] * kept / keep,   y = norm(r)

In one pass: what the table gives is not written before the norm reads it.
"""

from typing import Any

import torch
from torch import Tensor

from .add_layer_norm import add_layer_norm
from .block_boundary import Norm
from .costs import total_flops
from .draws import Draws
from .embedding import Places, Rows, embedding


def reference(
    tokens_x: Tensor,
    weight_VD: Tensor,
    norm: Norm,
    *,
    places: Places | None = None,
    stream: torch.dtype | None = None,
    **options: Any,
) -> tuple[Tensor, Tensor]:
    """`embedding_norm` by the two operators: differentiable, any device."""
    h_xD = embedding(tokens_x, weight_VD, places)
    return add_layer_norm(h_xD if stream is None else h_xD.to(stream), None, *norm, **options)


def embedding_norm(
    tokens_x: Tensor,
    weight_VD: Tensor,
    norm: Norm,
    *,
    places: Places | None = None,
    eps: float = 1e-5,
    kept_xD: Draws | None = None,
    keep: float = 1.0,
    center: bool = True,
    dtype: torch.dtype | None = None,
    stream: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """tokens (...) int64 in [0, V), weight (V,D), norm (weight (D,), bias (D,) or None) -> y and the stream r (..., D).

    `places` as in `embedding`, r in the dtype `stream` (the table's), the rest as in `add_layer_norm`. Raises
    ValueError for a bias without centering.
    """
    options: dict[str, Any] = {"eps": eps, "kept_xD": kept_xD, "keep": keep, "center": center, "dtype": dtype}
    options |= {"places": places, "stream": stream}
    if _by_kernels(tokens_x, weight_VD, norm, center) and stream != torch.float64:
        from .embedding_norm_triton import embedding_norm as by_triton

        y_xD, r_xD, _ = by_triton(tokens_x, weight_VD, norm, **options)
        return y_xD, r_xD
    return reference(tokens_x, weight_VD, norm, **options)


def unwritten_embedding_norm(
    tokens_x: Tensor,
    weight_VD: Tensor,
    norm: Norm,
    *,
    places: Places | None = None,
    eps: float = 1e-5,
    kept_xD: Draws | None = None,
    keep: float = 1.0,
    center: bool = True,
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor, Rows | None]:
    """`embedding_norm` that leaves the stream unwritten where it can: y, r, and then what r is.

    Then r has no memory of its own: it only takes the gradient, and `block_boundary` reads the rows.
    """
    options: dict[str, Any] = {"eps": eps, "kept_xD": kept_xD, "keep": keep, "center": center, "dtype": dtype}
    options |= {"places": places}
    if _by_kernels(tokens_x, weight_VD, norm, center) and weight_VD.dtype == torch.float32:
        from .embedding_norm_triton import embedding_norm as by_triton

        return by_triton(tokens_x, weight_VD, norm, written=False, **options)
    return *embedding_norm(tokens_x, weight_VD, norm, **options), None


def _by_kernels(tokens_x: Tensor, weight_VD: Tensor, norm: Norm, center: bool) -> bool:
    fitting = weight_VD.is_cuda and torch.float64 not in (weight_VD.dtype, norm[0].dtype)
    return fitting and tokens_x.numel() > 0 and (center or norm[1] is None)


def flops(*, tokens: int, width: int, backward: bool = False) -> int:
    """Per element: three for mean and variance, four for y."""
    return total_flops(7 * tokens * width, backward=backward)


def bytes_moved(*, tokens: int, width: int, vocabulary: int, element_bytes: int = 4, backward: bool = False) -> int:
    """Tokens (8 bytes each), a row for each in, y and r out; backward: r and two gradients in, one out.

    The sums by token are those of `embedding`.
    """
    forward = 8 * tokens + 3 * tokens * width * element_bytes
    return forward + (4 * tokens + vocabulary) * width * element_bytes if backward else forward
