"""Recurrent states in bfloat16: what a step stores is rounded up or down by chance, so that nothing stops counting.

Rounded to nearest, a sum in bfloat16 stands still once it is 256 times as large as what it is given; rounded by chance
it is right on average (stochastic rounding, arXiv 1502.02551). With r from 0 to 2^16 - 1, by the bits of a float32 x

    stored = the upper half of bits(x) + r,   the next number away from zero in (lower half of x) / 2^16 of cases

Two neighbours of a row share a hash (half of MurmurHash3's finaliser) of their bits, of their place in the sequence's
state and of the tokens so far; half of it is each one's r. So there is no generator to carry, and a state is equal on
every device, beside any other sequences, in a CUDA graph and without one. Without the tokens a step that adds the same
number again and again would be rounded the same way each time, and stand still after all.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .precision import accumulation_dtype

STATE_DTYPES = (torch.float32, torch.bfloat16)  # that a decode step's kernels take
_BITS = 0xFFFFFFFF


def accumulated(state: Tensor) -> Tensor:
    """The state in the dtype that sums are made in, to be changed in place: itself, unless it is kept in fewer bits."""
    return state.to(accumulation_dtype(state.dtype))


def store(state: Tensor, value: Tensor, count_B: Tensor | None) -> None:
    """Write `value` into `state` (B,...), by chance up or down where that is bfloat16 and the value float32.

    `count_B` are the tokens before this one (none: 0). Nothing is to be done if the value is the state (`accumulated`).
    """
    if value is state:
        return
    if state.dtype == torch.bfloat16 and value.dtype == torch.float32:
        value = torch.where(value.isnan(), value, _rounded(value, count_B))
    state.copy_(value)


def _rounded(x: Tensor, count_B: Tensor | None) -> Tensor:
    """x (B,...,columns), float32, as float32 numbers that bfloat16 has."""
    columns = x.shape[-1]
    bits_P2 = F.pad(x, (0, columns % 2)).contiguous().view(torch.int32).long().unflatten(-1, (-1, 2)) & _BITS
    even, odd = bits_P2.unbind(-1)
    place = torch.arange(even.shape[1:].numel(), device=x.device).view(even.shape[1:]) * 0x9E3779B1
    if count_B is not None:
        place = place + count_B.long().view(-1, *[1] * (x.dim() - 1)) * 0x85EBCA77
    mixed = (odd * 0x27D4EB2F + even + place & _BITS) * 0x85EBCA6B & _BITS
    mixed = (mixed ^ mixed >> 13) * 0xC2B2AE35 & _BITS
    upper = (bits_P2 + torch.stack((mixed >> 16, mixed & 0xFFFF), -1) & _BITS) >> 16 << 16
    rounded = (upper - (upper >> 31 << 32)).to(torch.int32).view(torch.float32)
    return rounded.flatten(-2)[..., :columns]
