"""Ctrl-C, SIGTERM, which batch systems send, and SIGHUP of a terminal that is closed: all stop a command in the same
way, with exit codes of their own.

Workers do not mind what a terminal sends to all processes: ending them is their parent's business.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

_leave = os._exit  # which raises while a user's file is loaded
AGAIN_S = 1.0  # a second Ctrl-C so soon is the same wish: what the first one stopped is being put in order

_OF_TERMINALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGHUP") if hasattr(signal, name))

temporary_files = set[str]()  # what is removed where a process ends at once
_heeded_by = 0  # the process that does; what it forks has other children and no folder of its own
_raised_at = -AGAIN_S
_within_a_command = False


class Terminated(KeyboardInterrupt):
    """SIGTERM or SIGHUP; whatever minds Ctrl-C minds this."""

    def __init__(self, number: int = signal.SIGTERM) -> None:
        super().__init__()
        self.number = number


def heed_signals() -> None:
    """From here on they end this process: within a command by an exception, with which it puts things in order.

    But for those that are ignored: Ctrl-C in what a shell runs in the background, SIGHUP behind `nohup`.
    """
    global _heeded_by
    _heeded_by = os.getpid()
    for number in (*_OF_TERMINALS, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _stop)


@contextmanager
def within_a_command() -> Iterator[None]:
    """They raise KeyboardInterrupt or Terminated in this block, unless something is being imported."""
    global _within_a_command
    _within_a_command = True
    try:
        yield
    finally:
        _within_a_command = False


def exit_code(stop: KeyboardInterrupt) -> int:
    """128 and the signal, as shells count."""
    return 128 + (stop.number if isinstance(stop, Terminated) else signal.SIGINT)


def ignore_terminals() -> None:
    """From here on this process, a worker, does not mind what a terminal sends."""
    for number in _OF_TERMINALS:
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def terminals_ignored() -> Iterator[None]:
    """A process that the block starts ignores terminals from its first moment. Only a main thread can see to that."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {number: signal.signal(number, signal.SIG_IGN) for number in _OF_TERMINALS}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _stop(number: int, frame: FrameType | None) -> None:
    global _raised_at
    if not _within_a_command or _importing(frame):
        _end_at_once(number)
    now = time.monotonic()
    if now - _raised_at < AGAIN_S:
        return
    _raised_at = now
    raise KeyboardInterrupt if number == signal.SIGINT else Terminated(number)


def _importing(frame: FrameType | None) -> bool:
    """Whether an import is going on: a library may lose an exception there, or make another one of it."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def _end_at_once(number: int) -> None:
    with suppress(OSError):
        os.write(2, b"\nStopped.\n")
    if os.getpid() == _heeded_by:
        # It may be what is being imported, and have no such thing yet.
        for process in getattr(sys.modules.get("multiprocessing"), "active_children", list)():
            process.kill()
        _remove_temporary()
    _leave(128 + number)


def _remove_temporary() -> None:
    """What a usual end would: files that were named, and the folder in which multiprocessing has its sockets."""
    for file in list(temporary_files):  # to which other threads may add
        with suppress(OSError):
            os.unlink(file)
    current = getattr(sys.modules.get("multiprocessing.process"), "current_process", None)
    folder = None if current is None else current()._config.get("tempdir")
    if folder is None:
        return
    with suppress(OSError):
        for name in os.listdir(folder):
            os.unlink(os.path.join(folder, name))
        os.rmdir(folder)
