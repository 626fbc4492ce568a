"""A whole suite: what is left to do, group by group, each row stored as soon as its case is done."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any

from basedbench.config.models import ModelCase
from basedbench.config.throughput import AnyCase, MeasureSection
from basedbench.engines.compile_ahead import most_processes
from basedbench.engines.deadline import Deadline, unlimited
from basedbench.engines.devices import cores
from basedbench.engines.memory import free_memory
from basedbench.store import Store, code_version, device_name, fingerprint
from basedbench.timing.clock import WallClock
from basedbench.timing.kinds import FEWEST, by_their_own, first_of_modes, only_compiled, processes_for, to_rehearse
from basedbench.timing.rehearsal import rehearse
from basedbench.timing.rehearsed import Rehearsed, cache_folder
from basedbench.timing.room import CONTEXT_BYTES, does_not_fit, side_by_side
from basedbench.timing.rounds import Competition, Measurement
from basedbench.timing.rows import throughput_row
from basedbench.timing.subject import refused, unsupported, users_own
from basedbench.timing.timeline import noted
from basedbench.timing.worker import Workers

Row = dict[str, Any]
IDLE_SHARE = 0.1  # of the device's memory, for the contexts of processes that wait for their operator
AHEAD = "calling and checking first"  # what the time before cases are timed is spent on
AHEAD_SHARE = 0.5  # of the time that is left: so much of it, once timed, is called ahead at a time


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


def neighbours(found: Iterable[list[AnyCase]]) -> list[list[AnyCase]]:
    """The groups in the order given, but those of the same workers and models in a row: these are started once."""
    alike: dict[frozenset[Any], list[list[AnyCase]]] = {}
    for group in found:
        alike.setdefault(frozenset(_made(case) for case in group), []).append(group)
    return list(chain.from_iterable(alike.values()))


def _made(case: AnyCase) -> tuple[Any, ...]:
    """What is there before a case's shape matters: its worker, and the model in it."""
    model = (case.dtype, str(case.shape)) if isinstance(case, ModelCase) else ()
    return *case.implementation, *model


def _models(found: Iterable[list[AnyCase]]) -> list[AnyCase]:
    """The cases of whole models: what their workers know of them takes seconds to find out again."""
    return [case for group in found for case in group if isinstance(case, ModelCase)]


