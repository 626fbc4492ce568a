"""Kernels of a decode step that start while the one before them ends (programmatic dependent launch, Hopper and later).

    with dependent_launches():
        ...

In there, kernels that know how are launched as dependents: all programs of a kernel say at their start that the next
one may be launched, and wait for the one before them to be done before they touch what it wrote. So a kernel's launch,
its first instructions, and reads of what nobody writes (weights) hide behind the kernel before it. **Every kernel
launched so waits**, or the one behind it could overtake the one before it. What is read ahead of the wait must have
been written before the last launch of another kind, which waits for everything: not for training.
"""

# mypy: allow-untyped-defs

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any

import torch
from torch import Tensor

_dependent: ContextVar[bool] = ContextVar("dependent", default=False)


@contextmanager
def dependent_launches(on: bool = True) -> Iterator[None]:
    """Launch kernels that know how as dependents of those before them, or not."""
    token = _dependent.set(on)
    try:
        yield
    finally:
        _dependent.reset(token)


def early_options(x: Tensor) -> dict[str, Any]:
    """The arguments of a launch on the device of x whose kernel begins with `depend(EARLY)`."""
    if _dependent.get() and x.is_cuda and _supported(x.device.index or 0):
        return {"EARLY": True, "launch_pdl": True}
    return {"EARLY": False}


@cache
def _supported(device: int) -> bool:
    try:
        from triton.language.extra.cuda import gdc_wait  # noqa: F401
    except ImportError:
        return False
    return torch.cuda.get_device_capability(device) >= (9, 0)
