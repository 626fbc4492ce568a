"""How problems are shared out, with workers that need no process."""

import signal
from collections.abc import Callable, Sequence
from dataclasses import replace
from threading import Event, main_thread
from typing import Any

import pytest

from basedbench.checking import run
from basedbench.checking.problems import Problem, problems
from basedbench.checking.run import kin, run_checks
from basedbench.timing.worker import Failure


class FakeWorker:
    """Finds everything in order but what it is told to fail on; notes what it was asked."""

    asked: list[list[Problem]] = []
    answers: dict[str, Any] = {}

    def __init__(self, device: str, plugins: Sequence[str], set_up: Callable[..., Any]) -> None:
        self.mine: list[Problem] = []
        self.asked.append(self.mine)

    def prepare(self, problem: Problem, measure: Any) -> Any:
        self.mine.append(problem)
        return self.answers.get(problem.label, {"verdict": "ok", "lost": False})

    def stop(self) -> None:
        pass


@pytest.fixture
def workers(monkeypatch: pytest.MonkeyPatch) -> type[FakeWorker]:
    monkeypatch.setattr(run, "Worker", FakeWorker)
    monkeypatch.setattr(FakeWorker, "asked", [])
    monkeypatch.setattr(FakeWorker, "answers", {})
    return FakeWorker


def made(*lengths: int, dtype: str = "fp32") -> list[Problem]:
    return [Problem("short_conv", "fwd", dtype, length, (("D", 64), ("W", 4))) for length in lengths]  # type: ignore[arg-type]


def test_problems_that_share_kernels_go_together() -> None:
    everything = problems("cuda")
    together = kin(everything)
    assert sorted(index for some in together for index, _ in some) == list(range(len(everything)))
    assert all(everything[index] is one for some in together for index, one in some)
    for some in together:
        assert len({(one.operator, one.dtype, one.shape) for _, one in some}) == 1
    assert len(together) == len({(one.operator, one.dtype, one.shape) for one in everything})
    assert len(together[0]) == max(map(len, together))


def test_rows_come_in_the_order_of_the_problems_whoever_took_them(workers: type[FakeWorker]) -> None:
    given = [*made(1), *made(1, 17, dtype="bf16"), *made(17)]
    rows = run_checks(given, "cpu", [], 2, lambda row: None)
    assert [row["label"] for row in rows] == [one.label for one in given]
    assert {row["verdict"] for row in rows} == {"ok"}
    assert len(workers.asked) == 2


def test_a_contender_that_never_answers_is_waited_for_once(workers: type[FakeWorker]) -> None:
    given = [replace(one, contender=name) for name in ("hangs", "works") for one in made(1, 17, 1000)]
    workers.answers[given[0].label] = Failure("timeout", "no answer")
    rows = run_checks(given, "cpu", [], 1, lambda row: None)
    assert [row["verdict"] for row in rows] == ["failed", "skipped", "skipped", "ok", "ok", "ok"]
    assert "hangs gave no answer to another problem within 300 s" in rows[1]["reason"]


@pytest.mark.parametrize(
    "answer", [Failure("crashed", "signal 11"), {"verdict": "failed", "reason": "illegal", "lost": True}]
)
def test_a_lost_worker_costs_its_problem_alone(workers: type[FakeWorker], answer: Any) -> None:
    given = made(1, 17, 1000, 2048)
    workers.answers[given[1].label] = answer
    seen: list[str] = []
    rows = run_checks(given, "cpu", [], 1, lambda row: seen.append(row["verdict"]))
    assert [row["verdict"] for row in rows] == seen == ["ok", "failed", "ok", "ok"]
    assert workers.asked == [given[:2], given[2:]]


def test_the_last_problem_may_be_the_one_that_is_lost(workers: type[FakeWorker]) -> None:
    given = made(1, 17)
    workers.answers[given[1].label] = Failure("timeout", "no answer within 300 s")
    rows = run_checks(given, "cpu", [], 3, lambda row: None)
    assert rows[1]["reason"] == "timeout: no answer within 300 s"
    assert len(workers.asked) == 1


def test_stopped_it_tells_nobody_of_what_was_under_way(
    workers: type[FakeWorker], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that is ended answers that it died: that is no verdict on its problem."""
    ended = Event()

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    def prepare(self: FakeWorker, problem: Problem, measure: Any) -> Any:
        if problem.length == 1:
            return {"verdict": "ok", "lost": False}
        signal.pthread_kill(main_thread().ident or 0, signal.SIGUSR1)
        assert ended.wait(10)
        return Failure("crashed", "signal 9")

    monkeypatch.setattr(FakeWorker, "prepare", prepare)
    monkeypatch.setattr(FakeWorker, "stop", lambda self: ended.set())
    seen: list[tuple[str, str]] = []
    before = signal.signal(signal.SIGUSR1, interrupted)
    try:
        with pytest.raises(KeyboardInterrupt):
            run_checks(made(1, 17, 1000), "cpu", [], 1, lambda row: seen.append((row["label"], row["verdict"])))
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert seen == [(made(1)[0].label, "ok")]
