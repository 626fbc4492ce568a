"""One process compiles a kernel, though several need it: the others see to their other kernels first, and then wait.

Models differ in a kernel or two of twenty: a dozen processes with a model each would compile the same kernels at the
same time. Triton keeps what it compiled in a folder for all of them, so the one that comes second finds it there. Who
compiles what is told by locks on a file in that folder.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TypeVar

from basedbench import locks

Kernel = TypeVar("Kernel")
FILE = "basedbench.lock"


class Claims:
    """How Triton is to compile; `patient`: to wait for another process that has the kernel in hand."""

    def __init__(self, patient: bool) -> None:
        self.patient = patient

    def submit(self, key: str, compile_: Callable[[], Kernel], finish: Callable[[Kernel], object]) -> Kernel:
        """What Triton calls for a kernel that it has not; `key` tells kernels apart as its folder does.

        TakenError unless patient, if another process has it in hand.
        """
        with claimed(key, self.patient):
            kernel = compile_()
        finish(kernel)
        return kernel


@contextmanager
def claiming(patient: bool) -> Iterator[None]:
    """What this thread compiles within the block it claims first, where Triton can be asked to."""
    try:
        from triton.runtime._async_compile import active_mode
    except ImportError:
        yield
        return
    token = active_mode.set(Claims(patient))  # type: ignore[arg-type]
    try:
        yield
    finally:
        active_mode.reset(token)


@contextmanager
def claimed(key: str, patient: bool) -> Iterator[None]:
    """Hold the lock of a kernel, or none where files cannot be locked. TakenError if it is taken, unless patient."""
    file = _file()
    locked = locks.take(file, key, patient=patient)
    try:
        yield
    finally:
        if locked:
            locks.give_back(file, key)


def _file() -> int | None:
    """The file in the folder where Triton keeps kernels now, opened by this process; None if that cannot be."""
    from triton import knobs

    return _opened(knobs.cache.dir, os.getpid()) if knobs.cache.dir else None


@cache
def _opened(folder: str, process: int) -> int | None:
    """Never closed: the locks would go."""
    return locks.opened(Path(folder) / FILE)
