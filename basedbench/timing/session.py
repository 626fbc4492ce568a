"""A case inside its worker process: prepared once (built, checked, compiled, weighed), then sampled round by round."""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from basedbench.config.throughput import Case, MeasureSection
from basedbench.contenders import Call, get_contender
from basedbench.contenders.costs import bytes_of, flops_of
from basedbench.timing.clock import Clock
from basedbench.timing.correctness import check
from basedbench.timing.cross_check import cross_check
from basedbench.timing.memory import peak_memory
from basedbench.timing.program import Program, inputs, program
from basedbench.timing.samplers import ColdSampler, CpuSampler, GraphSampler, Sampler, wall_ms
from basedbench.timing.samples import Round
from basedbench.timing.telemetry import Telemetry

# Inputs are rotated through so many sets, fewer where they would take up more memory than this.
INPUT_SETS = 3
INPUT_BYTES = {"cpu": 2**29, "cuda": 2**34}
MOST_SAMPLES_A_ROUND = 50
WALL_CALLS = 50
ESTIMATES, LONGEST_ESTIMATE_S = 3, 0.3
# A round begins with calls that are no samples, for a while: another process had the device before, so its clocks,
# caches and address translations are not what this one left. Unless one call takes long: then its beginning hardly
# counts.
WARM_UP_CALLS, WARM_UP_MS, LONGEST_WARM_UP_MS = 3, 2.0, 20.0


class Session:
    """One case being timed on one device."""

    def __init__(self, case: Case, measure: MeasureSection, device: str, clock: Clock) -> None:
        self.case, self.measure, self.device, self.clock = case, measure, device, clock
        self.contender = get_contender(case.contender)
        self.telemetry = Telemetry(device)
        self.sampler: Sampler | None = None
        self.calls: list[Callable[[], object]] = []
        self.sample_ms = 0.0

    def prepare(self) -> dict[str, Any]:
        """Everything before the first sample. Returns the columns known by then; `status` says whether to go on."""
        if self.case.threads:
            torch.set_num_threads(self.case.threads)
        with torch.set_grad_enabled(self.case.mode == "fwd_bwd"):
            with self.contender.context(self.case):
                call, first, first_s = self._first_call()
            verdict = check(self.case, self.contender, call, self.device)
            facts = self._facts(first) | {
                "error": verdict.error,
                "error_bound": verdict.bound,
                "checked_against": verdict.truth,
            }
            if verdict.reason:
                return facts | {"status": "incorrect", "reason": verdict.reason}
            self._release_memory()
            with self.contender.context(self.case):
                return facts | {"status": "ok"} | self._measure_up(call, first, first_s)

    def round(self) -> Round:
        """One short round: warm-up calls, then samples for about `round_ms`."""
        assert self.sampler is not None  # prepared
        with self._quiet(), torch.set_grad_enabled(self.case.mode == "fwd_bwd"), self.contender.context(self.case):
            before = self.telemetry.read()
            self._warm_up(self.sampler)
            exposed = self.sampler.exposed
            samples = self.sampler.sample(self._samples_a_round())
        return Round(samples, [before, self.telemetry.read()], self.sampler.exposed - exposed)

    def close(self) -> dict[str, float]:
        """Free the device's memory for the next case. Returns what is measured last."""
        found = self._cross_checked()
        self.sampler, self.calls = None, []
        self._release_memory()
        return found

    def _cross_checked(self) -> dict[str, float]:
        """As other tools would time it, if that was asked for; states that steps rewrite are no matter here."""
        if not (self.measure.cross_check and isinstance(self.sampler, ColdSampler)):
            return {}
        with torch.set_grad_enabled(self.case.mode == "fwd_bwd"), self.contender.context(self.case):
            return cross_check(self.calls)

    def _first_call(self) -> tuple[Call, Program, float]:
        tensors = inputs(self.case, 0, self.device)
        started = self.clock.now()
        call = self.contender.build(self.case)
        first = program(self.case, call, self.contender.layout(self.case, tensors), self.device)
        first.run()
        self._synchronize()
        return call, first, self.clock.now() - started

    def _measure_up(self, call: Call, first: Program, first_s: float) -> dict[str, Any]:
        """Estimate, weigh, and make the sampler."""
        sets = max(1, min(INPUT_SETS, INPUT_BYTES[self.case.device] // first.input_bytes))
        programs = [first, *(self._program(call, index) for index in range(1, sets))]
        estimate_ms, enqueue_ms = self._estimate(programs)
        memory = peak_memory(first.timed, self.device)
        calls = [one.timed for one in programs]
        self.calls = calls
        self.sampler = self._make_sampler(calls, estimate_ms, enqueue_ms)
        self.sample_ms = self.sampler.sample(2)[-1]
        gc.collect()
        gc.freeze()  # what is there by now is not looked at again
        on_gpu_step = self.case.mode == "decode" and self.case.device == "cuda"
        return {
            "compile_s": max(0.0, first_s - estimate_ms / 1e3),
            "peak_memory_bytes": memory,
            "graph": isinstance(self.sampler, GraphSampler),
            "wall_ms": wall_ms(calls, self.clock, WALL_CALLS) if on_gpu_step else None,
        }

    def _program(self, call: Call, index: int) -> Program:
        tensors = self.contender.layout(self.case, inputs(self.case, index, self.device))
        return program(self.case, call, tensors, self.device)

    def _estimate(self, programs: list[Program]) -> tuple[float, float]:
        """(time of one call, time until it is enqueued), host clock, the least of a few, in milliseconds."""
        begin = self.clock.now()
        whole: list[float] = []
        enqueued: list[float] = []
        while len(whole) < ESTIMATES and self.clock.now() - begin < LONGEST_ESTIMATE_S:
            start = self.clock.now()
            programs[len(whole) % len(programs)].run()
            enqueued.append((self.clock.now() - start) * 1e3)
            self._synchronize()
            whole.append((self.clock.now() - start) * 1e3)
        return min(whole), min(enqueued)

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
            raise NotImplementedError(f"cannot be captured in a CUDA graph: {error}") from error

    def _warm_up(self, sampler: Sampler) -> None:
        start = self.clock.now()
        while self.sample_ms <= LONGEST_WARM_UP_MS:
            sampler.sample(WARM_UP_CALLS)
            if (self.clock.now() - start) * 1e3 >= WARM_UP_MS:
                return

    def _samples_a_round(self) -> int:
        return max(1, min(MOST_SAMPLES_A_ROUND, int(self.measure.round_ms / max(self.sample_ms, 1e-6))))

    def _facts(self, first: Program) -> dict[str, Any]:
        case = self.case
        return {
            "bytes": bytes_of(case),
            "flops": flops_of(case),
            "state_bytes": first.state_bytes // case.batch if case.mode == "decode" else None,
            "contender_version": self.contender.version,
            "threads": torch.get_num_threads() if case.device == "cpu" else None,
        }

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
