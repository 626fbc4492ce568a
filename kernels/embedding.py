"""Embedding: rows of a table by token, and the sums of output gradients by token as the gradient of the table.

    y_n = weight_[token_n],   dweight_v = sum over n with token_n = v of dy_n

PyTorch's backward sorts 64-bit tokens, eight passes over keys and positions; two suffice for a vocabulary of up to
2^15, and none where a data set's batches are always the same: `sorted_places` sorts each of them once. The sums are
taken in the order of the positions, in float32 (float64 for float64): equal inputs give equal bits.
"""

from collections.abc import Iterable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .costs import total_bytes
from .shapes import checked_shapes

MOST = 256  # places of one token in a batch, which one program adds up


class Places(NamedTuple):
    """Where each token stands in each batch of a data set, for a run that is at one of them.

    `order` (N L,) int32: batch after batch the places 0, 1, ... of its tokens, those of token 0 first, each token's
    ascending. `starts` (batches V + 1,) int32: where those of token v in batch n begin, at n V + v. `batch_N` (N,)
    int32: the batch of each example. `cursor` () int64: the first example of the batch at hand.
    """

    order: Tensor
    starts: Tensor
    batch_N: Tensor
    cursor: Tensor


class Rows(NamedTuple):
    """A stream (..., D) that is rows of a table after dropout, and need not be written: table_[token] * kept / keep.

    table_VD: detached. tokens_x: int64. kept_xD: uint8, None without dropout.
    """

    table_VD: Tensor
    tokens_x: Tensor
    kept_xD: Tensor | None
    keep: float


def sorted_places(blocks: Iterable[tuple[Tensor, int]], vocabulary: int) -> Places | None:
    """The places of batches one after another; None if a token fills too much of one.

    blocks: tokens (n,T) of the next n batches, all of one size, and the number of examples in each.
    """
    orders, edges, sizes, tokens = [], [], [], 0
    for tokens_nT, examples in blocks:
        count, each = tokens_nT.shape
        words, batches = (torch.arange(size, device=tokens_nT.device) for size in (vocabulary, count))
        keys_x, order_x = (tokens_nT + batches[:, None] * vocabulary).flatten().sort(stable=True)
        orders.append((order_x % each).int())
        bounds_x = torch.searchsorted(keys_x, (batches[:, None] * vocabulary + words).flatten())
        edges.append((bounds_x + tokens).int())
        sizes.append(torch.full((count,), examples, device=tokens_nT.device))
        tokens += tokens_nT.numel()
    sizes_n = torch.cat(sizes)
    starts_x = torch.cat([*edges, edges[0].new_full((1,), tokens)])
    if starts_x.diff().max() > MOST:
        return None
    batch_N = torch.arange(len(sizes_n), device=sizes_n.device).repeat_interleave(sizes_n)
    return Places(torch.cat(orders), starts_x, batch_N.int(), sizes_n.new_zeros(()))


def reference(tokens_x: Tensor, weight_VD: Tensor) -> Tensor:
    """`embedding` in PyTorch: differentiable, any device."""
    return F.embedding(tokens_x, weight_VD)


@checked_shapes()
def embedding(tokens_x: Tensor, weight_VD: Tensor, places: Places | None = None) -> Tensor:
    """tokens (...) int64 in [0, V), weight (V,D) -> (..., D). `places`: of these tokens, where known."""
    if weight_VD.is_cuda and weight_VD.element_size() <= 4:
        from .embedding_triton import embedding as by_triton

        return by_triton(tokens_x, weight_VD, places)
    return reference(tokens_x, weight_VD)


def flops(*, tokens: int, width: int, backward: bool = False) -> int:
    """None forward; an addition per element backward."""
    return tokens * width if backward else 0


def bytes_moved(*, tokens: int, width: int, vocabulary: int, element_bytes: int = 4, backward: bool = False) -> int:
    """Tokens (8 bytes each) and a row of the table for each in, y out; backward: tokens and dy in, the gradient out."""
    forward = 8 * tokens + total_bytes(tokens * width, tokens * width, element_bytes=element_bytes, backward=False)
    return forward + 8 * tokens + (tokens + vocabulary) * width * element_bytes if backward else forward
