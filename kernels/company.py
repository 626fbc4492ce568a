"""How launches are divided where several runs share a device.

Alone a launch is over soonest with as many programs as the device holds. Beside other runs the device is full in any
case, and a program more only costs: its beginning, and partial sums that it leaves for another launch to add up.

The number is part of what decides in which order sums are made. So it depends on the context and on shapes, never on
who is there: a recall run is the same alone and beside others.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from .tall_matmul import TallMatmuls

# Of the programs that a launch has alone: a fourth; of launches that say how many tokens they have half with more than
# MANY, which is as good for others there.
FEWER, MANY = (4, 2), 2**15

_entered: list[None] = []  # for all threads: a backward pass has one of its own


@contextmanager
def in_company() -> Iterator[None]:
    """Launches inside leave room for others."""
    _entered.append(None)
    try:
        yield
    finally:
        _entered.pop()


@contextmanager
def company(device: torch.device) -> Iterator[None]:
    """The steps of one of several runs on `device`; on a CPU nothing changes."""
    if device.type != "cuda":
        yield
        return
    with in_company(), TallMatmuls():
        yield


def most_programs(alone: int, tokens: int = 0) -> int:
    """Of a launch whose programs each do a part of one sum: `alone` where nothing runs beside it.

    `tokens`, of launches that would be long alone with a fourth: norms, short convolutions, sums over tokens.
    """
    return max(1, alone // FEWER[tokens > MANY]) if _entered else alone
