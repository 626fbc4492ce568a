"""A projection of which some outputs are asked for at a few tokens only, as queries and gates of a last layer are.

    rest = x W_rest^T + b_rest  (all tokens),      asked = x_at W_asked^T + b_asked  (asked tokens)

W_asked are the first or the last rows of W. The gradient of W is one tensor that both products write their part of; the
sums of b's are finished with others (`partial_sums`).
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .differentiated import once_differentiable
from .precision import product_dtype


class _LinearAsked(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, at: Tensor, weight: Tensor, bias: Tensor | None, part: slice, rest: slice
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(x, at, weight, bias)
        ctx.parts = part, rest
        cast = None if bias is None else bias.to(x.dtype)
        return tuple(  # type: ignore[return-value]
            F.linear(rows.flatten(0, -2), weight[rows_of], None if cast is None else cast[rows_of]).unflatten(
                0, rows.shape[:-1]
            )
            for rows, rows_of in ((x, rest), (at, part))
        )

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_rest: Tensor, d_asked: Tensor) -> tuple[Tensor | None, ...]:
        x, at, weight, bias = ctx.saved_tensors
        part, rest = ctx.parts
        given = [(dy.flatten(0, -2), rows, rows_of) for dy, rows, rows_of in ((d_rest, x, rest), (d_asked, at, part))]
        dx, d_at = ((dy @ weight[rows_of]).view_as(rows) for dy, rows, rows_of in given)
        d_weight = torch.empty_like(weight)
        for dy, rows, rows_of in given:
            torch.mm(dy.t(), rows.flatten(0, -2), out=d_weight[rows_of])
        d_bias = None
        if ctx.needs_input_grad[3]:
            d_bias = _bias_gradient(bias, [(dy, rows_of) for dy, _, rows_of in given])
        return dx, d_at, d_weight, d_bias, None, None


def _bias_gradient(bias: Tensor, given: list[tuple[Tensor, slice]]) -> Tensor:
    if bias.is_cuda:
        from .linear_triton import column_sums

        return column_sums(given, bias.dtype, bias)
    sums = torch.empty_like(bias)
    for dy, rows_of in given:
        sums[rows_of] = dy.sum(0)
    return sums


def reference(
    x_BLD: Tensor, x_BKD: Tensor, weight_ED: Tensor, bias_E: Tensor | None, part: slice
) -> tuple[Tensor, Tensor]:
    """`linear_asked` in PyTorch: differentiable, any device."""
    part, rest = _parts(part, len(weight_ED))
    return tuple(  # type: ignore[return-value]
        F.linear(x, weight_ED[rows_of], None if bias_E is None else bias_E[rows_of])
        for x, rows_of in ((x_BLD, rest), (x_BKD, part))
    )


def linear_asked(
    x_BLD: Tensor, x_BKD: Tensor, weight_ED: Tensor, bias_E: Tensor | None, part: slice
) -> tuple[Tensor, Tensor]:
    """x (B,L,D), its asked rows (B,K,D), weight (E,D), bias (E,) or None -> the outputs outside `part` for all tokens
    (B,L,F), those of `part` for the asked ones (B,K,P); under autocast in its dtype.

    Raises ValueError unless `part` is at the beginning or the end of the outputs.
    """
    part, rest = _parts(part, len(weight_ED))
    dtype = product_dtype(x_BLD) or torch.promote_types(x_BLD.dtype, weight_ED.dtype)
    x_BLD, x_BKD, weight_ED = (one.to(dtype) for one in (x_BLD, x_BKD, weight_ED))
    found: tuple[Tensor, Tensor] = _LinearAsked.apply(x_BLD, x_BKD, weight_ED, bias_E, part, rest)
    return found


def _parts(part: slice, outputs: int) -> tuple[slice, slice]:
    """The rows of the weight that are asked for, and the others."""
    start, stop, step = part.indices(outputs)
    if step != 1 or (start > 0 and stop < outputs):
        raise ValueError(f"{part} is neither the beginning nor the end of {outputs} outputs")
    return slice(start, stop), slice(stop, outputs) if start == 0 else slice(0, start)
