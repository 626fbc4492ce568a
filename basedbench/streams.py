"""The standard streams of a command: stdout is for tables and JSON alone."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout


@contextmanager
def stdout_to_stderr() -> Iterator[None]:
    """Around the user's own code in this process: what it prints, its libraries and child processes too, is on stderr.

    It moves the stream of the whole process: from one thread only, and the command's own output comes after it.
    """
    if sys.stdout is None or sys.stderr is None:  # one of them is closed: there is nothing to keep apart
        yield
        return
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
