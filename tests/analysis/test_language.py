"""Rows of whole models: names, rates, and the nearest context of what does not depend on it."""

import json

import pandas as pd
import pytest

from basedbench.analysis.language import (
    at_place,
    conditions,
    fastest,
    language_rows,
    preset_parts,
    recurrent,
    usual,
)
from basedbench.errors import UserError
from tests.plots.conftest import language_frame, language_row

__all__ = ["language_frame"]  # the fixture of the figures


@pytest.fixture
def rows(language_frame: pd.DataFrame) -> pd.DataFrame:
    return language_rows(language_frame, "generation")


def test_a_preset_is_a_family_a_size_and_a_variant() -> None:
    assert preset_parts("attention-1.3b-h64") == ("attention", "1.3b", "h64")
    assert preset_parts("mamba2-360m") == ("mamba2", "360m", "")
    assert preset_parts("mine") == ("mine", "", "")


def test_rates_have_the_interval_of_their_time(rows: pd.DataFrame) -> None:
    row = rows[(rows["name"] == "based-360m") & (rows["batch"] == 128)].iloc[0]
    assert row["value"] == pytest.approx(128 / 1.5 * 1e3)
    assert (row["low"], row["high"]) == pytest.approx((row["value"] / 1.01, row["value"] / 0.99))
    assert rows.loc[rows["status"] == "oom", ["value", "low", "high"]].isna().all(axis=None)


def test_names_tell_apart_what_differs() -> None:
    plain = language_row("based-360m", 1, 8, 1.0)
    changed = plain | {"config": json.dumps({"preset": "based-360m", "window": 64})}
    other = language_row("attention-360m", 1, 8, 1.0, config=json.dumps({"preset": "attention-360m", "heads": 4}))
    rows = language_rows(pd.DataFrame([plain, changed, other]), "generation")
    assert list(rows["name"]) == ["attention-360m by=sdpa-flash", "based-360m", "based-360m window=64"]
    assert "attention-360m with heads=4" in conditions(rows)
    assert "based-360m with" not in conditions(rows)


def test_devices_and_dtypes_are_never_one_line() -> None:
    rows = [language_row("based-360m", batch, 8, 1.0, device_name=device) for batch, device in ((1, "A"), (8, "B"))]
    rows = language_rows(pd.DataFrame(rows), "generation")
    assert list(rows["name"]) == ["based-360m A", "based-360m B"]
    assert list(fastest(rows)["name"]) == ["based-360m A", "based-360m B"]
    assert set(language_rows(pd.DataFrame([language_row("based-360m", 1, 8, 1.0)]), "generation")["name"]) == {
        "based-360m"
    }


def test_the_fastest_implementation_is_taken_in_every_place(rows: pd.DataFrame) -> None:
    best = fastest(rows)
    assert not best.duplicated(["name", "batch", "length"]).any()
    assert set(best.loc[best["family"] == "attention", "contender"]) == {"sdpa-flash"}
    assert set(best["name"]) == {"attention-1.3b", "attention-360m", "based-1.3b", "based-360m"}
    unable = pd.DataFrame(
        [
            language_row("attention-360m", 1, 8, None, status="unsupported", contender="ours"),
            language_row("attention-360m", 1, 8, None),
        ]
    )
    assert list(fastest(language_rows(unable, "generation"))["status"]) == ["oom"]


def test_recurrent_is_whose_state_was_the_same_at_two_contexts(rows: pd.DataFrame) -> None:
    assert recurrent(rows) == {"based-1.3b", "based-360m"}
    assert recurrent(rows[rows["length"] == 1024]) == set()


def test_recurrent_models_are_taken_at_the_nearest_context(rows: pd.DataFrame) -> None:
    here = at_place(fastest(rows), 128, 512)
    assert dict(zip(here["name"], here["length"], strict=True)) == {
        "attention-1.3b": 512, "attention-360m": 512, "based-1.3b": 1024, "based-360m": 1024
    }  # fmt: skip
    assert set(at_place(fastest(rows), 128, 3000)["length"]) == {4096}  # no attention there
    assert "nearest context" in conditions(rows)


def test_a_figure_is_drawn_where_most_was_timed(rows: pd.DataFrame) -> None:
    assert usual(rows, "batch", 128) == 128
    assert usual(rows, "batch", 64) == 1  # attention ended at 128
    assert usual(rows, "length", 1024) == 1024


def test_without_rows_the_command_that_makes_them_is_named() -> None:
    with pytest.raises(UserError, match="basedbench throughput --suite prefill"):
        language_rows(pd.DataFrame([language_row("based-360m", 1, 8, 1.0)]), "prefill")
