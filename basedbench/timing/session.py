"""A case inside its worker process: prepared once (built, checked, compiled, weighed), then sampled round by round."""

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import torch

from basedbench.config.throughput import AnyCase, Case, MeasureSection
from basedbench.contenders import get_contender
from basedbench.timing.beside import compile_ahead
from basedbench.timing.clock import Clock
from basedbench.timing.cross_check import cross_check
from basedbench.timing.failures import NOT_CAPTURED, shorten
from basedbench.timing.kept import Ahead, Kept
from basedbench.timing.kinds import only_compiled
from basedbench.timing.mappings import renew_mappings
from basedbench.timing.memory import peak_memory
from basedbench.timing.samplers import ColdSampler, CpuSampler, GraphSampler, Sampler, captured, wall_ms
from basedbench.timing.samples import Round
from basedbench.timing.subject import refused, subject_of, unsupported
from basedbench.timing.telemetry import Telemetry

Thunk = Callable[[], object]
# Modes that run in a CUDA graph on a GPU: whole models, and steps of one token for each sequence.
IN_GRAPHS = ("decode", "generation", "prefill")
COMPILER = "torch._dynamo"
MOST_SAMPLES_A_ROUND = 50
FEWEST_WALL_CALLS, MOST_WALL_CALLS = 5, 50
LONG_MS = 200.0  # a call this long is called no more often than need be before it is sampled
ESTIMATES, LONGEST_ESTIMATE_S = 3, 0.3
# A round begins with calls that are no samples, for a while: another process had the device before, so its clocks,
# caches and address translations are not what this one left. Unless one call takes long: then its beginning hardly
# counts.
WARM_UP_CALLS, WARM_UP_MS, LONGEST_WARM_UP_MS = 3, 2.0, 20.0


