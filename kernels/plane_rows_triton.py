"""Where the sequences of planes (B,L) lie, or of planes (1,T) of packed examples: what kernels are given, and ask."""

# mypy: allow-untyped-defs

from typing import Any, NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from .packing import ALIGNED as STEP

ALIGNED = tl.constexpr(STEP)


class PlaneRows(NamedTuple):
    """The sequences of a plane: where packed ones begin, how many, of how many tokens at most, and all tokens."""

    starts: Tensor | None
    sequences: int
    length: int
    tokens: int

    @property
    def unit(self) -> int:
        """What kernels count a plane's size in: so rows of 16 bytes are known to be whole."""
        return STEP if self.tokens % STEP == 0 else 1

    @property
    def units(self) -> int:
        """The size of a plane."""
        return self.tokens // self.unit

    @property
    def arguments(self) -> tuple[Any, ...]:
        """`starts`, `sequences`, `length` and the plane's size in units."""
        return self.starts, self.sequences, self.length, self.units


def plane_rows(x: Tensor, starts: Tensor | None = None, longest: int = 0) -> PlaneRows:
    """Of planes (D,B,L) or, packed, (D,1,T) with the examples' `Packing.starts_B` and `longest`."""
    sequences, length = x.shape[1:]
    if starts is None:
        return PlaneRows(None, sequences, length, sequences * length)
    return PlaneRows(starts, len(starts) - 1, longest, length)


@triton.jit
def sequence_rows(b, starts, sequences, length):
    """Of the sequences b: where each begins in a plane, and its tokens, none where there is no such sequence."""
    if starts is None:
        begin, count = b * length, tl.where(b < sequences, length, 0)
    else:
        begin = tl.load(starts + tl.minimum(b, sequences))
        count = tl.load(starts + tl.minimum(b + 1, sequences)) - begin
        begin, count = tl.multiple_of(begin, [ALIGNED]), tl.multiple_of(count, [ALIGNED])
    return begin, count
