"""The published points beside ours: which rows count, and that the page says what the committed rows give."""

import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from basedbench.analysis.markdown import section
from basedbench.analysis.published import SLICES
from basedbench.analysis.reproduction import NOTHING, published_table, rates_table
from basedbench.cli.documents import TABLES

ROOT = Path(__file__).parents[2]


def row(accuracy: float = 0.9, **changes: Any) -> dict[str, Any]:
    return {
        "suite": "figure2", "status": "ok", "family": "based", "mixer": "based", "layer_mixers": "base_conv+based",
        "config": '{"feature_dim": 16}', "d_model": 64, "layers": 2, "init": "published",
        "learning_rate": 0.01, "seed": 0,
        "accuracy": accuracy, "state_bytes_zoology": 40548, "vocab_size": 8192, "select_split": "test",
        "accuracy_by_slice": {f"{length}x{pairs}": accuracy for length, pairs in SLICES},
    } | changes  # fmt: skip


def test_the_best_rate_and_the_seeds_interval_stand_beside_the_published_value() -> None:
    rows = [row(0.90), row(0.92, seed=1), row(0.5, learning_rate=0.1)]
    line = published_table(pd.DataFrame(rows)).splitlines()[2]
    half = 12.706 * 0.01  # t with one degree of freedom, times the standard error of (.90, .92)
    assert line == f"| Based, d64 f16 | 40,548 | 0.912 | 0.910 ± {half:.3f} | -0.002 | - | 2 | 2 |"


def test_the_best_of_each_seed_has_the_seeds_with_all_rates() -> None:
    rows = [row(0.90), row(0.92, seed=1), row(0.80, seed=2)]
    rows += [row(0.94, learning_rate=0.1), row(0.5, seed=1, learning_rate=0.1)]
    line = published_table(pd.DataFrame(rows)).splitlines()[2]
    assert line.endswith("| 0.930 | 2 | 3 |")


def test_another_initialisation_has_no_published_value() -> None:
    mamba = {"family": "mamba2", "mixer": "mamba2", "config": '{"d_state": 8}', "state_bytes_zoology": 8192}
    lines = published_table(pd.DataFrame([row(0.5, **mamba), row(0.7, **mamba, init="correct")])).splitlines()
    assert lines[2] == "| Mamba-2, d64 N8 published | 8,192 | 0.520 | 0.500 | -0.020 | - | 1 | 1 |"
    assert lines[3] == "| Mamba-2, d64 N8 correct | 8,192 | - | 0.700 | - | - | 1 | 1 |"


def test_what_was_trained_on_several_devices_says_so() -> None:
    rows = [row(0.90, device_name="one"), row(0.92, seed=1, device_name="other"), row(0.5, learning_rate=0.1)]
    for table in (published_table, rates_table):
        assert table(pd.DataFrame(rows)).endswith("\n\nTrained on one and other.")
        assert "Trained on" not in table(pd.DataFrame(rows[:1]))


def test_the_page_is_of_the_usual_precision() -> None:
    rows = [row(0.90, precision="bf16"), row(0.7, precision="bf16", d_model=48), row(0.95, precision="fp32")]
    lines = published_table(pd.DataFrame(rows)).splitlines()
    assert sorted(line.split("|")[4].strip() for line in lines[2:4]) == ["0.700", "0.900"]
    assert "fp32" not in "".join(lines)


def test_a_model_stands_there_once_where_the_initialisation_changes_nothing() -> None:
    model = {"family": "gla", "mixer": "gla", "config": '{"heads": 2}', "state_bytes_zoology": 4864}
    both = [row(0.5, **model), row(0.5, **model, init="correct", suite="modern")]
    alone = row(0.7, **model | {"d_model": 128, "state_bytes_zoology": 17920}, init="correct", suite="modern")
    lines = published_table(pd.DataFrame([*both, alone])).splitlines()[2:4]
    assert [line.split("|")[2:6] for line in lines] == [
        [" 4,864 ", " 0.532 ", " 0.500 ", " -0.032 "],
        [" 17,920 ", " 0.771 ", " 0.700 ", " -0.071 "],
    ]
    assert "figure2" not in lines[0]


def test_only_the_better_of_two_models_of_a_size_has_the_published_value() -> None:
    mamba = {"family": "mamba", "mixer": "mamba", "layer_mixers": "mamba+mamba", "state_bytes_zoology": 16384}
    narrow, wide = ({"config": f'{{"d_state": {n}}}', "d_model": d} for d, n in ((64, 16), (128, 8)))
    rows = [row(0.6, **mamba, **narrow), row(0.7, **mamba, **wide), row(0.1, **mamba, **wide, learning_rate=0.1)]
    lines = published_table(pd.DataFrame(rows)).splitlines()
    assert lines[2] == "| Mamba, d64 N16 | 16,384 | - | 0.600 | - | - | 1 | 1 |"
    assert lines[3] == "| Mamba, d128 N8 | 16,384 | 0.695 | 0.700 | +0.005 | - | 2 | 1 |"


def test_rates_stand_side_by_side_where_they_matter() -> None:
    steady = {"config": '{"feature_dim": 8}', "state_bytes_zoology": 12468}
    rows = [row(0.90), row(0.92, seed=1), row(0.5, learning_rate=0.1), row(0.7, learning_rate=0.003, d_model=128)]
    rows += [row(0.6, d_model=128), row(0.70, **steady), row(0.74, **steady, learning_rate=0.1)]
    half = 12.706 * 0.01
    assert rates_table(pd.DataFrame(rows)).splitlines() == [
        "| model | 0.003 | 0.01 | 0.1 |",
        "| --- | --- | --- | --- |",
        f"| Based, d64 f16 | - | 0.910 ± {half:.3f} | 0.500 |",
        "| Based, d128 f16 | 0.700 | 0.600 | - |",
    ]
    assert rates_table(None) == NOTHING


def test_what_is_missing_is_counted() -> None:
    text = published_table(pd.DataFrame([row()]))
    assert text.splitlines()[-1].startswith("Published and not run yet: Based (8), Attention (2), Sliding window (8)")


def test_rows_of_another_test_do_not_count() -> None:
    assert published_table(pd.DataFrame([row(accuracy_by_slice={"64x4": 1.0})])) == NOTHING
    assert published_table(pd.DataFrame([row(math.nan, status="oom")])) == NOTHING
    assert published_table(None) == NOTHING


@pytest.mark.parametrize(
    ("page", "device", "name"),
    [("REPRODUCTION", "h100", "published"), ("REPRODUCTION", "h100", "rates"), ("H200", "h200", "published")],
)
def test_the_tables_of_the_pages_are_what_the_committed_rows_give(page: str, device: str, name: str) -> None:
    committed = TABLES[name](ROOT / "results" / "reference" / device)
    assert section((ROOT / "docs" / f"{page}.md").read_text(), name) == committed, (
        f"run: basedbench results table {name} --results results/reference/{device} --write docs/{page}.md"
    )
