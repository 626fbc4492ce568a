"""Which elements a dropout keeps, drawn where they are used: numbers that depend on a seed, a step and a place alone.

    kept_i = philox(seed, i // 4, step)_(i mod 4) / 2^32 < keep

Philox 4x32 with 10 rounds: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011), whose four numbers
serve four elements side by side, those of a row counted up to a power of two, in the order 0, 2, 1, 3.
"""

from typing import NamedTuple

import torch
from torch import Tensor

ROUND = (0xD2511F53, 0xCD9E8D57)
KEY = (0x9E3779B9, 0xBB67AE85)
BITS = 0xFFFFFFFF
TOGETHER = 4


class Draws(NamedTuple):
    """A stream of draws. `steps` () int64, on the device of what is drawn for, says which step is at hand."""

    seed: int
    steps: Tensor

    def kept(self, x_xD: Tensor, keep: float) -> Tensor:
        """Which elements of x stay (bool), each with probability `keep`; any device."""
        width = x_xD.shape[-1]
        groups = padded(width) // TOGETHER
        rows = x_xD.numel() // max(1, width)
        index = torch.arange(rows * groups, device=x_xD.device)
        a, b, c, d = philox(self.seed, index, self.steps.expand_as(index))
        numbers_xD = torch.stack([a, c, b, d], -1).view(rows, groups * TOGETHER)[:, :width]
        return ((numbers_xD >> 1) < threshold(keep)).view(x_xD.shape)


def padded(width: int) -> int:
    """Elements that are drawn for a row."""
    return max(TOGETHER, 1 << (width - 1).bit_length())


def threshold(keep: float) -> int:
    """Numbers of 31 bits below it say that an element stays."""
    return min(round(keep * 2**31), 2**31 - 1)


def philox(seed: int, first: Tensor, second: Tensor, rounds: int = 10) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Four 32-bit numbers, as int64, for each pair of counters; the other two counters are 0."""
    key = [seed & BITS, seed >> 32 & BITS]
    c0, c1, c2, c3 = first & BITS, second & BITS, torch.zeros_like(first), torch.zeros_like(first)
    for _ in range(rounds):
        high, low = ROUND[0] * c0, ROUND[1] * c2  # modulo 2^64, whose upper half a mask brings out
        c0, c1, c2, c3 = (low >> 32 & BITS) ^ c1 ^ key[0], low & BITS, (high >> 32 & BITS) ^ c3 ^ key[1], high & BITS
        key = [(k + more) & BITS for k, more in zip(key, KEY, strict=True)]
    return c0, c1, c2, c3
