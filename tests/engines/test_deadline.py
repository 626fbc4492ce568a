"""Sweeps under a time limit, on a clock that only moves when told."""

import math
import signal
import threading
import time
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from basedbench.config import load_suite
from basedbench.engines import LocalEngine, Place
from basedbench.engines.deadline import Deadline, Pace, TimeUp, seconds_of, unlimited
from basedbench.engines.paces import PREPARE_S, fewer_at_once, pace_of_cases, pace_of_runs
from basedbench.errors import UserError
from basedbench.store import load
from basedbench.training.cases import RecallCase, recall_cases
from basedbench.training.cost import estimate
from tests.engines.conftest import Memory
from tests.timing.conftest import MockClock, make_case
from tests.timing.test_sweep import MEASURE
from tests.training.conftest import tiny_suite


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("540", 540), ("90s", 90), ("9m", 540), ("1h30m", 5400), ("2h", 7200), ("1h0m5s", 3605), (" 1h 30m ", 5400)],
)
def test_times_as_people_write_them(text: str, seconds: float) -> None:
    assert seconds_of(text, "--time-limit") == seconds


@pytest.mark.parametrize("text", ["", "0", "-5", "9x", "m", "1.5h", "30m1h", "nan", "9 minutes", "0h0m"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"--timeout .*540, 90s, 9m, 1h30m"):
        seconds_of(text, "--timeout")


Thing = tuple[str, str, float]  # family, model, guess


def make_pace() -> Pace[Thing]:
    return Pace(lambda thing: thing[2], lambda thing: (thing[:2], thing[0]))


def test_what_is_most_like_it_tells_how_long_something_takes() -> None:
    pace = make_pace()
    narrow, wide, other, foreign = ("a", "narrow", 2.0), ("a", "wide", 10.0), ("b", "narrow", 3.0), ("c", "?", 5.0)
    assert pace.seconds(narrow) == 2  # a guess
    pace.learn(narrow, 6.0)
    assert pace.seconds(narrow) == 6
    assert pace.seconds(wide) == 30  # the same family, by the guesses' ratio
    assert pace.seconds(foreign) == 15  # guesses have been three times too low
    pace.learn(other, 3.0)
    pace.learn(other, 3.0)
    assert pace.seconds(wide) == 30
    assert pace.seconds(foreign) == 5  # the median of ratios 3, 1, 1
    pace.learn(narrow, 3.0)
    assert pace.seconds(narrow) == 3  # the first had more to do
    pace.learn(narrow, 5.0)
    assert pace.seconds(narrow) == 5  # the longest
    assert pace.seconds(wide) == 25  # the median of 3, 1.5 and 2.5


def test_what_would_end_too_late_is_passed_over(clock: MockClock) -> None:
    clock.advance(7)
    deadline = Deadline(100, 7.0, make_pace(), clock.now)
    long, middle, short = ("a", "1", 90.0), ("b", "2", 50.0), ("c", "3", 10.0)
    clock.advance(20)  # 80 s are left
    assert deadline.left_s == 80
    assert deadline.in_time(middle, short, short, short)
    assert not deadline.in_time(middle, short, short, short, short)
    queue = deque([long, middle, short])
    assert deadline.take(queue) == middle
    clock.advance(69)
    assert deadline.take(queue) == short
    assert deadline.take(queue) is None
    assert list(queue) == [long]
    assert deadline.ahead_s([long, middle, short]) == 150
    assert deadline.ahead_s([long, middle, short], at_once=2) == 90


def test_without_a_limit_everything_is_in_time() -> None:
    deadline = unlimited()
    assert deadline.left_s == math.inf
    assert deadline.take(queue := [1, 2]) == 1
    assert queue == [2]
    with deadline.kept():
        assert signal.getitimer(signal.ITIMER_REAL)[0] == 0


def test_the_block_ends_when_the_time_is_up() -> None:
    before = signal.getsignal(signal.SIGALRM)
    with pytest.raises(TimeUp), Deadline(0.05, time.monotonic(), make_pace()).kept():
        threading.Event().wait(60)
    with Deadline(60, time.monotonic(), make_pace()).kept():
        pass
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0
    assert signal.getsignal(signal.SIGALRM) is before


def test_runs_are_guessed_as_the_dry_run_does_and_learnt_from_rows() -> None:
    models = [{"mixer": name, "grid": {"d_model": [16, 32]}} for name in ("based", "attention")]
    cases = recall_cases(tiny_suite(models, learning_rates=[0.01, 0.02]))
    beside = pace_of_runs([Place("cuda:0", slots=4)], cases, len(cases), [])
    assert beside.seconds(cases[0]) == pytest.approx(4 * estimate(cases[0], "cuda:0").seconds)
    row = {"status": "ok", "case_id": cases[0].case_id, "train_s": 8.0}
    rows = [row, row | {"case_id": "of another recipe", "train_s": 1e6}, row | {"status": "oom", "train_s": 1e6}]
    pace = pace_of_runs([Place("cuda:0", slots=4)], cases, len(cases), rows)
    assert pace.seconds(cases[1]) == pytest.approx(32)  # the same model at another learning rate
    ratio = estimate(cases[2], "cuda:0").seconds / estimate(cases[0], "cuda:0").seconds
    assert pace.seconds(cases[2]) == pytest.approx(32 * ratio)
    two = [Place(f"cuda:{index}", slots=4) for index in range(2)]
    last = pace_of_runs(two, cases, 3, rows)
    assert last.seconds(cases[1]) == pytest.approx(16)  # of the three that are left two share a device


def test_under_a_limit_no_more_run_at_once_than_end_in_half_of_it() -> None:
    by_seconds = sorted(recall_cases(load_suite("figure2")), key=lambda case: estimate(case, "cuda:0").seconds)
    cases = [by_seconds[0], by_seconds[-1]]
    short, long = (estimate(case, "cuda:0").seconds for case in cases)
    assert long > 7 * short
    places = [Place("cuda:0", slots=8, threads=3), Place("cuda:1", slots=3)]

    def slots(limit_s: float) -> list[int]:
        return [place.slots for place in fewer_at_once(places, cases, limit_s)]

    assert fewer_at_once(places, cases, math.inf) == places
    assert slots(16.1 * long) == [8, 3]
    assert slots(15.9 * long) == [4, 3]
    assert slots(4.1 * long) == [2, 1]
    assert slots(2.1 * long) == [1, 1]
    assert slots(13.9 * short) == [4, 3]  # the long one would not end anyway
    assert slots(0.1 * short) == [8, 3]  # nor any: nothing begins
    assert fewer_at_once(places, cases, 5 * long)[0] == Place("cuda:0", slots=2, threads=3)


def test_cases_are_alike_until_some_are_known() -> None:
    cases = [make_case(name, mode=mode) for name in ("ours", "reference") for mode in ("fwd", "fwd_bwd")]
    row = {"status": "ok", "case_id": cases[0].id, "prepare_s": 5.0, "sampling_s": 1.0}
    assert pace_of_cases(MEASURE, cases, []).seconds(cases[0]) == PREPARE_S + 0.004
    pace = pace_of_cases(MEASURE, cases, [row, row | {"case_id": cases[3].id, "sampling_s": None}])
    assert [pace.seconds(case) for case in cases] == pytest.approx([6, 6, 6, 6])


MODELS = [{"mixer": name, "grid": {"d_model": 16}} for name in ("based", "attention", "sliding_window")]


class Timed(Memory):
    """Runs take as long as told, by a clock that moves when one is done."""

    def __init__(self, clock: MockClock, seconds: dict[str, float]) -> None:
        super().__init__()
        self.clock, self.seconds = clock, seconds

    def epoch(self, case: RecallCase, epoch: int, accuracy: float) -> None:
        super().epoch(case, epoch, accuracy)
        if epoch == case.train.epochs:
            self.clock.advance(self.seconds[case.mixer])


def swept(root: Path, clock: MockClock, limit: float, guesses: dict[str, float], **takes: float) -> LocalEngine:
    cases = recall_cases(tiny_suite(MODELS, learning_rates=[0.01, 0.02]))
    pace: Pace[RecallCase] = Pace(lambda case: guesses[case.mixer], lambda case: (case.mixer, case.mixer))
    engine = LocalEngine(
        [Place("cpu", slots=1)],
        str(root),
        Timed(clock, guesses | takes),
        deadline=Deadline(limit, 0.0, pace, clock.now),
    )
    engine.run(cases)
    return engine


def test_a_sweep_begins_only_what_ends_in_time(tmp_path: Path, clock: MockClock) -> None:
    guesses = {"based": 30.0, "attention": 200.0, "sliding_window": 10.0}
    engine = swept(tmp_path, clock, 100, guesses)
    assert engine.listener.began == ["based", "based", "sliding_window", "sliding_window"]  # type: ignore[attr-defined]
    assert [case.mixer for case in engine.left] == ["attention", "attention"]
    assert engine.under_way == []
    assert sorted(load(tmp_path, "recall")["mixer"]) == ["based", "based", "sliding_window", "sliding_window"]


def test_guesses_are_corrected_by_what_was_measured(tmp_path: Path, clock: MockClock) -> None:
    guesses = {"based": 30.0, "attention": 20.0, "sliding_window": 10.0}
    engine = swept(tmp_path, clock, 100, guesses, based=60.0, attention=40.0)  # all twice as long
    assert engine.listener.began == ["based", "attention"]  # type: ignore[attr-defined]


def test_nothing_is_started_where_nothing_would_end(
    tmp_path: Path, clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LocalEngine, "_hire", lambda *_: pytest.fail("a process was started"))
    engine = swept(tmp_path, clock, 5, {"based": 30.0, "attention": 20.0, "sliding_window": 10.0})
    assert len(engine.left) == 6


def test_what_is_under_way_when_the_time_is_up_is_lost_and_counted(tmp_path: Path, plugin: Path) -> None:
    cases = recall_cases(tiny_suite([{"mixer": "sleeps", "layers": ["sleeps"], "grid": {"d_model": 16}}, *MODELS]))
    deadline: Deadline[Any] = Deadline(60, time.monotonic(), Pace(lambda case: 1.0, lambda case: (case.mixer,)))
    memory = Memory()
    engine = LocalEngine([Place("cpu", slots=1)] * 2, str(tmp_path), memory, [str(plugin)], deadline)

    def stop() -> None:
        while len(memory.rows) < len(MODELS):
            time.sleep(0.01)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGALRM)

    threading.Thread(target=stop, daemon=True).start()
    with suppress(TimeUp), deadline.kept():
        engine.run(cases)
    assert [case.mixer for case in engine.under_way] == [case.mixer for case in engine.left] == ["sleeps"]
    assert sorted(load(tmp_path, "recall")["mixer"]) == ["attention", "based", "sliding_window"]
