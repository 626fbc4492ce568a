"""One process compiles a kernel, though several need it: the others see to their other kernels first, and then wait.

Models differ in a kernel or two of twenty: a dozen processes with a model each would compile the same kernels at the
same time. Triton keeps what it compiled in a folder for all of them, so the one that comes second finds it there. Who
compiles what is told by locks on the bytes of one file in that folder, a byte for each kernel. The system gives them
back when a process ends, in whatever way.
"""

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from typing import Any, TypeVar

try:
    import fcntl as _fcntl
except ImportError:  # not on Windows
    _fcntl = None  # type: ignore[assignment]

fcntl: Any = _fcntl
Kernel = TypeVar("Kernel")
FILE = "basedbench.lock"
PLACES = 2**62  # bytes that may be locked; the file itself stays empty


class ClaimedError(Exception):
    """Another process is compiling this kernel."""


class Claims:
    """How Triton is to compile; `patient`: to wait for another process that has the kernel in hand."""

    def __init__(self, patient: bool) -> None:
        self.patient = patient

    def submit(self, key: str, compile_: Callable[[], Kernel], finish: Callable[[Kernel], object]) -> Kernel:
        """What Triton calls for a kernel that it has not; `key` tells kernels apart as its folder does.

        ClaimedError unless patient, if another process has it in hand.
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
    """Hold the lock of a kernel, or none where files cannot be locked. ClaimedError if it is taken, unless patient."""
    place = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") % PLACES
    file = _file()
    locked = file is not None and _take(file, place, patient)
    try:
        yield
    finally:
        if locked:
            fcntl.lockf(file, fcntl.LOCK_UN, 1, place)


def _take(file: int, place: int, patient: bool) -> bool:
    """Whether the lock could be had; if not, a kernel is compiled twice at worst."""
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | (0 if patient else fcntl.LOCK_NB), 1, place)
    except (BlockingIOError, PermissionError) as error:
        raise ClaimedError from error
    except OSError:
        return False
    return True


def _file() -> int | None:
    """The file in the folder where Triton keeps kernels now, opened by this process; None if that cannot be."""
    from triton import knobs

    return None if fcntl is None else _opened(knobs.cache.dir, os.getpid())


@cache
def _opened(folder: str, process: int) -> int | None:
    """Never closed: all locks that a process has on a file go when it closes it anywhere."""
    with suppress(OSError, TypeError):
        os.makedirs(folder, exist_ok=True)
        return os.open(os.path.join(folder, FILE), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    return None
