"""Contenders of one problem measured against each other: many short rounds, in a new random order each time.

What drifts (clocks, temperature, neighbours) then falls on all alike, and no one always runs after the same other.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from basedbench.config.throughput import AnyCase, MeasureSection
from basedbench.timing.clock import Clock
from basedbench.timing.failures import NOT_CAPTURED, harmless
from basedbench.timing.samples import Round
from basedbench.timing.stopping import StoppingRule
from basedbench.timing.worker import Failure


class Runner(Protocol):
    """What can prepare a case and sample it: a Worker, or a test's stand-in."""

    def prepare(self, case: AnyCase, measure: MeasureSection) -> dict[str, Any] | Failure:
        """The facts known before the first sample."""

    def round(self, limit_s: float) -> Round | Failure:
        """The samples of one round."""

    def close(self) -> dict[str, Any] | Failure:
        """Free what the case holds; the facts known only now."""


class Runners(Protocol):
    """Where runners come from."""

    def of(self, case: AnyCase) -> Runner:
        """The runner of a case's contender."""

    def spare(self, cases: Sequence[AnyCase]) -> None:
        """Free what the runners of other cases keep."""

    def discard(self, case: AnyCase) -> None:
        """End that runner: the next one is a fresh process."""


@dataclass
class Measurement:
    """All that is known about a case when it is done. `facts` holds `status`, and `reason` if that is not ok."""

    case: AnyCase
    facts: dict[str, Any]
    stop_reason: str | None = None
    rounds: list[Round] = field(default_factory=list)
    spent_s: float = 0.0
    prepare_s: float = 0.0

    @property
    def samples(self) -> list[list[float]]:
        """Milliseconds, round by round."""
        return [one.samples_ms for one in self.rounds]

    @property
    def ok(self) -> bool:
        """Whether it has not failed so far."""
        return bool(self.facts["status"] == "ok")

    @property
    def sampling_s(self) -> float:
        """Of `spent_s`, what were warm-up and samples."""
        return sum(one.seconds for one in self.rounds)

    def fail(self, failure: Failure) -> None:
        """It has no time."""
        self.facts |= {"status": failure.status, "reason": failure.reason}
        self.rounds, self.stop_reason = [], None


class Competition:
    """Times groups of cases that are to be compared with each other."""

    def __init__(self, runners: Runners, measure: MeasureSection, clock: Clock) -> None:
        self.runners, self.measure, self.clock = runners, measure, clock
        self.rule = StoppingRule(measure.precision, measure.min_rounds, measure.max_rounds, measure.seconds)

    def run(self, cases: Sequence[AnyCase]) -> Iterator[Measurement]:
        """Prepare all cases, then sample them in turn; each is yielded as soon as it is done, failed ones included.

        A case that runs out of memory while others hold some is tried again by itself.
        """
        running, again = [], []
        for case in cases:
            answer = self._prepare(case)
            if answer.ok:
                running.append(answer)
            elif answer.facts["status"] == "oom" and running:
                again.append(case)
            else:
                yield answer
        yield from self._sample(running)
        for case in again:
            self.runners.spare([case])
            yield from self.run([case])

    def _prepare(self, case: AnyCase) -> Measurement:
        measurement, start = Measurement(case, {}), self.clock.now()
        answer = self.runners.of(case).prepare(case, self.measure)
        measurement.prepare_s = self.clock.now() - start
        if isinstance(answer, Failure):
            measurement.fail(answer)
        else:
            measurement.facts = answer
        if not measurement.ok:
            self._let_go(measurement)
        return measurement

    def _let_go(self, measurement: Measurement) -> None:
        """A case without a time: its runner goes on if nothing can have spoiled it, for a new one takes seconds."""
        case, facts = measurement.case, measurement.facts
        good = harmless(facts["status"], facts["reason"], facts.get("error"))
        if not good or isinstance(self.runners.of(case).close(), Failure):
            self.runners.discard(case)

    def _sample(self, running: list[Measurement]) -> Iterator[Measurement]:
        shuffle = random.Random(running[0].case.problem_id if running else 0).shuffle
        while running:
            order = list(running)
            shuffle(order)
            for measurement in order:
                self._round(measurement)
                if not measurement.ok or measurement.stop_reason:
                    running.remove(measurement)
                    yield measurement

    def _round(self, measurement: Measurement) -> None:
        runner, start = self.runners.of(measurement.case), self.clock.now()
        answer = runner.round(self.measure.timeout)
        measurement.spent_s += self.clock.now() - start
        if isinstance(answer, Failure):
            self._fail(measurement, answer)
            return
        measurement.rounds.append(answer)
        measurement.stop_reason = self.rule.reason(measurement.samples, measurement.spent_s)
        if measurement.stop_reason:
            self._close(measurement, runner)

    def _close(self, measurement: Measurement, runner: Runner) -> None:
        if NOT_CAPTURED in (measurement.facts.get("reason") or ""):
            self.runners.discard(measurement.case)  # after a capture that failed the allocator frees nothing
            return
        last = runner.close()
        if isinstance(last, Failure):
            self._fail(measurement, last)
        else:
            measurement.facts |= last

    def _fail(self, measurement: Measurement, failure: Failure) -> None:
        measurement.fail(failure)
        self.runners.discard(measurement.case)
