"""The rules of kernels/dependents.py, watched while Triton interprets the launches of a block."""

import contextlib
from collections.abc import Iterable, Iterator

import numpy as np
from torch import Tensor

from tests.kernels import guard


class Watcher:
    """Fails where a program of a dependent does not wait, or does before that what it must not.

    It may then read `kept` alone (weights and states), if no launch before has written that.
    """

    def __init__(self, kept: Iterable[Tensor]) -> None:
        self.kept = [guard.extent(tensor) for tensor in kept if tensor.numel()]
        self.launches: list[bool] = []  # whether each was a dependent
        self.ahead = 0  # accesses before a wait
        self._before, self._now = set[int](), set[int]()  # which of `kept` were written by launches before, by this one
        self._early, self._program, self._programs, self._waited = False, 0, set[int](), set[int]()

    def launched(self, *, early: bool) -> None:
        self.ended()
        self.launches.append(bool(early))
        self._early = bool(early)

    def began(self, program: int) -> None:
        self._program = program
        self._programs.add(program)

    def waited(self) -> None:
        assert self._early, "an ordinary launch has instructions of a dependent"
        self._waited.add(self._program)

    def touched(self, places: np.ndarray, kind: str) -> None:
        """An access of this launch, at these addresses."""
        found = {i for i, (start, stop) in enumerate(self.kept) if ((places >= start) & (places < stop)).any()}
        if kind != "read":
            self._now |= found
        if self._early and self._program not in self._waited and places.size:
            assert kind == "read", f"{guard.where()}: {kind} before the wait"
            inside = np.zeros(len(places), bool)
            for i in found:
                inside |= (places >= self.kept[i][0]) & (places < self.kept[i][1])
            assert inside.all(), f"{guard.where()}: read before the wait of what is neither weight nor state"
            assert not found & self._before, f"{guard.where()}: read before the wait of a state just written"
            self.ahead += 1

    def ended(self) -> None:
        """The launch in hand is over."""
        assert not self._early or self._waited == self._programs, "not every program waits"
        self._before |= self._now
        self._now, self._early, self._programs, self._waited = set(), False, set(), set()


@contextlib.contextmanager
def watched(kept: Iterable[Tensor]) -> Iterator[Watcher]:
    """Watch all launches inside."""
    watcher = Watcher(kept)
    guard.watchers.append(watcher)
    try:
        yield watcher
        watcher.ended()
    finally:
        guard.watchers.remove(watcher)