def _first_of_kinds(found: Iterable[list[AnyCase]], most: int) -> list[AnyCase]:
    """The first operators' cases of so many different workers."""
    first: dict[Any, AnyCase] = {}
    for case in chain.from_iterable(found):
        if not isinstance(case, ModelCase) and len(first) < most:
            first.setdefault(case.implementation, case)
    return list(first.values())


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
        self.on_rehearsal: Callable[[int, int], None] = lambda cases, processes: None
        self.ceilings: Mapping[str, float] = {}  # what fractions are taken of; see `ceilings.stored_ceilings`
        self.find_ceilings: Callable[[Workers, AnyCase], Mapping[str, float]] | None = None  # once all is compiled
        self.clock = WallClock()
        self.deadline: Deadline[AnyCase] = unlimited()
        self.left: list[AnyCase] = []  # the cases that are not done
        self._group: list[AnyCase] = []
        self.spent: dict[str, float] = {}  # seconds that no case is charged for, by what they were spent on
        self.called: dict[str, float] = {}  # seconds in all processes before cases were timed, by operator/contender
        found = fingerprint(device)
        self.fingerprint: dict[str, Any] = found
        self.origin: dict[str, Any] = {
            "code_version": code_version(),
            "device_name": device_name(device),
            "fingerprint": found,
        }
        self.gpu_bytes: int = found["gpu_memory_bytes"] or 0
        self.free_bytes: int | None = free_memory(device) or found["gpu_memory_bytes"]

    def run(self, cases: Sequence[AnyCase], on_row: Callable[[Row], None]) -> None:
        """Time the cases that end before the deadline; `on_row` is told of each row once it is on the disk."""
        self.left = list(cases)
        with Workers(self.device, self.plugins) as workers:
            competition = Competition(workers, self.measure, self.clock)
            todo = self._able(cases, on_row)
            done: list[list[AnyCase]] = []
            ahead: list[list[AnyCase]] = []
            while (group := self._next(todo)) is not None:
                if group not in ahead:
                    ahead = self._soon([group, *todo])
                    self._call_ahead(workers, ahead, _models(todo))
                    if not self.deadline.in_time(*group):  # any more
                        todo.insert(0, group)
                        continue
                self._group = group
                models = _models(todo)
                # Those that are done stay unless models need the room: one that ends takes a third of a second with it.
                kept = [] if models else done[::-1]
                workers.start(group, later=[*models, *_first_of_kinds([*todo, *kept], self._idle())])
                done.append(group)
                for part in self._parts(group, len(workers)):
                    workers.spare(part)
                    for measurement in competition.run(part):
                        self._store(measurement, on_row)

    def _soon(self, todo: list[list[AnyCase]]) -> list[list[AnyCase]]:
        """The groups that are called ahead now: all, or with a time limit those that take up a part of what is left.

        So most of what is called is timed before the limit, whatever there is to compile.
        """
        budget_s, soon = AHEAD_SHARE * self.deadline.left_s, list[list[AnyCase]]()
        for group in todo:
            budget_s -= self.deadline.seconds(*group)
            if soon and budget_s < 0:
                break
            soon.append(group)
        return soon

    def _call_ahead(self, workers: Workers, soon: list[list[AnyCase]], later: list[AnyCase]) -> None:
        """Whatever is done before these groups are timed, beside each other; what the rows relate to, if it is lacking.

        Nothing else is under way meanwhile, and when this returns nothing is. Workers of `later` cases stay.
        """
        cases = [case for group in soon for case in group]
        with self._spending(AHEAD):
            if self.device != "cpu":
                workers.start([*soon[0], *_first_of_kinds(soon, self._idle())], later=later)  # they take part
                workers.spare(cases)
            self._rehearse(workers, cases)
            workers.wait()
        with self._spending("ceilings"):
            if self.find_ceilings is not None:
                self.ceilings = self.find_ceilings(workers, soon[0][0])
                self.find_ceilings = None

    def _next(self, todo: list[list[AnyCase]]) -> list[AnyCase] | None:
        """Remove and return the first group that would end in time."""
        group = next((group for group in todo if self.deadline.in_time(*group)), None)
        if group is not None:
            todo.remove(group)
        return group

    @property
    def under_way(self) -> list[AnyCase]:
        """The cases that were begun and are not done."""
        return [case for case in self._group if case in self.left]

    def _idle(self) -> int:
        """How many processes of operators may wait for their cases; each has a context on the device."""
        return int(IDLE_SHARE * self.gpu_bytes / CONTEXT_BYTES)

    @contextmanager
    def _spending(self, what: str) -> Iterator[None]:
        began = self.clock.now()
        with noted(what):
            yield
        self.spent[what] = self.spent.get(what, 0.0) + self.clock.now() - began

    def _rehearse(self, workers: Workers, cases: Sequence[AnyCase]) -> None:
        """On a GPU: compile what the cases need, and check them, all at once, before any of them is timed."""
        if self.device == "cpu":
            return
        known = Rehearsed(cache_folder(), self.fingerprint, self.plugins)
        wanted = known.new(to_rehearse(cases))
        later = {case.id for case in wanted}
        ready = [case for case in by_their_own(cases) if case.id not in later]
        imports = first_of_modes(cases)
        taking_part = {case.implementation for case in imports}
        own = {key: worker for key, worker in workers.running.items() if key in taking_part}
        worth_it = len(wanted) >= FEWEST or any(map(only_compiled, wanted))
        helpers = processes_for(wanted, most_processes(self.device, cores())) if worth_it else 0
        if helpers + len(own) < 2:
            return
        self.on_rehearsal(len(wanted) + len(ready), helpers + len(own))
        outcome = rehearse(
            wanted,
            self.device,
            self.measure,
            self.plugins,
            helpers,
            own=own,
            ready=ready,
            imports=imports,
            limit_s=AHEAD_SHARE * self.deadline.left_s,
        )
        for case in outcome.lost:
            workers.discard(case)
        for (subject, contender), seconds in outcome.seconds.items():
            name = f"{subject}/{contender}"
            self.called[name] = self.called.get(name, 0.0) + seconds
        known.add(outcome.compiled)

    def _able(self, cases: Sequence[AnyCase], on_row: Callable[[Row], None]) -> list[list[AnyCase]]:
        """The groups to be timed; what cannot be has its row before anything is."""
        able = ([case for case in group if self._possible(case, on_row)] for group in groups(cases))
        return neighbours(group for group in able if group)

    def _parts(self, group: list[AnyCase], processes: int) -> list[list[AnyCase]]:
        """What of a group the device holds at once."""
        return [group] if self.free_bytes is None else side_by_side(group, self.free_bytes, processes)

    def _possible(self, case: AnyCase, on_row: Callable[[Row], None]) -> bool:
        """Whether its contender can take the case and the device hold it; if not, that is its row."""
        facts = self._refusal(case)
        if facts:
            self._store(Measurement(case, facts), on_row)
        return not facts

    def _refusal(self, case: AnyCase) -> dict[str, Any]:
        if not users_own(case) and (reason := unsupported(case)):
            return refused(case, reason)
        if self.free_bytes is not None and (reason := does_not_fit(case, self.free_bytes)):
            return {"status": "oom", "reason": reason}
        return {}

    def _store(self, measurement: Measurement, on_row: Callable[[Row], None]) -> None:
        row = throughput_row(measurement, self.suite, self.origin, self.ceilings)
        self.store.write("throughput", row)
        self.left.remove(measurement.case)
        if measurement.ok:
            self.deadline.pace.learn(measurement.case, measurement.prepare_s + measurement.spent_s)
        on_row(row)
