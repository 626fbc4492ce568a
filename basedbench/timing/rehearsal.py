"""First calls of a suite's cases, in processes beside each other, before anything is timed.

A kernel is compiled on one core, and peers try many configurations: one after the other that takes most of a sweep's
time. Triton keeps what it compiled on disk, for every process. So on a GPU every case is loaded and called once, in as
many processes as cores and memory allow, by kinds that may share a kernel; all of them have ended when the first sample
is taken. What fails here fails again in the case's own worker, which then says so. `compile_s` is measured there, of a
cache that holds the kernels.
"""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from typing import Any

from basedbench.config.models import ModelCase
from basedbench.config.throughput import AnyCase, MeasureSection
from basedbench.contenders.sdpa import BACKENDS
from basedbench.timing.failures import harmless
from basedbench.timing.worker import Failure, Worker

# Whole models are left out too: few and large.
NOTHING_TO_COMPILE = ("reference", *(backend.name for backend in BACKENDS))
FEWEST = 3  # below that, starting the processes takes longer
KINDS_EACH = 2  # a process takes about as long to come up as a kernel to compile


def kinds(cases: Iterable[AnyCase]) -> list[list[AnyCase]]:
    """Cases that may share a compiled kernel, together and in their order: all but batch and length is the same."""
    found: dict[str, list[AnyCase]] = {}
    for case in cases:
        found.setdefault(repr((case.implementation, case.mode, case.dtype, case.shape)), []).append(case)
    return list(found.values())


def to_rehearse(cases: Iterable[AnyCase]) -> list[AnyCase]:
    """The cases whose implementations may have something to compile, the largest last: they need the most memory."""
    found = [case for case in cases if not isinstance(case, ModelCase) and case.contender not in NOTHING_TO_COMPILE]
    return sorted(found, key=lambda case: case.batch * case.length)


def processes_for(cases: Sequence[AnyCase], most: int) -> int:
    """How many processes are worth starting for these cases."""
    return min(most, -(-len(kinds(cases)) // KINDS_EACH))


def rehearse(
    cases: Sequence[AnyCase],
    device: str,
    measure: MeasureSection,
    plugins: Sequence[str],
    processes: int,
    set_up: Callable[..., Any] | None = None,
) -> list[Failure]:
    """Call each case once in one of `processes` processes; returns what failed, which nobody needs to mind.

    Cases that may share a kernel are called one after the other by the same one: it is compiled once.
    """
    parts = kinds(cases)
    troupe = _Troupe(parts, lambda: Worker(device, plugins, set_up or _set_up), measure)
    return troupe.run(min(processes, len(parts)))


class _Troupe:
    """Workers that take kinds of cases from one queue until it is empty."""

    def __init__(self, parts: Sequence[Sequence[AnyCase]], hire: Callable[[], Worker], measure: MeasureSection) -> None:
        self.left, self.hire, self.measure = deque(parts), hire, measure
        self.workers: list[Worker] = []
        self.interrupted = False
        self.failures: list[Failure] = []

    def run(self, count: int) -> list[Failure]:
        """Ctrl-C ends them all at once."""
        self.workers = [self.hire() for _ in range(count)]
        with ThreadPoolExecutor(max(1, count)) as pool:
            try:
                wait([pool.submit(self._work, place) for place in range(count)])
            except BaseException:
                self.interrupted = True
                for worker in self.workers:
                    worker.kill()
                raise
        for worker in self.workers:  # all at once: a context takes its time to go
            worker.kill()
        for worker in self.workers:
            worker.stop()
        return self.failures

    def _work(self, place: int) -> None:
        """A process that failed is replaced: its device may be lost to it."""
        lost = False
        for case in self._queue():
            if lost:
                self.workers[place].stop()
                self.workers[place] = self.hire()
            answer = self.workers[place].prepare(case, self.measure)
            lost = isinstance(answer, Failure) and not harmless(answer.status, answer.reason)
            if isinstance(answer, Failure):
                self.failures.append(answer)

    def _queue(self) -> Iterator[AnyCase]:
        """What is left, a kind at a time, for one process."""
        while self.left:
            with suppress(IndexError):  # another was faster
                for case in self.left.popleft():
                    if self.interrupted:
                        return
                    yield case


class _Rehearsal:
    """What a worker prepares here: the first call, and nothing kept of it."""

    def __init__(self, case: AnyCase, device: str) -> None:
        self.case, self.device = case, device

    def prepare(self) -> dict[str, Any]:
        import gc

        import torch

        from basedbench.timing.subject import subject_of

        subject = subject_of(self.case, self.device)
        with torch.set_grad_enabled(subject.grad), subject.context():
            subject.load()
            subject.start()
        del subject
        gc.collect()
        if self.device != "cpu":
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
        return {}


def _set_up(device: str, plugins: Sequence[str]) -> Any:
    import torch

    from basedbench.plugins import load_plugins

    torch.set_num_threads(1)
    # What peers would keep of tuning beside other processes is not what is best with the device to themselves.
    os.environ |= {"FLA_CACHE_RESULTS": "0", "TRITON_CACHE_AUTOTUNING": "0"}
    if device != "cpu":
        torch.cuda.set_device(device)
    load_plugins(plugins)
    return lambda case, measure: _Rehearsal(case, device)
