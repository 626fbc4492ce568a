"""Examples of different lengths one behind another: what stands behind an example's last question is left out.

    x_0 ... x_(T-1) = example 0, example 1, ..., each from its first token on

An output at a token depends on no later one, so nothing that is asked for changes. Operators that mix tokens take such
a batch as one row (1,T,D), with the places where its examples begin; all others need not know.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

ALIGNED = 8  # lengths are multiples of it, as kernels walk over tiles of so many tokens


class Packing(NamedTuple):
    """Where each of B examples begins.

    starts_B: (B + 1,) int32 on the device, multiples of 8, the last of them T; examples do not become longer from one
    to the next, so that the longest begin first. longest: the most tokens that one may have; kernels are chosen by it.
    tokens: T.
    """

    starts_B: Tensor
    longest: int
    tokens: int

    @property
    def batch(self) -> int:
        """The number of examples."""
        return len(self.starts_B) - 1

    def spread(self, x_xTD: Tensor) -> Tensor:
        """(1,T,...) -> (B,L,...) for L = longest, with zeros behind each example; any device, differentiable."""
        starts_B, step_L = self.starts_B.long(), torch.arange(self.longest, device=self.starts_B.device)
        inside_BL = step_L < starts_B.diff()[:, None]
        spread = x_xTD[0][(starts_B[:-1, None] + step_L).where(inside_BL, 0)]
        return spread.where(inside_BL.view(*inside_BL.shape, *[1] * (spread.ndim - 2)), 0)

    def gather(self, x_BLD: Tensor) -> Tensor:
        """What `spread` came from: (B,L,...) -> (1,T,...)."""
        token_T = torch.arange(self.tokens, device=self.starts_B.device)
        example_T = torch.searchsorted(self.starts_B, token_T, right=True, out_int32=True) - 1
        return x_BLD[example_T, token_T - self.starts_B[example_T]][None]


def starts_of(packing: Packing | None) -> Tensor | None:
    """What kernels take of it."""
    return None if packing is None else packing.starts_B


def starts_and_longest(packing: Packing | None) -> tuple[Tensor | None, int]:
    """What torch operators take of it."""
    return (None, 0) if packing is None else packing[:2]


def length_of(x_BLD: Tensor, packing: Packing | None) -> int:
    """Tokens of each sequence, or the most that a packed example may have."""
    return x_BLD.shape[1] if packing is None else packing.longest


def examples_apart(function: Callable[[Tensor], Tensor], x_BLD: Tensor, packing: Packing | None) -> Tensor:
    """A function of (B,L,...) to such, of packed examples (1,T,...) too: in a batch, as if they were of one length."""
    return function(x_BLD) if packing is None else packing.gather(function(packing.spread(x_BLD)))


def packing_of(lengths: list[int], device: torch.device | str, longest: int | None = None) -> Packing:
    """The packing of examples of these lengths; `longest` is by default the first.

    Raises ValueError unless they fit `Packing`.
    """
    if not lengths or min(lengths) < 1 or any(length % ALIGNED for length in lengths):
        raise ValueError(f"lengths of packed examples are multiples of {ALIGNED}, not {lengths}")
    if lengths != sorted(lengths, reverse=True):
        raise ValueError(f"packed examples come longest first, not {lengths}")
    starts = torch.tensor([0, *lengths], device="cpu").cumsum(0).int()
    longest = lengths[0] if longest is None else longest
    if lengths[0] > longest:
        raise ValueError(f"a packed example of {lengths[0]} tokens is longer than {longest}")
    return Packing(starts.to(device), longest, sum(lengths))
