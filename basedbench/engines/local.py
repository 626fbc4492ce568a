"""Recall cases on this machine's devices, each device served by a process of its own.

A worker that dies takes nothing down but itself: several cases that it had in hand are tried once more, each alone. A
case that was the only one in hand becomes a row with the status `crashed`, and is not tried again. So it goes with a
worker in which a case takes too long (`timeout`).
"""

import math
from collections import deque
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from typing import Any, Protocol

from basedbench.engines.compile_ahead import Ahead
from basedbench.engines.deadline import Deadline, unlimited
from basedbench.engines.devices import cores
from basedbench.engines.messages import Broken, Deferred, Epoch, Fatal, Finished, Message, Notice
from basedbench.engines.worker import serve
from basedbench.errors import UserError, warn
from basedbench.forking import end, start_training
from basedbench.store import Store
from basedbench.timing.failures import crash
from basedbench.timing.oom_kills import oom_kills
from basedbench.training.cases import RecallCase
from basedbench.training.cost import estimate
from basedbench.training.rows import Circumstances, recall_row
from basedbench.training.run import Progress

UNKNOWN = 255  # what an ended process's exit code is when the process that starts them has ended: it says nothing


class Listener(Protocol):
    """Who wants to know how a sweep goes."""

    def started(self, case: RecallCase) -> None: ...

    def epoch(self, case: RecallCase, epoch: int, accuracy: float) -> None: ...

    def finished(self, case: RecallCase, row: dict[str, Any]) -> None: ...


@dataclass(frozen=True)
class Place:
    """Where runs go: a device, how many of them at once, and the CPU threads its process may use."""

    device: str
    slots: int
    threads: int = 1


def slowest_first(cases: Iterable[RecallCase], device: str) -> list[RecallCase]:
    """For several devices: models whose runs take longest begin, or at the end the other devices wait for them."""
    return sorted(cases, key=lambda case: -estimate(case, device).seconds)


@dataclass(eq=False)
class _Worker:
    place: Place
    process: Any
    connection: Connection
    slots: int
    in_hand: dict[str, RecallCase] = field(default_factory=dict)
    models: set[str] = field(default_factory=set)
    alone: bool = False
    shared: bool = False  # by what it has in hand and other cases
    late: bool = False
    closed: bool = False
    last_words: str = ""
    kills_before: int | None = None


