"""The table of precisions: what a cell says, what the verdict rests on, and that the page is what the rows give."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from basedbench.analysis.markdown import section
from basedbench.analysis.parity import COLUMNS, NOTHING, difference, parity_table
from basedbench.cli.documents import TABLES

ROOT = Path(__file__).parents[2]
FULL = [0.90, 0.91, 0.92]
BASED = {"family": "based", "mixer": "based", "layer_mixers": "base_conv+based", "config": '{"feature_dim": 16}'}
ATTENTION = {"family": "attention", "mixer": "attention", "layer_mixers": "base_conv+attention", "config": "{}"}


def rows(precision: str, accuracies: list[float], rate: float = 0.01, **changes: Any) -> list[dict[str, Any]]:
    shared = {
        "suite": "parity", "status": "ok", "d_model": 64, "layers": 2, "init": "published", "learning_rate": rate,
        "precision": precision, "recipe": f'{{"precision": "{precision}"}}', "epochs": 32, "vocab_size": 8192,
    } | BASED | changes  # fmt: skip
    return [shared | {"seed": seed, "accuracy": accuracy} for seed, accuracy in enumerate(accuracies)]


def cells(text: str) -> list[dict[str, str]]:
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]
    return [dict(zip(COLUMNS, line, strict=True)) for line in lines[2:]]


def test_a_line_has_the_three_precisions_of_a_model_and_learning_rate() -> None:
    frame = pd.DataFrame([*rows("fp32", FULL), *rows("bf16", [0.80, 0.81, 0.82]), *rows("tf32", [0.905, 0.91, 0.915])])
    (line,) = cells(parity_table(frame))
    assert (line["model"], line["learning rate"]) == ("Based, d64 f16", "0.01")
    assert line["fp32"] == "0.910 ± 0.010 (3)"
    assert line["bf16"] == "0.810 ± 0.010 (3)"
    assert line["bf16 - fp32"].startswith("-0.100 (-0.1")
    assert line["bf16 - fp32"].endswith("outside")
    assert line["tf32 - fp32"].startswith("+0.000 (")
    assert line["tf32 - fp32"].endswith("within")


def test_the_interval_is_scipys_or_a_little_wider() -> None:
    lower = [0.88, 0.93, 0.90, 0.91]
    theirs = stats.ttest_ind(lower, FULL, equal_var=False).confidence_interval(0.95)
    low, high = (float(part) for part in difference(lower, FULL).split("(")[1].split(")")[0].split(" to "))
    assert low == pytest.approx(theirs.low, abs=0.006)
    assert high == pytest.approx(theirs.high, abs=0.006)
    assert low <= theirs.low + 0.0005 < theirs.high - 0.0005 <= high


def test_equal_means_are_called_different_about_as_seldom_as_the_interval_says() -> None:
    rng = np.random.default_rng(0)
    draws = rng.normal(0.9, 0.02, (2000, 6))
    outside = sum(difference(list(draw[:3]), list(draw[3:])).endswith("outside") for draw in draws)
    assert 0.01 < outside / 2000 < 0.06
    shifted = sum(difference(list(draw[:3] - 0.2), list(draw[3:])).endswith("outside") for draw in draws)
    assert shifted / 2000 > 0.95


def test_what_three_decimals_do_not_show_is_within() -> None:
    assert difference([0.9999, 0.9999], [0.9998, 0.9998]) == "+0.000 (+0.000 to +0.000), within"
    assert difference([0.98, 0.98], [0.99, 0.99]).endswith("outside")


def test_runs_of_another_suite_count_at_other_precisions_if_only_that_differs() -> None:
    other = rows("bf16", [0.8, 0.81, 0.82], suite="figure2")
    (line,) = cells(parity_table(pd.DataFrame([*rows("fp32", FULL), *other])))
    assert line["bf16"] == "0.810 ± 0.010 (3)"
    shuffled = [row | {"recipe": '{"precision": "bf16", "shuffle": true}'} for row in other]
    (line,) = cells(parity_table(pd.DataFrame([*rows("fp32", FULL), *shuffled])))
    assert line["bf16"] == "-"


def test_few_seeds_have_no_verdict() -> None:
    assert difference([0.8], FULL) == "-0.110, too few seeds"
    assert difference([], FULL) == "-"
    (line,) = cells(parity_table(pd.DataFrame(rows("bf16", [0.8]))))
    assert (line["fp32"], line["bf16"], line["bf16 - fp32"]) == ("-", "0.800 (1)", "-")


def test_models_and_learning_rates_are_lines_of_their_own() -> None:
    frame = pd.DataFrame(
        [*rows("fp32", FULL, 0.0316228), *rows("fp32", FULL, 0.00316228), *rows("fp32", [1.0], 0.001, **ATTENTION)]
    )
    found = [(line["model"], line["learning rate"]) for line in cells(parity_table(frame))]
    assert found == [("Attention, d64", "0.001"), ("Based, d64 f16", "0.00316"), ("Based, d64 f16", "0.0316")]


def test_what_is_missing_is_counted_by_precision() -> None:
    failed = [row | {"status": "oom", "accuracy": float("nan")} for row in rows("tf32", FULL)]
    text = parity_table(pd.DataFrame([*rows("fp32", FULL), *failed]))
    assert text.splitlines()[-1] == (
        "Missing: 45 of 48 at fp32, 48 of 48 at tf32, 48 of 48 at bf16 (without a row, or failed)."
    )
    assert parity_table(None).startswith(NOTHING)
    assert parity_table(pd.DataFrame(rows("fp32", FULL, suite="figure2"))).startswith(NOTHING)


def test_the_section_of_the_page_is_what_the_committed_rows_give() -> None:
    committed = TABLES["parity"](ROOT / "results" / "reference" / "h100")
    assert section((ROOT / "docs" / "PARITY.md").read_text(), "parity") == committed, (
        "run: basedbench results table parity --results results/reference/h100 --write docs/PARITY.md"
    )
