"""Locks on the bytes of one empty file, a byte for each of the things that only one process is to do.

The system gives them back when a process ends, in whatever way: none is ever stale. They tell processes apart, not
parts of one, and all that a process has on a file go when it closes that file anywhere. Where files cannot be locked,
nothing is.
"""

import hashlib
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

try:
    import fcntl as _fcntl
except ImportError:  # not on Windows
    _fcntl = None  # type: ignore[assignment]

fcntl: Any = _fcntl
PLACES = 2**62  # bytes that may be locked; the file itself stays empty


class TakenError(Exception):
    """Another process has it."""


def opened(path: Path) -> int | None:
    """The descriptor of such a file, made if it is not there, as are folders on the way; None if that cannot be."""
    if fcntl is None:
        return None
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    return None


def take(file: int | None, key: str, *, patient: bool = False) -> bool:
    """Lock the byte of a key until `give_back`; False where that cannot be.

    TakenError if another process has it, unless patient.
    """
    if file is None:
        return False
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | (0 if patient else fcntl.LOCK_NB), 1, _place(key))
    except (BlockingIOError, PermissionError) as error:
        raise TakenError from error
    except OSError:
        return False
    return True


def give_back(file: int | None, key: str) -> None:
    """Of a key that was taken."""
    fcntl.lockf(file, fcntl.LOCK_UN, 1, _place(key))


def _place(key: str) -> int:
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") % PLACES