class LocalEngine:
    """Hands cases to worker processes until all are done."""

    def __init__(
        self,
        places: list[Place],
        root: str,
        listener: Listener,
        plugins: Sequence[str] = (),
        deadline: Deadline[RecallCase] | None = None,
        timeout_s: float = math.inf,
    ) -> None:
        self.places, self.store, self.listener = places, Store(root), listener
        self.plugins = tuple(plugins)
        self.deadline = deadline or unlimited()
        self.timeout_s = timeout_s  # of one run
        self._queue: deque[RecallCase] = deque()
        self._alone: deque[RecallCase] = deque()
        self._workers: list[_Worker] = []
        self._began: dict[str, float] = {}
        self._ahead = Ahead([], [], 0)
        self.killed = 0  # the processes that would not end otherwise

    def run(self, cases: Iterable[RecallCase]) -> None:
        """Run every case that ends before the deadline.

        KeyboardInterrupt ends the workers; rows written stay. UserError if the disk fills.
        """
        self._queue.extend(cases if len(self.places) == 1 else slowest_first(cases, self.places[0].device))
        soon = [case for case in self._queue if self.deadline.in_time(case)]
        devices = [place.device for place in self.places if place.device != "cpu"]
        self._ahead = Ahead(soon, devices, cores(), self.plugins)
        try:
            self._workers = [self._hire(place) for place in self.places[: len(soon)]]
            self._ahead.start()
            while self._workers:
                for worker in self._workers:
                    self._feed(worker)
                self._listen()
        finally:
            self.killed = end([*self._ahead.processes, *(worker.process for worker in self._workers)])
            for worker in self._workers:
                self._hear_out(worker)

    @property
    def under_way(self) -> list[RecallCase]:
        """The cases in the hands of workers; once `run` is over, those that it lost."""
        return [case for worker in self._workers for case in worker.in_hand.values()]

    @property
    def left(self) -> list[RecallCase]:
        """The cases that are not done."""
        return [*self.under_way, *self._alone, *self._queue]

    def _hire(self, place: Place) -> _Worker:
        self.store.look_for("recall")  # the new worker will not miss it
        (ours, theirs), kills = Pipe(), oom_kills()
        arguments = (theirs, place.device, str(self.store.root), place.threads, self.plugins, self._ahead.rehearsed)
        process = start_training(place.device, serve, arguments)
        theirs.close()
        return _Worker(place, process, ours, place.slots, kills_before=kills)

    def _feed(self, worker: _Worker) -> None:
        """Fill a worker's free slots; cases that crashed a worker go alone."""
        if not worker.in_hand:
            case = self.deadline.take(self._alone)
            worker.alone = case is not None
            self._give(worker, case)
        while not worker.alone and not self._awaited() and len(worker.in_hand) < worker.slots:
            if not self._give(worker, self._next(worker)):
                break
        if not (worker.in_hand or worker.closed) and not self._others_busy(worker):
            worker.connection.send(None)
            worker.closed = True

    def _next(self, worker: _Worker) -> RecallCase | None:
        """A case that ends in time: of a model that this worker has begun, else of one that nobody has.

        For the first run of a model every process loads its kernels and records its steps, whoever else has.
        """
        begun = set().union(*(other.models for other in self._workers))

        def strange(case: RecallCase) -> int:
            return 0 if case.model_id in worker.models else 2 if case.model_id in begun else 1

        case = self.deadline.take(sorted(self._queue, key=strange))
        if case is not None:
            self._queue.remove(case)
        return case

    def _awaited(self) -> bool:
        """Whether a case waits for a worker of its own."""
        return any(map(self.deadline.in_time, self._alone))

    def _others_busy(self, worker: _Worker) -> bool:
        """A case in hand elsewhere may come back, so that a worker with nothing to do still waits for it."""
        return any(other.in_hand for other in self._workers if other is not worker)

    def _give(self, worker: _Worker, case: RecallCase | None) -> bool:
        if case is None:
            return False
        worker.shared = bool(worker.in_hand)
        worker.in_hand[case.case_id] = case
        worker.models.add(case.model_id)
        self._began[case.case_id] = self.deadline.now()
        self.listener.started(case)
        with suppress(BrokenPipeError, ConnectionResetError):  # it has died; _listen sees that
            worker.connection.send(case)
        return True

    def _listen(self) -> None:
        by_handle = {handle: w for w in self._workers for handle in (w.connection, w.process.sentinel)}
        helpers = [process.sentinel for process in self._ahead.processes]
        answers = wait([*by_handle, *helpers], self._patience_s())
        ready = {by_handle[handle] for handle in answers if handle in by_handle}  # type: ignore[index]
        self._ahead.settle()
        for worker in ready:
            self._hear(worker)
        for worker in [worker for worker in self._workers if any(self._left_s(case) <= 0 for case in worker.in_hand)]:
            worker.late = True
            worker.process.kill()
            worker.process.join()
            self._hear(worker)

    def _hear(self, worker: _Worker) -> None:
        try:
            while worker.connection.poll():
                self._handle(worker, worker.connection.recv())
        except (EOFError, ConnectionResetError):
            worker.process.join()
        if not worker.process.is_alive() and not worker.connection.closed:
            self._bury(worker)

    def _patience_s(self) -> float | None:
        """How long to wait for an answer; at most an hour, since the system takes no more than some weeks."""
        if self.timeout_s == math.inf:
            return None
        return max(0.0, min([3600.0, *(self._left_s(case) for worker in self._workers for case in worker.in_hand)]))

    def _left_s(self, case_id: str) -> float:
        """Seconds that a case under way has left."""
        return self._began[case_id] + self.timeout_s - self.deadline.now()

    def _handle(self, worker: _Worker, message: Message) -> None:
        match message:
            case Epoch(case_id, epoch, accuracy):
                if case_id in worker.in_hand:
                    self.listener.epoch(worker.in_hand[case_id], epoch, accuracy)
            case Finished(case_id, row):
                case = worker.in_hand.pop(case_id, None)
                if case is None:  # a mixer that forked says everything twice
                    return
                if row["status"] == "ok":
                    self.deadline.pace.learn(case, self.deadline.now() - self._began[case_id])
                self.listener.finished(case, row)
            case Deferred(case_id, fitting):
                worker.slots = max(1, fitting)
                self._queue.appendleft(worker.in_hand.pop(case_id))
            case Fatal(text):
                raise UserError(text)
            case Broken(text):
                worker.last_words = text
            case Notice(text):
                warn(text)

    def _hear_out(self, worker: _Worker) -> None:
        """What a worker said before it was ended: these rows are stored."""
        with suppress(EOFError, OSError):
            while worker.connection.poll():
                message = worker.connection.recv()
                if isinstance(message, Finished | Notice):
                    self._handle(worker, message)

    def _bury(self, worker: _Worker) -> None:
        """A worker process has ended: normally, or by a crash that some case in its hands brought about."""
        worker.connection.close()
        self._workers.remove(worker)
        if not worker.in_hand and worker.closed:
            return
        cases = list(worker.in_hand.values())
        if len(cases) == 1 and (worker.alone or worker.late or worker.process.exitcode != UNKNOWN):
            self._lost(worker, cases[0])
        else:
            self._alone.extend(cases)
        if any(map(self.deadline.in_time, (*self._queue, *self._alone))):
            self._workers.append(self._hire(worker.place))

    def _lost(self, worker: _Worker, case: RecallCase) -> None:
        status, reason = crash(worker.process.exitcode, worker.last_words, worker.kills_before)
        if worker.late:
            status, reason = "timeout", f"not done within {self.timeout_s:g} s"
        progress = Progress(status=status, stop_reason="failed")
        train_s = 0.0 if worker.shared else self.deadline.now() - self._began[case.case_id]  # its part is not known
        row = recall_row(case, progress, Circumstances(worker.place.device, train_s), reason)
        try:
            self.store.write("recall", row)
        except ValueError as error:  # no row can hold it, which is not the other cases' fault
            warn(f"{case.label} has no row: {error}.")
        self.listener.finished(case, row)
