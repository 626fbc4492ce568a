"""`--time-limit`: a sweep that ends in time, on a machine that is only lent.

The clock starts with the command; imports, worker processes and compiling count. An item (a run, a case) begins only if
it would end in time:

    now - began + seconds(item) <= limit
    seconds(item) = guess(item) * ratio          ratio: measured over guessed, of what is done and most like the item

What would end too late is passed over for what would not. Guesses are rough, and what is under way when the time is up
is lost: the sweep is then stopped as by Ctrl-C.
"""

import math
import re
import signal
import time
from collections.abc import Callable, Hashable, Iterator, MutableSequence, Sequence
from contextlib import contextmanager
from statistics import median
from typing import Any, Generic, TypeVar

from basedbench.errors import UserError

Item = TypeVar("Item")
_UNITS_S = (3600.0, 60.0, 1.0)
_LONGEST_S = 1e9  # that every system's timer takes: 31 years


class TimeUp(KeyboardInterrupt):
    """The limit has come; whatever minds Ctrl-C minds this."""


def seconds_of(text: str, option: str) -> float:
    """`540`, `90s`, `9m` or `1h30m` in seconds; UserError, which names the option, for anything else."""
    found = re.fullmatch(r"(?:(\d{1,9})h)?(?:(\d{1,9})m)?(?:(\d{1,9})s?)?", text.strip().replace(" ", ""))
    parts = found.groups("0") if found else ()
    seconds = sum(unit * int(part) for unit, part in zip(_UNITS_S, parts, strict=False))
    if not seconds:
        raise UserError(
            f"{option} {text!r}: write seconds, more than 0, or hours, minutes and seconds: 540, 90s, 9m, 1h30m."
        )
    return seconds


class Pace(Generic[Item]):
    """How long items take, learnt from those that are done.

    `guess(item)` need only be right up to a factor; `kinds(item)` are the groups it belongs to, the closest first: the
    closest one's items take equally long.
    """

    def __init__(self, guess: Callable[[Item], float], kinds: Callable[[Item], Sequence[Hashable]]) -> None:
        self.guess, self.kinds = guess, kinds
        self._ratios: dict[Hashable, list[float]] = {}
        self._all: list[float] = []

    def learn(self, item: Item, seconds: float) -> None:
        """An item took so long."""
        ratio = seconds / self.guess(item)
        self._all.append(ratio)
        for kind in self.kinds(item):
            self._ratios.setdefault(kind, []).append(ratio)

    def seconds(self, item: Item) -> float:
        """How long an item will take, rather too much than too little."""
        return self.guess(item) * self._ratio(self.kinds(item))

    def _ratio(self, kinds: Sequence[Hashable]) -> float:
        known = [self._ratios.get(kind, []) for kind in kinds]
        if alike := known[0]:
            return max(alike[1:] or alike)  # the first of a kind had its kernels to compile
        return median(next(filter(None, known), self._all) or [1.0])


class Deadline(Generic[Item]):
    """When a sweep has to have ended, if ever, and what still ends before."""

    def __init__(
        self, limit_s: float, began: float, pace: Pace[Item], now: Callable[[], float] = time.monotonic
    ) -> None:
        self.limit_s, self.began, self.pace, self.now = limit_s, began, pace, now

    @property
    def left_s(self) -> float:
        """Seconds left."""
        return self.began + self.limit_s - self.now()

    def seconds(self, *items: Item) -> float:
        """How long these take, one after the other."""
        return sum(map(self.pace.seconds, items))

    def in_time(self, *items: Item) -> bool:
        """Whether these, one after the other, would end in time if they began now."""
        return self.limit_s == math.inf or self.seconds(*items) <= self.left_s

    def take(self, items: MutableSequence[Item]) -> Item | None:
        """Remove and return the first that would end in time."""
        found = next((item for item in items if self.in_time(item)), None)
        if found is not None:
            items.remove(found)
        return found

    def ahead_s(self, items: Sequence[Item], at_once: int = 1) -> float:
        """Seconds that all of these will take, so many at a time."""
        each = [self.pace.seconds(item) for item in items]
        return max([sum(each) / at_once, *each])

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Raise TimeUp in the main thread if the block is not done by then."""
        if self.limit_s == math.inf or not hasattr(signal, "setitimer"):
            yield
            return
        before = signal.signal(signal.SIGALRM, _time_up)
        signal.setitimer(signal.ITIMER_REAL, min(max(self.left_s, 1e-3), _LONGEST_S))
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)


def unlimited() -> Deadline[Any]:
    """For a sweep that takes as long as it takes."""
    return Deadline(math.inf, 0.0, Pace(lambda item: 1.0, lambda item: ((),)))


def _time_up(*_: Any) -> None:
    raise TimeUp
