"""A whole suite: what is left to do, group by group, each row stored as soon as its case is done."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from basedbench.config.throughput import AnyCase, MeasureSection
from basedbench.store import Store, code_version, device_name, fingerprint
from basedbench.timing.clock import WallClock
from basedbench.timing.rounds import Competition, Measurement
from basedbench.timing.rows import throughput_row
from basedbench.timing.subject import unsupported
from basedbench.timing.worker import Workers

Row = dict[str, Any]


def groups(cases: Iterable[AnyCase]) -> list[list[AnyCase]]:
    """Cases that are compared with each other, together, in the order given; each contender once in a group.

    They share a `place`: mode, dtype, batch, length, baseline and such. Where an operator has several widths or options
    at the same place, its first ones are one group with the first of the others, its second ones the next, and so on.
    """
    found: dict[tuple[Any, ...], list[AnyCase]] = {}
    variants: dict[tuple[Any, ...], list[Any]] = {}
    for case in cases:
        shapes = variants.setdefault((*case.place, case.subject), [])
        if case.shape not in shapes:
            shapes.append(case.shape)
        found.setdefault((*case.place, shapes.index(case.shape)), []).append(case)
    return list(found.values())


class Sweep:
    """Runs cases of a suite on one device and stores their rows."""

    def __init__(
        self,
        suite: str,
        store: Store,
        device: str,
        measure: MeasureSection,
        plugins: Sequence[str] = (),
    ) -> None:
        self.suite, self.store, self.device, self.measure, self.plugins = suite, store, device, measure, plugins
        self.ceilings: Mapping[str, float] = {}  # what fractions are taken of; see `ceilings.stored_ceilings`
        self.origin = {
            "code_version": code_version(),
            "device_name": device_name(device),
            "fingerprint": fingerprint(device),
        }

    def run(self, cases: Sequence[AnyCase], on_row: Callable[[Row], None]) -> None:
        """Time the cases; `on_row` is told of each row once it is on the disk."""
        with Workers(self.device, self.plugins) as workers:
            competition = Competition(workers, self.measure, WallClock())
            for group in groups(cases):
                able = [case for case in group if self._supported(case, on_row)]
                workers.start(able)
                for measurement in competition.run(able):
                    self._store(measurement, on_row)

    def _supported(self, case: AnyCase, on_row: Callable[[Row], None]) -> bool:
        """Whether its contender can take the case; if not, that is its row."""
        reason = unsupported(case)
        if reason:
            self._store(Measurement(case, {"status": "unsupported", "reason": reason}), on_row)
        return reason is None

    def _store(self, measurement: Measurement, on_row: Callable[[Row], None]) -> None:
        row = throughput_row(measurement, self.suite, self.origin, self.ceilings)
        self.store.write("throughput", row)
        on_row(row)
