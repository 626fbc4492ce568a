"""How far a sweep has come, from its rows."""

import re
import shlex
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from basedbench.config import load_suite
from basedbench.training.cases import RecallCase, recall_cases
from basedbench.training.tally import SuiteTally, Tally, device_seconds, tallies

FIGURE2 = recall_cases(load_suite("figure2"))
NOW = datetime(2026, 1, 1, tzinfo=UTC)


def row(case: RecallCase, train_s: float | None = 10.0, **changes: Any) -> dict[str, Any]:
    return {
        "suite": case.suite, "case_id": case.case_id, "mixer": case.mixer, "precision": case.train.precision,
        "status": "ok", "train_s": train_s, "created_at": NOW,
    } | changes  # fmt: skip


def of(mixer: str) -> list[RecallCase]:
    return [case for case in FIGURE2 if case.mixer == mixer]


def family(tally: SuiteTally, name: str) -> Tally:
    return next(one for one in tally.families if one.name == name)


def test_several_commands_add_up() -> None:
    rows = [row(case, 20.0) for case in of("based")[:4]] + [row(case, 5.0) for case in of("attention")]
    rows += [row(of("h3")[0], 1.0, status="oom"), row(of("h3")[1], 2.0, status="diverged")]
    tally = tallies(rows, None)[0]
    assert (tally.suite, tally.precision, tally.other_rows) == ("figure2", "fp32", 0)
    assert family(tally, "based") == Tally("based", 36, 4, {}, 32, 80.0, 20.0, 640.0)
    assert family(tally, "attention") == Tally("attention", 8, 8, {}, 0, 40.0, 5.0, 0.0)
    assert family(tally, "h3") == Tally("h3", 12, 0, {"diverged": 1, "oom": 1}, 10, 3.0, None, None)
    assert tally.total == Tally("total", 172, 12, {"diverged": 1, "oom": 1}, 158, 123.0, 10.0, None)


def test_the_commands_run_exactly_what_is_left() -> None:
    done = [row(case) for case in FIGURE2 if case.mixer != "mamba" or case.seed]
    tally = tallies(done, "figure2")[0]
    assert tally.commands("--out", "my results") == [
        "basedbench recall --sweep --suite figure2 --precision fp32 --filter '^mamba ' --out 'my results'"
    ]
    found = [case for case in FIGURE2 if case.label.startswith("mamba ")]
    assert found == of("mamba")  # and nothing of mamba2


def test_a_name_is_no_regular_expression() -> None:
    suite = SuiteTally("mine", None, [Tally("lin+x", 1, 0, {}, 1, 0.0, None, None)], Tally("total", *[0] * 7), 0, ())
    (command,) = suite.commands()
    assert re.search(shlex.split(command)[-1], "lin+x d_model=16 lr=0.01 seed=0")


def test_what_is_left_takes_as_long_as_what_is_done() -> None:
    rows = [row(case, 3.0) for mixer in dict.fromkeys(case.mixer for case in FIGURE2) for case in of(mixer)[:2]]
    assert tallies(rows, None)[0].total.left_s == pytest.approx(3.0 * (172 - 14))


def test_runs_at_another_precision_are_a_sweep_of_their_own() -> None:
    suite = load_suite("figure2")
    train = suite.train.model_copy(update={"precision": "bf16"})
    half = [case for case in recall_cases(suite.model_copy(update={"train": train})) if case.mixer == "based"]
    found = tallies([row(case) for case in (*of("based"), *half[:6])], None)
    assert [(one.precision, family(one, "based").done) for one in found] == [("fp32", 36), ("bf16", 6)]
    assert found[1].commands()[1] == "basedbench recall --sweep --suite figure2 --precision bf16 --filter '^based '"
    assert [one.other_rows for one in found] == [0, 0]
    stranger = row(of("based")[1], case_id="0123456789ab")
    (alone,) = tallies([*(row(case) for case in half[:6]), stranger], None)
    assert (alone.precision, family(alone, "based").done, alone.other_rows) == ("bf16", 6, 1)


def test_what_has_no_rows_leaves_the_precision_to_the_device() -> None:
    (tally,) = tallies([], "figure2")
    assert tally.precision is None
    assert tally.commands()[0] == "basedbench recall --sweep --suite figure2 --filter '^attention '"


def test_rows_of_other_runs_are_counted_apart() -> None:
    tally = tallies([row(of("based")[0]), row(of("based")[1], case_id="0123456789ab")], None)[0]
    assert (tally.total.done, tally.total.train_s, tally.other_rows) == (1, 10.0, 1)


def test_equal_runs_of_another_suite_count_and_their_time_once() -> None:
    full = recall_cases(load_suite("figure2-full"))
    shared = of("based")[0]
    borrowed = next(case for case in full if case.case_id == shared.case_id)
    (tally,) = tallies([row(shared)], "figure2-full")
    assert (tally.total.done, tally.elsewhere, tally.other_suites) == (1, 1, ("figure2",))
    (own,) = tallies([row(shared), row(borrowed)], "figure2-full")  # as when its sweep has taken it over
    assert (own.total.done, own.elsewhere, own.other_suites) == (1, 0, ())
    taken = row(borrowed, created_at=NOW + timedelta(hours=1))
    assert device_seconds([row(shared), taken, row(of("based")[1])]) == 20.0
    assert device_seconds([row(shared), row(shared, 11.0)]) == 21.0  # run again
    failed = row(borrowed, status="crashed")
    assert tallies([row(shared), failed], "figure2-full")[0].total.failed == {"crashed": 1}  # as a sweep sees it


def test_times_of_a_cpu_are_of_cores() -> None:
    assert tallies([row(of("based")[0], device="cpu")], "figure2-full")[0].on_cores
    elsewhere = row(of("h3")[0], suite="mine", case_id="0123456789ab", device="cpu")
    figure2, mine = tallies([row(of("based")[0], device="cuda"), elsewhere], None)
    assert (figure2.on_cores, mine.on_cores) == (False, True)


def test_a_suite_that_is_not_here_is_told_by_its_rows() -> None:
    tally = tallies([row(of("based")[0], suite="mine"), row(of("h3")[0], suite="mine", status="oom")], None)[0]
    assert (tally.total.done, tally.total.failed, tally.commands()) == (1, {"oom": 1}, [])
    assert "--suite" in (tally.unknown or "")


def test_a_time_that_no_run_takes_counts_as_none():
    rows = [row(case, seconds) for case, seconds in zip(FIGURE2, (1e308, 1e308, -1.0, 10.0), strict=False)]
    assert device_seconds(rows) == 10.0