class Session:
    """One case being timed on one device."""

    def __init__(
        self, case: AnyCase, measure: MeasureSection, device: str, clock: Clock, kept: Kept | None = None
    ) -> None:
        self.case, self.measure, self.device, self.clock = case, measure, device, clock
        self.kept = kept or Kept(device)
        self.subject = subject_of(case, device, self.kept)
        self.telemetry = Telemetry(device)
        self.sampler: Sampler | None = None
        self.calls: list[Thunk] = []
        self.sample_ms = 0.0

    def prepare(self) -> dict[str, Any]:
        """Everything before the first sample. Returns the columns known by then; `status` says whether to go on."""
        if reason := unsupported(self.case):
            return refused(self.case, reason)
        threads = self.case.threads or self.kept.threads
        if self.case.device == "cpu":
            torch.set_num_threads(threads)
        with torch.set_grad_enabled(self.subject.grad):
            first_s = self._chosen_from() + self._started()
            ahead = self.kept.ahead.get(self.case.id)
            verdict = ahead.verdict if ahead else self.subject.check()
            first_s = max(first_s, ahead.first_s if ahead else 0.0)
            facts = self.subject.facts() | {
                "threads": threads if self.case.device == "cpu" else None,
                "error": verdict.error,
                "error_bound": verdict.bound,
                "checked_against": verdict.truth,
            }
            other = self._other_threads(threads)
            if reason := verdict.reason or other:
                return facts | {"status": "incorrect", "reason": reason}
            self._release_memory()
            with self.subject.context():
                if other := self._other_threads(threads):
                    return facts | {"status": "incorrect", "reason": other}
                return facts | {"status": "ok"} | self._measure_up(first_s)

    def _other_threads(self, due: int) -> str | None:
        """Whether its calls change how many threads there are: with others than its peers' it is no match for them."""
        found = torch.get_num_threads()
        if self.case.device != "cpu" or found == due:
            return None
        torch.set_num_threads(due)
        return f"it sets the number of threads to {found}, where the case has {due}"

    def imports(self) -> dict[str, Any]:
        """What the case's first call imports, and its measuring; on the device nothing happens."""
        if isinstance(self.case, Case):
            get_contender(self.case.contender).imports(self.case)
        if self.case.mode in IN_GRAPHS:
            import_module(COMPILER)
        gc.freeze()
        return {}

    def rehearse(self) -> dict[str, Any]:
        """Call and check the case, in company: nothing is timed, and `prepare` need not check what is right.

        Where others leave too little memory, it is checked when they are gone.
        """
        if unsupported(self.case):
            return {}
        started = self.clock.now()
        with torch.set_grad_enabled(self.subject.grad):
            compile_ahead(self.case, self.device)
            compiling_s = self.clock.now() - started
            first_s = compiling_s + self._started()
            verdict = self.subject.check()
        if verdict.reason is None and verdict.in_full:
            self.kept.ahead[self.case.id] = Ahead(verdict, first_s)
        del self.subject
        self._release_memory()
        gc.freeze()  # what a first call has imported, too, is never looked at again
        return {}

    def round(self) -> Round:
        """One short round: warm-up calls, then samples for about `round_ms`."""
        assert self.sampler is not None  # prepared
        with self._quiet(), self._running():
            before = self.telemetry.read()
            start = self.clock.now()
            self._warm_up(self.sampler)
            exposed = self.sampler.exposed
            samples = self.sampler.sample(self._samples_a_round())
            seconds = self.clock.now() - start
        return Round(samples, [before, self.telemetry.read()], self.sampler.exposed - exposed, seconds)

    def close(self) -> dict[str, float]:
        """Free the device's memory for the next case. Returns what is measured last."""
        found = self._cross_checked()
        self.sampler, self.calls = None, []
        del self.subject
        self._release_memory()
        return found

    def forget(self) -> None:
        """Let go of what the next case would find, too: another worker needs the memory."""
        self.kept.forget()
        self._release_memory()

    def _cross_checked(self) -> dict[str, float]:
        """As other tools would time it, if that was asked for; states that steps rewrite are no matter here."""
        if not (self.measure.cross_check and isinstance(self.sampler, ColdSampler)):
            return {}
        with self._running():
            return cross_check(self.calls)

    def _chosen_from(self) -> float:
        """Compile all that a peer will choose from, where no helper did: it would one after the other. In seconds."""
        started = self.clock.now()
        if only_compiled(self.case):
            compile_ahead(self.case, self.device)
        return self.clock.now() - started

    def _started(self) -> float:
        """The first call; once more without what earlier cases left if memory runs out beside that."""
        found_some = not self.kept.empty
        try:
            with self.subject.context():
                return self._first_call()
        except torch.OutOfMemoryError:
            if not found_some:
                raise
        self.subject = subject_of(self.case, self.device, self.kept)  # that of before holds some of the memory
        self.forget()
        with self.subject.context():
            return self._first_call()

    def _first_call(self) -> float:
        """Load, build and run once; returns the seconds of the last two."""
        self.subject.load()
        self._synchronize()
        started = self.clock.now()
        self.subject.start()
        self._synchronize()
        return self.clock.now() - started

    def _measure_up(self, first_s: float) -> dict[str, Any]:
        """Estimate, weigh, and make the sampler."""
        self.calls = self.subject.calls()
        (estimate_ms, enqueue_ms), memory = self._weighed()
        wall = self._wall_ms(estimate_ms)
        replayed, launched = self._replayed()
        self.calls = replayed or self.calls
        self.sampler = self._make_sampler(self.calls, estimate_ms, _enqueue_ms(replayed, self.clock, enqueue_ms))
        if self.case.mode in IN_GRAPHS and self.case.device == "cuda":
            renew_mappings(self.device)  # where memory is too short for that, the state is what a sweep's turns make it
        self.sample_ms = self.sampler.sample(2)[-1] if estimate_ms < LONG_MS else estimate_ms
        gc.collect()
        gc.freeze()  # what is there by now is not looked at again
        return {
            "compile_s": max(0.0, first_s - estimate_ms / 1e3),
            "peak_memory_bytes": memory,
            "graph": bool(replayed) or isinstance(self.sampler, GraphSampler),
            "wall_ms": wall,
            "reason": launched,
        } | self.subject.capacity(memory)

    def _weighed(self) -> tuple[tuple[float, float], int]:
        """The estimates, and the peak memory of a call: of the same calls, unless a profiler has to look on."""
        if self.case.device == "cpu":
            return self._estimate(self.calls), peak_memory(self.calls[0], self.device)
        found: list[tuple[float, float]] = []
        memory = peak_memory(lambda: found.append(self._estimate(self.calls)), self.device)
        return found[0], memory

    def _estimate(self, calls: Sequence[Thunk]) -> tuple[float, float]:
        """(time of one call, time until it is enqueued), host clock, the least of a few, in milliseconds."""
        begin = self.clock.now()
        whole: list[float] = []
        enqueued: list[float] = []
        while len(whole) < ESTIMATES and self.clock.now() - begin < LONGEST_ESTIMATE_S:
            start = self.clock.now()
            calls[len(whole) % len(calls)]()
            enqueued.append((self.clock.now() - start) * 1e3)
            self._synchronize()
            whole.append((self.clock.now() - start) * 1e3)
        return min(whole), min(enqueued)

    def _wall_ms(self, estimate_ms: float) -> float | None:
        """Of what runs in a graph on a GPU, without one: over fewer calls if they are long, long ones as estimated."""
        if self.case.mode not in IN_GRAPHS or self.case.device != "cuda":
            return None
        if estimate_ms >= LONG_MS:
            return estimate_ms
        import_module(COMPILER)  # from here on operators are shielded from it, as where users call them
        count = int(LONG_MS / max(estimate_ms, 1e-6))
        return wall_ms(self.calls, self.clock, max(FEWEST_WALL_CALLS, min(MOST_WALL_CALLS, count)))

    def _replayed(self) -> tuple[list[Thunk], str | None]:
        """The calls as replays of a graph, if they are to be; otherwise none, and why if a capture failed."""
        if self.case.device == "cpu" or self.case.cache != "cold":
            return [], None
        try:
            return self.subject.replayed(captured), None
        except RuntimeError as error:
            return [], shorten(f"launched by the host, {NOT_CAPTURED}: {error}")

    def _make_sampler(self, calls: list[Any], estimate_ms: float, enqueue_ms: float) -> Sampler:
        if self.case.device == "cpu":
            return CpuSampler(calls, self.clock, estimate_ms)
        if self.case.cache == "cold":
            return ColdSampler(calls, self.device, enqueue_ms)
        try:
            return GraphSampler(calls)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise NotImplementedError(f"{NOT_CAPTURED}: {error}") from error

    def _warm_up(self, sampler: Sampler) -> None:
        start = self.clock.now()
        while self.sample_ms <= LONGEST_WARM_UP_MS:
            sampler.sample(WARM_UP_CALLS)
            if (self.clock.now() - start) * 1e3 >= WARM_UP_MS:
                return

    def _samples_a_round(self) -> int:
        return max(1, int(min(MOST_SAMPLES_A_ROUND, self.measure.round_ms / max(self.sample_ms, 1e-6))))

    @contextmanager
    def _running(self) -> Iterator[None]:
        """The settings under which it runs."""
        with torch.set_grad_enabled(self.subject.grad), self.subject.context():
            yield

    @contextmanager
    def _quiet(self) -> Iterator[None]:
        """No garbage collection while samples are taken."""
        gc.disable()
        try:
            yield
        finally:
            gc.enable()

    def _synchronize(self) -> None:
        if self.case.device == "cuda":
            torch.cuda.synchronize()

    def _release_memory(self) -> None:
        gc.collect()
        if self.case.device == "cuda":
            torch.cuda.empty_cache()


def _enqueue_ms(replays: Sequence[Thunk], clock: Clock, launched_ms: float) -> float:
    """Until a call is enqueued: a replay's, whose first also brings the graph onto the device, or as launched."""
    if not replays:
        return launched_ms
    start = clock.now()
    replays[0]()
    return (clock.now() - start) * 1e3
