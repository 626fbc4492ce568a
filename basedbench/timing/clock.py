"""The host's clock, behind a name that tests can replace."""

import time
from typing import Protocol


class Clock(Protocol):
    """Seconds that only ever go up."""

    def now(self) -> float:
        """Seconds since some fixed moment."""


class WallClock:
    """The clock of the machine, with nanosecond resolution."""

    def now(self) -> float:
        """Seconds since some fixed moment."""
        return time.perf_counter()
