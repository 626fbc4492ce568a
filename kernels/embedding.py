"""Embedding: rows of a table by token, and the sums of output gradients by token as the gradient of the table.

    y_n = weight_[token_n],   dweight_v = sum over n with token_n = v of dy_n

The sums are taken in the order of the positions, in float32 (float64 for float64): equal inputs give equal bits. For
that the kernels sort the tokens of a batch. A trainer that meets the same batches in every epoch can sort them once:
`sort_batches`.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .costs import total_bytes


def reference(tokens_x: Tensor, weight_VD: Tensor) -> Tensor:
    """`embedding` in PyTorch: differentiable, any device."""
    return F.embedding(tokens_x, weight_VD)


class TokenOrder(NamedTuple):
    """The tokens of successive batches, each batch sorted; `cursor` () int64 is the example the next begins with."""

    keys_M: Tensor  # int16 or int32
    places_M: Tensor  # int32, position of each within its batch
    cursor: Tensor


def sort_batches(tokens_NL: Tensor, sizes: Sequence[int]) -> tuple[Tensor, Tensor]:
    """`keys_M` and `places_M` of a `TokenOrder` for batches of so many examples, one after another (M = N L)."""
    narrow = torch.int16 if not tokens_NL.numel() or int(tokens_NL.max()) < 2**15 else torch.int32
    keys, places = [], []
    for batch in tokens_NL.to(narrow).split(list(sizes)):
        key, place = torch.sort(batch.flatten(), stable=True)
        keys.append(key)
        places.append(place.to(torch.int32))
    return torch.cat(keys), torch.cat(places)


def embedding(tokens_x: Tensor, weight_VD: Tensor, order: TokenOrder | None = None) -> Tensor:
    """tokens (...) int64 in [0, V), weight (V,D) -> (..., D).

    `order` holds the same tokens sorted, at its cursor; the backward then need not sort them. Only the kernels use it.
    """
    if weight_VD.is_cuda and weight_VD.element_size() <= 4:
        from .embedding_triton import embedding as by_triton

        return by_triton(tokens_x, weight_VD, order)
    return reference(tokens_x, weight_VD)


def flops(*, tokens: int, width: int, backward: bool = False) -> int:
    """None forward; an addition per element backward."""
    return tokens * width if backward else 0


def bytes_moved(*, tokens: int, width: int, vocabulary: int, element_bytes: int = 4, backward: bool = False) -> int:
    """Tokens (8 bytes each) and a row of the table for each in, y out; backward: tokens and dy in, the gradient out."""
    forward = 8 * tokens + total_bytes(tokens * width, tokens * width, element_bytes=element_bytes, backward=False)
    return forward + 8 * tokens + (tokens + vocabulary) * width * element_bytes if backward else forward
