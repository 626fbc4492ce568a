"""Ctrl-C and SIGTERM, which batch systems send: both stop a command in the same way, with exit codes of their own.

Workers do not mind Ctrl-C, which a terminal sends to all processes: ending them is their parent's business.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Terminated(KeyboardInterrupt):
    """SIGTERM; whatever minds Ctrl-C minds this."""


def heed_sigterm() -> None:
    """From here on SIGTERM raises Terminated, so that workers are ended and rows written stay."""
    signal.signal(signal.SIGTERM, _terminated)


def exit_code(stop: KeyboardInterrupt) -> int:
    """128 and the signal, as shells count."""
    return 128 + (signal.SIGTERM if isinstance(stop, Terminated) else signal.SIGINT)


@contextmanager
def ctrl_c_ignored() -> Iterator[None]:
    """A process that the block starts ignores Ctrl-C from its first moment. Only a main thread can see to that."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)


def _terminated(*_: Any) -> None:
    raise Terminated
