"""Batches without the tokens behind each example's last question, which change nothing that a run is trained on.

A batch's examples are sorted, the longest first, and each keeps as many tokens as the longest of its rank in any batch
of that size: then all of a segment's batches have one shape, and one recorded step serves them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from basedbench.kernels.packing import ALIGNED, Packing, packing_of

LONGEST = 512  # tokens of an example; kernels cut longer ones into pieces that run side by side, but not packed ones
WHOLE = 16  # a batch's tokens are a multiple of it, of which compilers and tensor cores make use
BLOCK_TOKENS = 1 << 22  # that are gathered at once


@dataclass(frozen=True)
class PackedBatches:
    """`order_N` int64: the examples, those of a batch sorted; and the packing of each size of batch."""

    order_N: Tensor
    packings: dict[int, Packing]


def can_be_packed(length: int) -> bool:
    """Whether batches of examples of this length have a packed form that saves time."""
    return length % ALIGNED == 0 and length <= LONGEST


def packed_batches(positions_NK: Tensor, length: int, sizes: Sequence[int]) -> PackedBatches:
    """The packed form of batches of these sizes, one after another, of examples of `length` tokens.

    Their `longest` is that length, whatever is asked for: so few examples take the kernels that all of them take.
    Raises ValueError for a length that is no multiple of 8.
    """
    if length % ALIGNED:
        raise ValueError(f"examples of {length} tokens are not packed; a multiple of {ALIGNED} is")
    needed_N = positions_NK.amax(1) + 1
    longest: dict[int, Tensor] = {}
    orders, start = [], 0
    for size, count in _runs(sizes):
        needed_nB = needed_N[start : start + size * count].view(count, size)
        sorted_nB, order_nB = needed_nB.sort(dim=1, descending=True, stable=True)
        firsts_n = torch.arange(start, start + size * count, size, device=order_nB.device)
        orders.append((order_nB + firsts_n[:, None]).flatten())
        most_B = sorted_nB.amax(0)
        longest[size] = torch.maximum(most_B, longest[size]) if size in longest else most_B
        start += size * count
    packings = {
        size: packing_of(_whole(most_B.tolist(), length), positions_NK.device, length)
        for size, most_B in longest.items()
    }
    return PackedBatches(torch.cat(orders), packings)


def _whole(lengths: list[int], most: int) -> list[int]:
    """Lengths in tiles, and of one example so many more that all of them are a multiple of `WHOLE`, if it has them."""
    tiled = [-(-length // ALIGNED) * ALIGNED for length in lengths]
    if sum(tiled) % WHOLE and tiled[-1] < most:
        tiled[tiled.index(tiled[-1])] += ALIGNED  # the first of the shortest, so that they stay sorted
    return tiled


def token_blocks(tokens_NL: Tensor, sizes: Sequence[int], packed: PackedBatches | None) -> Iterator[tuple[Tensor, int]]:
    """The tokens (n,T) of batches of these sizes, as they are read, and the examples of each; some at a time."""
    length, start = tokens_NL.shape[1], 0
    for size, count in _runs(sizes):
        for part in torch.arange(count).split(max(1, BLOCK_TOKENS // (size * length))):
            stop = start + size * len(part)
            if packed is None:
                yield tokens_NL[start:stop].reshape(len(part), -1), size
            else:
                tokens_nBL = tokens_NL[packed.order_N[start:stop]].view(len(part), size, length)
                yield packed.packings[size].gather(tokens_nBL.permute(1, 2, 0))[0].t(), size
            start = stop


def _runs(sizes: Sequence[int]) -> list[tuple[int, int]]:
    """(size, how many batches of it follow each other), in order."""
    return [(size, len(list(same))) for size, same in groupby(sizes)]
