"""A worker process: one device, and up to `slots` recall runs on it side by side.

Runs are generators that enqueue a little and yield; the worker goes round them. A run that is still being recorded has
its turn when the others have enqueued all they can: a piece of it takes the host as long as hundreds of their steps. A
run's row is written the moment the run ends, from here, so that neither another run's failure nor the end of the sweep
can lose it. Where a failure broke the device for the whole process, the process ends, and the engine tries what it had
in hand again, one by one.
"""

import contextlib
import gc
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

import torch

from basedbench import threads
from basedbench.ambient import settings_kept
from basedbench.engines import determinism, kernel_keys
from basedbench.engines.compile_ahead import Rehearsed
from basedbench.engines.messages import Broken, Deferred, Epoch, Fatal, Finished, Message, Notice
from basedbench.errors import UserError, sentence
from basedbench.plugins import load_plugins
from basedbench.signals import ignore_terminals
from basedbench.store import Store
from basedbench.streams import all_to_stderr
from basedbench.timing.failures import out_of_memory
from basedbench.timing.timeline import note
from basedbench.timing.waking import open_device
from basedbench.training.cases import RecallCase
from basedbench.training.data import recall_data
from basedbench.training.rows import Circumstances, described, recall_row
from basedbench.training.run import Progress, RecallRun

IDLE_S = 0.0002
# While a run is recorded the host goes to and fro: so long at most to enqueue the others' steps, if there is no end of
# what they can enqueue, and so long at least to record.
FEED_S, RECORD_S = 0.05, 0.02
KERNELS_S = 60.0  # that a run waits at most for the processes that compile its kernels


@dataclass(eq=False)
class Active:
    """A run under way. `share_s` is its part of the wall clock; `company` how many runs were under way on average."""

    case: RecallCase
    steps: Iterator[bool]
    stream: Any
    share_s: float = 0.0
    wall_s: float = 0.0
    runs_s: float = 0.0  # the wall clock of all runs under way with it, itself included
    run: RecallRun | None = None
    epochs_told: int = 0
    progress: Progress = field(default_factory=Progress)
    data_hash: str | None = None
    described: Mapping[str, Any] | None = None

    @property
    def recorded(self) -> bool:
        """Whether its steps are, so that it takes the host next to no time any more."""
        return self.run is not None and self.run.recorded

    @property
    def company(self) -> int:
        return max(1, round(self.runs_s / self.wall_s)) if self.wall_s else 1


