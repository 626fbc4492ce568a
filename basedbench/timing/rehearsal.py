"""First calls and checks of a suite's cases, in processes beside each other, before anything is timed.

A kernel is compiled on one core, and peers try many configurations: one after the other that takes most of a sweep's
time. Triton keeps what it compiled on disk, for every process. So on a GPU every case is loaded and called once, in as
many processes as cores and memory allow, by kinds that may share a kernel, what takes longest first; all helpers have
ended when the first sample is taken. Of peers that tune, all configurations are compiled and none is called: which is
best cannot be told in company. What fails here fails again in the case's own worker, which then says so.

The workers that will time the cases are up meanwhile, and import what their first calls need. Those whose
implementations choose nothing by timing take part: each calls its own cases, compiles some of them itself, and checks
them. What was right need not be checked again; what was not, or did not come to its turn, is checked when it is
prepared. They go on as long as that is quicker than one after the other: while something compiles, or two of them are
at it.
"""

import math
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from threading import Condition
from typing import Any

from basedbench.config.throughput import AnyCase, MeasureSection
from basedbench.timing.failures import harmless
from basedbench.timing.kinds import by_their_own, kinds, only_compiled
from basedbench.timing.timeline import note
from basedbench.timing.worker import Failure, Worker

Implementation = tuple[str, str]


@dataclass
class Outcome:
    """What came of a rehearsal. Nobody needs to mind `failures`; the workers of `lost` cases are of no further use.

    `seconds` are those of all processes together.
    """

    compiled: list[AnyCase] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    lost: list[AnyCase] = field(default_factory=list)
    seconds: dict[Implementation, float] = field(default_factory=dict)


def rehearse(
    cases: Sequence[AnyCase],
    device: str,
    measure: MeasureSection,
    plugins: Sequence[str],
    processes: int,
    set_up: Callable[..., Any] | None = None,
    own: Mapping[Implementation, Worker] | None = None,
    ready: Sequence[AnyCase] = (),
    imports: Sequence[AnyCase] = (),
    limit_s: float = math.inf,
) -> Outcome:
    """Call each case once in one of `processes` helpers, or in the worker that will time it if `own` has that.

    Cases that may share a kernel are called one after the other by the same one: it is compiled once. `own` workers
    import what first calls of `imports` will; they also call and check what has been compiled by then: `ready` cases at
    once, the others when a helper is done. What nobody has begun after `limit_s` is left to its turn.
    """
    own = own or {}
    parts = [part for part in kinds(cases) if processes or _claimable(part, own)]
    troupe = _Troupe(parts, lambda: Worker(device, plugins, set_up or _set_up), measure, own, ready, imports)
    troupe.ends = time.monotonic() + limit_s
    return troupe.run(min(processes, len(parts)))


def _claimable(part: Sequence[AnyCase], own: Iterable[Implementation]) -> bool:
    """Whether the worker that will time a kind may compile it."""
    return part[0].implementation in own and len(by_their_own(part)) == len(part)


