"""Contenders in turn, on a mock clock."""

import itertools
import math
import random

from basedbench.config.throughput import MeasureSection
from basedbench.timing.failures import NOT_CAPTURED
from basedbench.timing.rounds import Competition
from basedbench.timing.samples import Round
from basedbench.timing.worker import Failure
from tests.timing.conftest import FakeWorker, FakeWorkers, MockClock, make_case

MEASURE = MeasureSection(min_rounds=6, max_rounds=30, seconds=10)


def steady(clock: MockClock, milliseconds: float) -> FakeWorker:
    return FakeWorker(clock, lambda: milliseconds)


def run(clock: MockClock, workers: FakeWorkers, measure: MeasureSection = MEASURE) -> dict[str, object]:
    cases = [make_case(name) for name in workers.workers]
    return {one.case.contender: one for one in Competition(workers, measure, clock).run(cases)}  # type: ignore[arg-type]


def test_contenders_alternate_in_changing_orders(clock: MockClock) -> None:
    workers = FakeWorkers(a=steady(clock, 1), b=steady(clock, 2), c=steady(clock, 3))
    done = run(clock, workers)
    asked = workers.asked[3:]  # after the three preparations
    turns = [tuple(asked[i : i + 3]) for i in range(0, len(asked), 3)]
    assert all(sorted(turn) == ["a", "b", "c"] for turn in turns)
    assert len(set(turns)) > 2
    assert all(len(one.rounds) == 6 and one.stop_reason == "converged" for one in done.values())
    assert all(worker.closed == 1 for worker in workers.workers.values())


def test_each_is_done_in_its_own_time(clock: MockClock) -> None:
    noise = random.Random(0)
    workers = FakeWorkers(calm=steady(clock, 1), wild=FakeWorker(clock, lambda: noise.uniform(1, 3)))
    done = run(clock, workers)
    assert done["calm"].stop_reason == "converged"
    assert done["wild"].stop_reason == "30 rounds"


def test_the_time_limit_counts_a_contenders_own_rounds(clock: MockClock) -> None:
    numbers = itertools.count(1000)
    slow = FakeWorker(clock, lambda: 1000.0 * (1 + next(numbers) % 7))  # about 20 s a round
    done = run(clock, FakeWorkers(quick=steady(clock, 1), slow=slow))
    assert done["slow"].stop_reason == "time limit of 10 s"
    assert len(done["slow"].rounds) == 3
    assert len(done["quick"].rounds) == 6


def test_failures_are_measurements_without_times(clock: MockClock) -> None:
    dead = FakeWorker(clock, lambda: 1.0, fails=Failure("crashed", "the worker died"))
    wrong = FakeWorker(clock, lambda: 1.0, facts={"status": "incorrect", "reason": "off by one", "error": 0.5})
    workers = FakeWorkers(dead=dead, wrong=wrong, good=steady(clock, 1))
    done = run(clock, workers)
    assert done["dead"].facts == {"status": "crashed", "reason": "the worker died"}
    assert done["wrong"].facts["error"] == 0.5
    assert done["dead"].rounds == done["wrong"].rounds == []
    assert done["good"].ok
    assert sorted(workers.discarded) == ["dead", "wrong"]


def test_out_of_memory_beside_others_is_tried_again_alone(clock: MockClock) -> None:
    class Greedy(FakeWorker):
        def prepare(self, case, measure):
            alone = others.workers["small"].closed > 0
            return {"status": "ok"} if alone else Failure("oom", "out of memory")

    others = FakeWorkers(small=steady(clock, 1), greedy=Greedy(clock, lambda: 2.0))
    done = run(clock, others)
    assert list(done) == ["small", "greedy"]
    assert done["greedy"].ok
    assert others.discarded == ["greedy"]
    assert others.spared == [["greedy"]]  # the others' models make room, too


def test_a_runner_that_was_only_refused_a_case_goes_on(clock: MockClock) -> None:
    refused = Failure("unsupported", "RuntimeError: No available kernel. Aborting execution.")
    capture = Failure("unsupported", f"NotImplementedError: {NOT_CAPTURED}: it synchronises")
    device = Failure("unsupported", "RuntimeError: CUDA error: operation not supported")
    stubborn = FakeWorker(clock, lambda: 1.0, facts=refused)
    stubborn.close = lambda: Failure("crashed", "it died")  # type: ignore[method-assign]
    answers = {"refused": refused, "capture": capture, "device": device}
    workers = FakeWorkers(**{name: FakeWorker(clock, lambda: 1.0, facts=one) for name, one in answers.items()})
    workers.workers["stubborn"] = stubborn
    done = run(clock, workers)
    assert {one.facts["status"] for one in done.values()} == {"unsupported"}
    assert workers.workers["refused"].closed == 1
    assert workers.discarded == ["capture", "device", "stubborn"]


def test_a_runner_whose_case_was_a_little_inaccurate_goes_on(clock: MockClock) -> None:
    """What wrote elsewhere, or not at all, may have spoilt what is there."""
    errors = {"little": 0.05, "far": 0.5, "nothing": math.nan}
    answers = {name: {"status": "incorrect", "reason": "off", "error": error} for name, error in errors.items()}
    workers = FakeWorkers(**{name: FakeWorker(clock, lambda: 1.0, facts=one) for name, one in answers.items()})
    done = run(clock, workers)
    assert {one.facts["status"] for one in done.values()} == {"incorrect"}
    assert workers.discarded == ["far", "nothing"]
    assert workers.workers["little"].closed == 1


def test_out_of_memory_alone_is_final(clock: MockClock) -> None:
    greedy = FakeWorker(clock, lambda: 1.0, facts=Failure("oom", "out of memory"))
    assert run(clock, FakeWorkers(greedy=greedy))["greedy"].facts["status"] == "oom"


def test_what_is_known_last_joins_the_facts_and_time_is_accounted_for(clock: MockClock) -> None:
    worker = steady(clock, 5)
    worker.last_facts = True
    prepare = worker.prepare
    worker.prepare = lambda *a: (clock.advance(3), prepare(*a))[1]  # type: ignore[method-assign,func-returns-value]
    (one,) = run(clock, FakeWorkers(only=worker)).values()
    assert one.facts["do_bench_ms"] == 2.0
    assert one.prepare_s == 3
    assert abs(one.spent_s - 6 * 5 * 5e-3) < 1e-9
    one.rounds = [Round([1.0], [], seconds=0.25), Round([1.0], [], seconds=0.5)]
    assert one.sampling_s == 0.75  # without what it takes to ask for them


def test_a_runner_whose_capture_failed_ends_with_its_case(clock: MockClock) -> None:
    workers = FakeWorkers(launched=steady(clock, 5), replayed=steady(clock, 5))
    workers.workers["launched"].facts = {"status": "ok", "reason": f"launched by the host, {NOT_CAPTURED}: it waits"}
    done = run(clock, workers)
    assert all(one.ok and one.rounds for one in done.values())
    assert workers.discarded == ["launched"]
    assert [worker.closed for worker in workers.workers.values()] == [0, 1]