class Worker:
    """Runs the cases that arrive on `connection` and reports on it."""

    def __init__(self, connection: Connection, device: str, root: str, rehearsed: Rehearsed | None = None) -> None:
        self.connection, self.device = connection, device
        self.rehearsed = rehearsed or Rehearsed([])
        self.store = Store(root, lambda text: self._send(Notice(text)))
        self.active: list[Active] = []
        self.open = True
        self._shared = time.perf_counter()
        self._pid = os.getpid()

    def loop(self) -> None:
        """Until the parent says that no more cases come and the last one is done."""
        while self.open or self.active:
            self._receive()
            if not any([self._go_round(), self._record()]):
                time.sleep(IDLE_S)
            self._share()

    def _go_round(self) -> bool:
        """Let the recorded runs enqueue steps, again and again if another waits; True unless they only wait."""
        busy, limit = False, time.perf_counter() + FEED_S
        while True in [self._advance(entry) for entry in list(self.active) if entry.recorded]:
            busy = True
            if all(entry.recorded for entry in self.active) or time.perf_counter() > limit:
                break
        return busy

    def _record(self) -> bool:
        """Go on with the first run that is not recorded and waits for nothing; True unless there is none."""
        limit = time.perf_counter() + RECORD_S
        for entry in [entry for entry in self.active if not entry.recorded]:
            if self._advance(entry):
                while entry in self.active and not entry.recorded and time.perf_counter() < limit:
                    self._advance(entry)
                return True
        return False

    def _receive(self) -> None:
        while self.open and self.connection.poll(None if not self.active else 0):
            case = self.connection.recv()
            self._share()  # of the time in which nothing was to do, to nobody
            if case is None:
                self.open = False
            else:
                self.active.append(self._start(case))

    def _start(self, case: RecallCase) -> Active:
        stream = torch.cuda.Stream(self.device) if self.device != "cpu" else None
        entry = Active(case, iter(()), stream)
        entry.steps = self._steps(entry)
        return entry

    def _steps(self, entry: Active) -> Iterator[bool]:
        """The run from its data to its end; building belongs to it, so that a failure there is the run's own."""
        precision = entry.case.train.precision
        set_precision(precision)
        # A state that cannot be begun fails here, not behind an hour of training.
        entry.described = described(entry.case)
        data = recall_data(entry.case, self.device)
        entry.data_hash = data.data_hash
        note(f"data of {entry.case.label}")
        yield True
        entry.run = RecallRun(entry.case, data, self.device)
        entry.progress = entry.run.progress
        limit = time.perf_counter() + KERNELS_S
        while time.perf_counter() < limit and self.rehearsed.awaited(entry.case, busy=self._busy()):
            yield False
        note(f"kernels of {entry.case.label} or no more waiting for them")
        set_precision(precision)  # another run may have begun meanwhile
        for working in entry.run.train():
            yield working
            set_precision(precision)

    def _busy(self) -> bool:
        """Whether a run is recorded, or will be once its kernels are there."""
        return any(entry.recorded or self.rehearsed.awaited(entry.case, busy=False) for entry in self.active)

    def _advance(self, entry: Active) -> bool:
        """Let a run enqueue its next piece; True unless it only waits."""
        was = entry.recorded
        try:
            with settings_kept(), torch.cuda.stream(entry.stream) if entry.stream else contextlib.nullcontext():
                working = next(entry.steps, None)
        except BaseException as error:  # SystemExit, too: it is the run's own failure
            self._end_if_copied()
            if out_of_memory(error):
                self._out_of_memory(entry, error)
                return True
            if not device_answers(self.device):
                self._send(Broken(sentence(error)))
                os._exit(1)  # Python's own end would call the device again, and PyTorch abort with a page of its stack
            self._fail(entry, "runtime_error", error)
            return True
        self._end_if_copied()
        self._tell(entry)
        if entry.recorded and not was:
            note(f"recorded {entry.case.label}")
        if working is None:
            self._finish(entry)
        return working is not False

    def _end_if_copied(self) -> None:
        """A mixer may have forked: its copy of this process must not go on beside it."""
        if os.getpid() != self._pid:
            os._exit(0)

    def _tell(self, entry: Active) -> None:
        told, accuracies = entry.epochs_told, entry.progress.accuracies
        if len(accuracies) > told:
            entry.epochs_told = len(accuracies)
            self._send(Epoch(entry.case.case_id, len(accuracies), accuracies[-1]))

    def _out_of_memory(self, entry: Active, error: BaseException) -> None:
        """Beside others: hand the case back to be run with fewer. Alone: it is too big, and that is its result."""
        if len(self.active) == 1:
            self._fail(entry, "oom", error)
            return
        self._drop(entry)
        self._send(Deferred(entry.case.case_id, len(self.active)))

    def _fail(self, entry: Active, status: str, error: BaseException) -> None:
        entry.progress.status = status
        entry.progress.stop_reason = "failed"
        self._finish(entry, sentence(error)[:500])

    def _finish(self, entry: Active, reason: str = "") -> None:
        self._share()
        self._drop(entry)
        circumstances = Circumstances(self.device, entry.share_s, entry.company, entry.data_hash, entry.described)
        row = recall_row(entry.case, entry.progress, circumstances, reason)
        self.store.write("recall", row)
        self._send(Finished(entry.case.case_id, row))

    def _drop(self, entry: Active) -> None:
        """Forget a run, once its stream is idle: data shared by runs would else be freed while it still reads them."""
        if entry.stream is not None:
            entry.stream.synchronize()
        self.active.remove(entry)
        entry.steps = iter(())
        entry.run = None

    def _share(self) -> None:
        """The time since this was last called, to the runs that train; to all under way while none does."""
        now = time.perf_counter()
        seconds, self._shared = now - self._shared, now
        payers = [entry for entry in self.active if entry.recorded] or self.active
        for entry in payers:
            entry.share_s += seconds / len(payers)
        for entry in self.active:
            entry.wall_s += seconds
            entry.runs_s += seconds * len(self.active)

    def _send(self, message: Message) -> None:
        self.connection.send(message)


def device_answers(device: str) -> bool:
    """False after an illegal access: the process's CUDA context is then lost, and with it the runs beside the cause."""
    if device == "cpu":
        return True
    try:
        torch.cuda.synchronize(device)
    except RuntimeError:
        return False
    return True


def set_precision(precision: str) -> None:
    """How float32 products are computed; graphs keep what held when they were recorded."""
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = precision == "tf32"


def serve(
    connection: Connection,
    device: str,
    root: str,
    cpu_threads: int,
    plugins: Sequence[str] = (),
    rehearsed: Rehearsed | None = None,
) -> None:
    """The body of a worker process. What a terminal sends is the parent's to handle."""
    ignore_terminals()
    all_to_stderr()
    torch.set_num_threads(cpu_threads)
    determinism.obey()
    if device != "cpu":
        kernel_keys.make_alike()
        open_device(device)
    try:
        load_plugins(plugins)
        note("ready to train")
        gc.freeze()  # what is imported is never collected: looking at it takes tenths of a second
        Worker(connection, device, root, rehearsed).loop()
    except UserError as error:
        connection.send(Fatal(str(error)))
    except (BrokenPipeError, ConnectionResetError, EOFError):
        pass  # the parent is gone; what was finished is stored
    threads.leave()
