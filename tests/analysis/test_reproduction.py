"""The published points beside ours: which rows count, and that the page says what the committed rows give."""

import math
from pathlib import Path
from typing import Any

import pandas as pd

from basedbench.analysis.markdown import section
from basedbench.analysis.published import SLICES
from basedbench.analysis.reproduction import NOTHING, published_table
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
    assert line == f"| Based, d64 f16 | 40,548 | 0.912 | 0.910 ± {half:.3f} | -0.002 | 2 | 2 |"


def test_another_initialisation_has_no_published_value() -> None:
    mamba = {"family": "mamba2", "mixer": "mamba2", "config": '{"d_state": 8}', "state_bytes_zoology": 8192}
    lines = published_table(pd.DataFrame([row(0.5, **mamba), row(0.7, **mamba, init="correct")])).splitlines()
    assert lines[2] == "| Mamba-2, d64 N8 published | 8,192 | 0.520 | 0.500 | -0.020 | 1 | 1 |"
    assert lines[3] == "| Mamba-2, d64 N8 correct | 8,192 | - | 0.700 | - | 1 | 1 |"


def test_what_is_missing_is_counted() -> None:
    text = published_table(pd.DataFrame([row()]))
    assert text.splitlines()[-1].startswith("Published and not run yet: Based (8), Attention (2), Sliding window (8)")


def test_rows_of_another_test_do_not_count() -> None:
    assert published_table(pd.DataFrame([row(accuracy_by_slice={"64x4": 1.0})])) == NOTHING
    assert published_table(pd.DataFrame([row(math.nan, status="oom")])) == NOTHING
    assert published_table(None) == NOTHING


def test_the_table_of_the_page_is_what_the_committed_rows_give() -> None:
    committed = TABLES["published"](ROOT / "results" / "reference" / "h100")
    assert section((ROOT / "docs" / "REPRODUCTION.md").read_text(), "published") == committed, (
        "run: basedbench results table published --results results/reference/h100 --write docs/REPRODUCTION.md"
    )
