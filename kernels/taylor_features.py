"""Taylor's polynomials of exp as attention kernels: closed in s for blocks of weights, packed features for states.

    A(s) = sum_{r <= n} s^r / r! = phi(q) . phi(k),   s = q . k / sqrt(K),   order n = 1, 2 or 3

phi(x) holds one feature for each monomial of degree n or less, F = (K + 1) ... (K + n) / n! of them, where the tensor
powers of x would hold 1 + K + ... + K^n. x x^T is symmetric, so only its upper triangle is kept, row by row:

    order 2:  [1, x / K^(1/4), {x_i x_j c_ij}_{i <= j}],   c_ii = 1 / sqrt(2 K),  c_ij = 1 / sqrt(K)
    order 3:  those, and {x_h x_i x_j c_hij}_{h <= i <= j} with c_hij^2 = (ways to order h, i, j) / (6 K^(3/2))

Source: BASED, arXiv 2402.18668, section 4. A is positive for order 2 (at least 1/2) and takes every sign for 1 and 3.
"""

from typing import Any

import torch
from torch import Tensor

from .chunked import Kernel, Weights
from .differentiated import once_differentiable
from .shapes import checked_shapes


def feature_count(key_dim: int, order: int = 2) -> int:
    """F = (K + 1) ... (K + n) / n!; 1 + K + K (K + 1) / 2 for order 2."""
    features = 1
    for degree in range(1, order + 1):  # math.comb is not traced by torch.compile where the width is left open
        features = features * (key_dim + degree) // degree
    return features


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


def _first_order_map(x: Tensor) -> Tensor:
    return torch.cat([torch.ones_like(x[..., :1]), x * x.shape[-1] ** -0.25], dim=-1)


@checked_shapes(x="xK")
def taylor_feature_map(x: Tensor) -> Tensor:
    """(..., K) -> (..., F), packed as in the module docstring: phi(q) . phi(k) = 1 + s + s^2 / 2."""
    return torch.cat([_first_order_map(x), _PackedSquare.apply(x)], dim=-1)


def _third_order_map(x: Tensor) -> Tensor:
    """Slices and products only, as their gradients are too: no atomics.

    The pairs i <= j with i >= h are the last ones of the packed square, and times x_h they are the triples from h on.
    """
    width = x.shape[-1]
    square, scaled = _PackedSquare.apply(x), x * width**-0.25
    triples = []
    for h in range(width):
        rest = width - h
        pairs = square[..., -(rest * (rest + 1) // 2) :]
        scale = x.new_ones(pairs.shape[-1])
        scale[:1] = 3**-0.5  # h = i = j; a slice, which is filled: an element would be copied from the host
        scale[1:rest] = 2**-0.5  # h = i < j
        triples.append(pairs * scale * scaled[..., h : h + 1])
    return torch.cat([_first_order_map(x), square, *triples], dim=-1)


def _first_order(q: Tensor, k: Tensor) -> Weights:
    scale = q.shape[-1] ** -0.5
    return Weights(torch.baddbmm(q.new_ones(()), q, k.transpose(1, 2), alpha=scale), slope=None, scale=scale)


def _second_order(q: Tensor, k: Tensor) -> Weights:
    """1 + s + s^2 / 2 = r^2 + 1/2 with r = (1 + s) / sqrt(2): one product, one square, one addition."""
    scale = (2 * q.shape[-1]) ** -0.5
    root = torch.baddbmm(q.new_full((), 0.5**0.5), q, k.transpose(1, 2), alpha=scale)
    return Weights((root * root).add_(0.5), slope=root, scale=2 * scale)


def _third_order(q: Tensor, k: Tensor) -> Weights:
    """The slope is the second-order polynomial, and s^3 / 6 more is the third-order one."""
    scale = q.shape[-1] ** -0.5
    s = (q @ k.transpose(1, 2)).mul_(scale)
    slope = (s * 0.5 + 1).mul_(s).add_(1)
    return Weights((s**3).div_(6).add_(slope), slope=slope, scale=scale)


KERNELS = {
    1: Kernel(_first_order, _first_order_map),
    2: Kernel(_second_order, taylor_feature_map),
    3: Kernel(_third_order, _third_order_map),
}