class _Troupe:
    """Helpers that take kinds of cases from one queue until it is empty; beside them the cases' own workers."""

    def __init__(
        self,
        parts: Sequence[Sequence[AnyCase]],
        hire: Callable[[], Worker],
        measure: MeasureSection,
        own: Mapping[Implementation, Worker],
        ready: Sequence[AnyCase],
        imports: Sequence[AnyCase],
    ) -> None:
        self.left, self.hire, self.measure, self.own = deque(parts), hire, measure, own
        self.imports, self.ends = imports, math.inf
        self.in_hand: list[Sequence[AnyCase]] = []
        self.ready: dict[Implementation, deque[AnyCase]] = {key: deque() for key in own}
        self.workers: list[Worker] = []
        self.helping = 0
        self.busy = len(own)  # own workers with something to do
        self.changed = Condition()
        self.interrupted = False
        self.outcome = Outcome()
        self._give(ready)

    def run(self, count: int) -> Outcome:
        """Ctrl-C ends them all at once."""
        self.workers = [self.hire() for _ in range(count)]
        self.helping = count
        with ThreadPoolExecutor(max(1, count + len(self.own))) as pool:
            try:
                helping = [pool.submit(self._help, place) for place in range(count)]
                wait(helping + [pool.submit(self._call_own, *one) for one in self.own.items()])
            except BaseException:
                self._interrupt()
                raise
        for worker in self.workers:
            worker.stop()
        return self.outcome

    @property
    def _over(self) -> bool:
        """Whether nothing is begun any more."""
        return self.interrupted or time.monotonic() >= self.ends

    def _interrupt(self) -> None:
        with self.changed:
            self.interrupted = True
            self.changed.notify_all()
        for worker in (*self.workers, *self.own.values()):
            worker.kill()

    def _help(self, place: int) -> None:
        """A process that failed is replaced: its device may be lost to it."""
        lost = False
        try:
            while part := self._taken():
                called: list[AnyCase] = []
                for case in part:
                    if self._over or (lost and not self._replaced(place)):
                        break
                    lost = self._failed(self._timed(case, self.workers[place].prepare))
                    called.append(case)
                self._done(part, called, by_helper=True)
        finally:
            self._gone(place)

    def _replaced(self, place: int) -> bool:
        with self.changed:
            if not self.interrupted:
                self.workers[place].stop()
                self.workers[place] = self.hire()
            return not self.interrupted

    def _gone(self, place: int) -> None:
        """A helper ends: its context goes while others are still at work."""
        note(f"helper {place} has nothing left to do")
        self.workers[place].kill()
        with self.changed:
            self.helping -= 1
            if not self.helping:  # nobody waits for what nobody takes, or for what it had in hand
                self.left = deque(part for part in self.left if _claimable(part, self.own))
            self.changed.notify_all()

    def _call_own(self, key: Implementation, worker: Worker) -> None:
        for case in self.imports:
            if case.implementation == key and _is_gone(worker.imports(case)):
                self._lose(key, case)
                return
        while part := self._next(key):
            called: list[AnyCase] = []
            for case in part:
                if self._over:
                    break
                called.append(case)
                if self._failed(self._timed(case, worker.rehearse)):
                    self._done(part, called)
                    self._lose(key, case)
                    return
            self._done(part, called)

    def _lose(self, key: Implementation, case: AnyCase) -> None:
        """An own worker is of no further use: nothing more is for it to do."""
        with self.changed:
            self.outcome.lost.append(case)
            self.ready.pop(key)
            self._leave()

    def _timed(self, case: AnyCase, ask: Callable[[AnyCase, MeasureSection], object]) -> object:
        began = time.monotonic()
        answer = ask(case, self.measure)
        with self.changed:
            known = self.outcome.seconds
            known[case.implementation] = known.get(case.implementation, 0.0) + time.monotonic() - began
        return answer

    def _failed(self, answer: object) -> bool:
        """Whether an answer means that the process is of no further use."""
        if not isinstance(answer, Failure):
            return False
        self.outcome.failures.append(answer)
        return not harmless(answer.status, answer.reason)

    def _taken(self, key: Implementation | None = None) -> Sequence[AnyCase]:
        """The next kind in the queue, or the next that an own worker may compile."""
        with self.changed:
            part = next((part for part in self.left if key is None or _claimable(part, (key,))), None)
            if part is None or self._over:
                return ()
            self.left.remove(part)
            self.in_hand.append(part)
            return part

    def _next(self, key: Implementation) -> Sequence[AnyCase]:
        """What an own worker calls next: what is compiled, or a kind that it compiles itself; nothing at the end."""
        with self.changed:
            while not self._over:
                if self.ready[key]:
                    if not (self.left or self.in_hand or self.busy > 1):
                        break  # the only one at work: no sooner than in its turn
                    return (self.ready[key].popleft(),)
                if part := self._taken(key):
                    return part
                if not (self.helping and any(part[0].implementation == key for part in (*self.left, *self.in_hand))):
                    break
                self.busy -= 1
                self.changed.wait()
                self.busy += 1
            note(f"{'/'.join(key)} has nothing left to do, {len(self.ready[key])} cases wait for their turn")
            self._leave()
            return ()

    def _leave(self) -> None:
        with self.changed:
            self.busy -= 1
            self.changed.notify_all()

    def _done(self, part: Sequence[AnyCase], called: Sequence[AnyCase], by_helper: bool = False) -> None:
        """An own worker has checked what it called; what a helper called, it can call now."""
        with self.changed:
            if part in self.in_hand:
                self.in_hand.remove(part)
                self.outcome.compiled += called
            if by_helper:
                self._give(called)
            self.changed.notify_all()

    def _give(self, cases: Sequence[AnyCase]) -> None:
        """Cases that their own workers may call now."""
        for case in by_their_own(cases):
            if case.implementation in self.ready:
                self.ready[case.implementation].append(case)


def _is_gone(answer: Failure | None) -> bool:
    """Whether a worker was ended over what it was asked; an import that merely fails leaves it as it was."""
    return answer is not None and answer.status in ("timeout", "crashed", "oom")


class _Rehearsal:
    """What a worker prepares here: the first call, and nothing kept of it."""

    def __init__(self, case: AnyCase, device: str) -> None:
        self.case, self.device = case, device

    def prepare(self) -> dict[str, Any]:
        import gc

        import torch

        from basedbench.timing.beside import compile_ahead

        compile_ahead(self.case, self.device)
        if not only_compiled(self.case):
            self._call()
        gc.collect()
        if self.device != "cpu":
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
        return {}

    def _call(self) -> None:
        import torch

        from basedbench.timing.subject import subject_of

        subject = subject_of(self.case, self.device)
        with torch.set_grad_enabled(subject.grad), subject.context():
            subject.load()
            subject.start()


def _set_up(device: str, plugins: Sequence[str]) -> Any:
    import torch

    from basedbench.engines.kernel_keys import make_alike
    from basedbench.plugins import load_plugins
    from basedbench.timing.waking import open_device

    torch.set_num_threads(1)
    # What peers would keep of tuning beside other processes is not what is best with the device to themselves.
    os.environ |= {"FLA_CACHE_RESULTS": "0", "TRITON_CACHE_AUTOTUNING": "0"}
    if device != "cpu":
        make_alike()
        open_device(device)
    load_plugins(plugins)
    return lambda case, measure: _Rehearsal(case, device)
