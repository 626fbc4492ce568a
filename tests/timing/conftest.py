"""A clock that only moves when told, cases that need no device, tiny models, and stand-ins for workers."""

from collections.abc import Callable
from typing import Any

import pytest

from basedbench.config.models import ModelCase
from basedbench.config.throughput import Case, MeasureSection
from basedbench.contenders import Contender, get_contender
from basedbench.timing.samples import Round
from basedbench.timing.worker import Failure


class MockClock:
    """Seconds that pass when `advance` is called."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def now(self) -> float:
        return self.seconds

    def advance(self, seconds: float) -> None:
        self.seconds += seconds


@pytest.fixture
def clock() -> MockClock:
    return MockClock()


def make_case(contender: str = "ours", **changes: Any) -> Case:
    """A small Taylor attention."""
    shape = {"operator": "taylor_attention", "length": 24, "heads": 2, "key_dim": 4, "value_dim": 6, "batch": 2}
    return Case.model_validate({**shape, "contender": contender, "baseline": "reference", **changes})


TINY = {"d_model": 32, "heads": 2, "mlp_inner": 32, "vocab_size": 64, "window": 16, "feature_dim": 4, "d_state": 4}
TINY_LAYERS = {
    "based": ["conv", "linear", "window"],
    "attention": ["attention", "attention"],
    "mamba": ["mamba", "mamba"],
    "mamba2": ["mamba2", "mamba2"],
}


def make_model_case(family: str = "based", **changes: Any) -> ModelCase:
    """A model of two or three narrow layers; attention by PyTorch."""
    overrides = TINY | {"layers": TINY_LAYERS[family]} | ({"ssm_head_dim": 8} if family == "mamba2" else {})
    case = {"model": f"{family}-360m", "mode": "generation", "batch": 3, "length": 300, "overrides": overrides}
    contender = "sdpa-math" if family == "attention" else "ours"
    return ModelCase.model_validate({**case, "contender": contender, "baseline": "attention-360m/sdpa-math", **changes})


class Altered(Contender):
    """The reference, with what a test does to its result."""

    name = "altered"

    def __init__(self, alter: Callable[..., Any]) -> None:
        self.alter = alter

    def build(self, case: Case) -> Any:
        call = get_contender("reference").build(case)
        return lambda tensors: self.alter(call(tensors), tensors)


class FakeWorker:
    """Answers as told: `facts` to prepare, then a sample of `times()` milliseconds a round, which takes as long."""

    def __init__(self, clock: MockClock, times: Callable[[], float], facts: Any = None, fails: Failure | None = None):
        self.clock, self.times, self.fails = clock, times, fails
        self.facts = {"status": "ok"} if facts is None else facts
        self.closed = 0
        self.last_facts = False

    def prepare(self, case: Case, measure: MeasureSection) -> Any:
        return self.facts

    def round(self, limit_s: float) -> Round | Failure:
        if self.fails:
            return self.fails
        samples = [self.times() for _ in range(5)]
        self.clock.advance(sum(samples) / 1e3)
        return Round(samples, [])

    def close(self) -> dict[str, Any] | Failure:
        self.closed += 1
        return {"do_bench_ms": 2.0} if self.last_facts else {}


class FakeWorkers:
    """Fake workers by contender; the order in which they were asked for, and who was discarded."""

    def __init__(self, **workers: FakeWorker) -> None:
        self.workers = workers
        self.asked: list[str] = []
        self.discarded: list[str] = []
        self.spared: list[list[str]] = []

    def of(self, case: Case) -> FakeWorker:
        self.asked.append(case.contender)
        return self.workers[case.contender]

    def spare(self, cases: list[Case]) -> None:
        self.spared.append([case.contender for case in cases])

    def discard(self, case: Case) -> None:
        self.discarded.append(case.contender)
