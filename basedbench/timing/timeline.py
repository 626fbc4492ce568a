"""When what happened, for who looks for lost seconds: lines in the file that BASEDBENCH_TIMELINE names, if it is set.

    BASEDBENCH_TIMELINE=/tmp/timeline basedbench throughput --suite steady && sort /tmp/timeline

A line has the time of its writing (of day, in seconds), the process, and what has just ended. Any number of processes
write at once.
"""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

VARIABLE = "BASEDBENCH_TIMELINE"


def note(what: str) -> None:
    """Write a line."""
    if path := os.environ.get(VARIABLE):
        with open(path, "a") as file:
            file.write(f"{time.time():.3f} {os.getpid()} {what}\n")


@contextmanager
def noted(what: str) -> Iterator[None]:
    """Write how long the block took."""
    began = time.perf_counter()
    yield
    note(f"{what}: {time.perf_counter() - began:.3f} s")
