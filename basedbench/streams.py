"""The standard streams of a command: stdout is for tables and JSON alone, and nobody has to read stderr."""

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any


class _Unfailing(io.FileIO):
    """What cannot be written, to a full disk or a pipe that nobody reads, is dropped."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data) or 0
        except OSError:
            return memoryview(data).nbytes


def stderr_never_fails() -> None:
    """From here on what is said on stderr ends no command, and no run of a worker.

    A stream that was closed before the process began is opened to nowhere: what is opened next, perhaps a file of
    rows, would else have its number, and be written to.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            nowhere = os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
            if nowhere != descriptor:
                os.dup2(nowhere, descriptor)
                os.close(nowhere)
    sys.stdout = sys.stdout or open(1, "w", closefd=False)  # noqa: SIM115
    binary = io.BufferedWriter(_Unfailing(2, "w", closefd=False))
    encoding = getattr(sys.stderr, "encoding", None)
    sys.stderr = io.TextIOWrapper(binary, encoding, errors="backslashreplace", line_buffering=True)


def all_to_stderr() -> None:
    """For a worker: what a mixer prints belongs into neither tables nor JSON."""
    stderr_never_fails()
    os.dup2(2, 1)
    sys.stdout = sys.stderr


@contextmanager
def stdout_to_stderr() -> Iterator[None]:
    """Around the user's own code in this process: what it prints, its libraries and child processes too, is on stderr.

    It moves the stream of the whole process: from one thread only, and the command's own output comes after it.
    """
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        if sys.__stdout__ is not None:
            sys.__stdout__.flush()  # what went round `sys.stdout`
        os.dup2(kept, 1)
        os.close(kept)
