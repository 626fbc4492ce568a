"""Launches that begin before the kernel in front has ended: programmatic dependent launch, from Hopper on.

    with dependents(device):
        kernel[grid](..., **dependent())        # and in the kernel: `follow(EARLY)` of dependents_triton.py

The one place where this is decided. `dependent()` adds EARLY and launch_pdl to a launch inside such a block, on devices
that know dependents; everywhere else, in training above all, it adds nothing, and the kernel is compiled without a
trace of it. A dependent is launched once every program of the kernel in front has begun (or ended, if that kernel does
not say so: those of libraries do not), and runs beside what is left of it. CUDA graphs keep such launches.

The rules, on which the correctness of all kernels of a stream depends:

1. **Every program of a dependent waits** (`follow`), whatever else it does. Its wait is over once the kernel in front
   is complete; that one has waited too, so all kernels before it are complete. One kernel that does not wait would let
   those behind it overtake those in front of it.
2. **Before its wait a program writes nothing**: neither outputs nor states nor atomics. An earlier kernel may still
   read what it would write, also where the memory of a tensor that is no longer needed has become its output.
3. **Before its wait it reads only what no kernel of the same block has written**: weights, and states (rings, Taylor's,
   those of convolutions and scans), which one kernel a step reads and writes. So no two kernels of a block may touch
   one state, unless all of them wait before they read it; and a weight that is made in the block, if only by
   `.contiguous()`, is none. Any number of kernels may run ahead, all of them waiting: what the one before the last
   wrote is no safer than what the last one did.
4. **The first launch of a block is an ordinary one**: it begins when everything before it is complete, and only
   therefore rule 3 holds for weights and states that were just written. Launches of PyTorch and its libraries, and of
   kernels that do not ask, are ordinary too and may stand anywhere in between.
5. A block's launches go to one stream. A dependent is launched when all programs in front of it have begun, so it takes
   nobody's place. Programs of one launch that wait for each other besides must all be able to run at once: no more of
   them than multiprocessors, and no other stream with such programs.

Not for training.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any

import torch
from torch import Tensor

from .gluon_modules import triton_version

OLDEST = (3, 6)  # Triton with `launch_pdl` as it is used here
CAPABLE = (9, 0)
ROOM = 1 << 14  # counters of a block: for all products of a step
ENABLED = True

_block: ContextVar["_Block | None"] = ContextVar("block of dependents", default=None)


class _Block:
    """Whether the next launch may be a dependent, and counters that begin at zero, each for one launch."""

    def __init__(self) -> None:
        self.begun = False
        self.counters: Tensor | None = None


@contextmanager
def dependents(device: torch.device) -> Iterator[None]:
    """Kernels launched inside may be dependents of each other. A block in a block is a part of that."""
    if _block.get() is not None or not ENABLED or not capable(device):
        yield
        return
    token = _block.set(_Block())
    try:
        yield
    finally:
        _block.reset(token)


def dependent() -> dict[str, Any]:
    """What the next launch is given besides: nothing outside of a block, and for the first one inside."""
    block = _block.get()
    if block is None:
        return {}
    first, block.begun = not block.begun, True
    return {} if first else {"EARLY": True, "launch_pdl": True}


def in_block() -> bool:
    """Whether launches may be dependents now."""
    return _block.get() is not None


def counters_left(device: torch.device) -> int:
    """How many counters the block still has; 0 outside of one.

    The first call makes them. A memset is no kernel: the launch behind it is an ordinary one.
    """
    block = _block.get()
    if block is None:
        return 0
    if block.counters is None:
        block.counters, block.begun = torch.zeros(ROOM, dtype=torch.int32, device=device), False
    return len(block.counters)


def take_counters(count: int) -> Tensor | None:
    """int32 zeros that no other launch touches; None where there are none, or not so many."""
    block = _block.get()
    if block is None or block.counters is None or len(block.counters) < count:
        return None
    taken, block.counters = block.counters[:count], block.counters[count:]
    return taken


@cache
def capable(device: torch.device) -> bool:
    """Whether this device and this Triton know dependents."""
    if device.type != "cuda" or torch.version.hip is not None:
        return False
    try:
        from triton.language.extra.cuda import gdc_wait  # noqa: F401
    except ImportError:
        return False
    return triton_version() >= OLDEST and torch.cuda.get_device_capability(device) >= CAPABLE
