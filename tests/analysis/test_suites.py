"""Which rows are a suite's runs."""

from typing import Any

import pandas as pd
import pytest

from basedbench.analysis.suites import of_suites, runs_of_suites
from basedbench.errors import UserError

DAY = pd.Timestamp("2026-01-01", tz="UTC")


def frame(*rows: tuple[str, str, str, float]) -> pd.DataFrame:
    """(suite, case, status, accuracy), a day apart."""
    made: list[dict[str, Any]] = [
        {
            "suite": suite,
            "case_id": case,
            "status": status,
            "accuracy": accuracy,
            "created_at": DAY + pd.Timedelta(day, "D"),
        }
        for day, (suite, case, status, accuracy) in enumerate(rows)
    ]
    return pd.DataFrame(made)


def found(rows: pd.DataFrame) -> list[tuple[str, str, float]]:
    return list(rows[["suite", "case_id", "accuracy"]].itertuples(index=False, name=None))


def test_a_run_that_another_suite_has_trained_since_is_its_newest() -> None:
    rows = frame(
        ("parity", "a", "ok", 0.1), ("parity", "b", "ok", 0.2), ("figure2", "a", "ok", 0.3), ("figure2", "c", "ok", 0.4)
    )
    assert found(runs_of_suites(rows, ["parity"])) == [("parity", "b", 0.2), ("parity", "a", 0.3)]
    assert found(runs_of_suites(rows, ["figure2"])) == [("figure2", "a", 0.3), ("figure2", "c", 0.4)]
    both = found(runs_of_suites(rows, ["parity", "figure2"]))
    assert both == [("parity", "b", 0.2), ("figure2", "a", 0.3), ("figure2", "c", 0.4)]


def test_an_older_row_of_another_suite_changes_nothing() -> None:
    rows = frame(("figure2", "a", "ok", 0.1), ("parity", "a", "ok", 0.2))
    assert found(runs_of_suites(rows, ["parity"])) == [("parity", "a", 0.2)]
    assert found(runs_of_suites(rows, ["figure2"])) == [("figure2", "a", 0.2)]


def test_a_run_that_failed_at_last_has_the_result_it_had() -> None:
    rows = frame(("parity", "a", "ok", 0.1), ("figure2", "a", "oom", float("nan")), ("parity", "b", "oom", 0.0))
    assert found(runs_of_suites(rows, ["parity"])) == [("parity", "a", 0.1), ("parity", "b", 0.0)]


def test_without_a_suite_all_rows_are_there_and_an_unknown_one_is_named() -> None:
    rows = frame(("parity", "a", "ok", 0.1), ("figure2", "a", "ok", 0.2))
    assert (
        found(runs_of_suites(rows, [])) == found(of_suites(rows, [])) == [("parity", "a", 0.1), ("figure2", "a", 0.2)]
    )
    with pytest.raises(UserError, match=r"no rows of suite 'modern'.*figure2, parity"):
        runs_of_suites(rows, ["modern"])
