"""`basedbench results export`: what other programs read is what the rows are."""

import csv
import io
import json
import math
from pathlib import Path

import pandas as pd
import pytest

from basedbench.store import Store, load, schema
from basedbench.store.dataset import rows as stored_rows

REFERENCE = Path(__file__).parents[2] / "results" / "reference"


@pytest.fixture
def results(tmp_path: Path) -> Path:
    store = Store(tmp_path / "results")
    model = {"mixer": "based", "config": {"feature_dim": 16}, "d_model": 64, "learning_rate": 0.01, "seed": 0}
    values = {"accuracy_by_epoch": [0.1, math.nan, 1 / 3], "accuracy_by_slice": {"64x4": 0.25}, "parameters": 2**40 + 1}
    row = schema.blank_row("recall") | {"suite": "quick", "status": "ok", "accuracy": 0.25} | model | values
    store.write("recall", row | {"case_id": "aa11", "accuracy": 0.125})
    store.write("recall", row | {"case_id": "aa11"})  # the newest
    said = 'loss is nan, "so"\nto speak'
    store.write("recall", row | {"case_id": "aa22", "status": "diverged", "accuracy": math.nan, "reason": said})
    store.write("recall", row | {"case_id": "aa33", "suite": "figure2", "d_model": 128})
    timed = schema.blank_row("throughput") | {"suite": "kernels", "status": "ok", "case_id": "bb33", "graph": True}
    shape = {"operator": "ssd", "contender": "ours", "mode": "fwd", "dtype": "fp32", "batch": 1, "length": 64}
    store.write("throughput", timed | shape | {"config": {}, "median_ms": 1.0, "device_name": "a CPU"})
    return store.root


@pytest.fixture
def export(run_cli, results):
    """Exports from the results and returns what was printed."""

    def run(*arguments):
        outcome = run_cli("results", "export", "--results", results, *arguments)
        assert (outcome.exit_code, outcome.stderr) == (0, "")
        return outcome.stdout

    return run


def table(text):
    return list(csv.DictReader(io.StringIO(text, newline="")))


def test_csv_has_the_newest_row_of_each_case_under_the_schemas_columns(export):
    rows = table(export())
    assert list(rows[0]) == schema.RECALL.names
    assert [(row["case_id"], row["accuracy"]) for row in rows] == [("aa11", "0.25"), ("aa22", ""), ("aa33", "0.25")]


def test_csv_keeps_whole_numbers_text_and_nested_columns(export):
    first, second, _ = table(export())
    assert first["parameters"] == "1099511627777"
    assert json.loads(first["config"]) == {"feature_dim": 16}
    assert json.loads(first["accuracy_by_slice"]) == {"64x4": 0.25}
    assert json.loads(first["accuracy_by_epoch"]) == [0.1, None, 1 / 3]
    assert first["reason"] == ""
    assert second["reason"] == 'loss is nan, "so"\nto speak'
    assert table(export("--kind", "throughput"))[0]["graph"] == "true"


def test_json_lines_are_strict_and_as_results_show_has_them(run_cli, export, results):
    lines = export("--format", "jsonl").splitlines()
    rows = [json.loads(line, parse_constant=pytest.fail) for line in lines]
    assert rows[1]["accuracy"] is None
    shown = run_cli("results", "show", "aa11", "--results", results, "--json").stdout
    assert rows[0] == json.loads(shown)


def test_a_file_says_its_format_by_its_ending(export, tmp_path):
    files = {name: tmp_path / "new" / f"rows.{name}" for name in ("csv", "jsonl")}
    for path in files.values():
        assert export("--out", path) == f"Wrote 3 recall rows to {path}.\n"
    assert files["csv"].read_text() == export()
    assert files["jsonl"].read_text() == export("--format", "jsonl")
    other = tmp_path / "rows.txt"
    assert export("--out", other, "--format", "csv", "--suite", "figure2") == f"Wrote 1 recall row to {other}.\n"
    assert len(table(other.read_text())) == 1


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (["--suite", "quick"], ["aa11", "aa22"]),
        (["--suite", "quick", "--suite", "figure2"], ["aa11", "aa22", "aa33"]),
        (["--filter", "^based d_model=128 feature_dim=16 lr=0.01 seed=0$"], ["aa33"]),
        (["--kind", "throughput", "--filter", "^ssd/ours fwd fp32 1x64$"], ["bb33"]),
    ],
)
def test_rows_can_be_chosen(export, arguments, wanted):
    assert [row["case_id"] for row in table(export(*arguments))] == wanted


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--kind", "recal"], "--kind 'recal': did you mean 'recall'?"),
        (["--kind", "calibration"], "no calibration results in"),
        (["--suite", "figure"], "no recall rows of 'figure' in"),
        (["--filter", "("], "'(' is not a regular expression"),
        (["--filter", "^mamba "], "finds none of 3 runs, such as 'based d_model=64 feature_dim=16 lr=0.01 seed=0'"),
        (["--format", "json"], "--format 'json': did you mean 'jsonl'?"),
        (["--out", "rows.xls"], "'rows.xls' has '.xls': name it .csv or .jsonl, or give --format."),
        (["--out", "rows"], "'rows' has no ending"),
        (["--out", "/proc/no/rows.csv"], "cannot write '/proc/no/rows.csv'"),
    ],
)
def test_mistakes_are_one_sentence(run_cli, results, arguments, said):
    outcome = run_cli("results", "export", "--results", results, *arguments)
    assert (outcome.exit_code, outcome.stdout) == (2, "")
    assert outcome.stderr.startswith("Error: ")
    assert said in outcome.stderr


@pytest.mark.parametrize("kind", schema.KINDS)
def test_the_reference_comes_back_as_it_is(run_cli, kind):
    folder = REFERENCE / "cpu"
    outcome = run_cli("results", "export", "--results", folder, "--kind", kind)
    frame, known = pd.read_csv(io.StringIO(outcome.stdout)), load(folder, kind)
    assert list(frame.columns) == list(known.columns)
    pd.testing.assert_series_equal(frame["median_ms" if kind != "recall" else "accuracy"],
                                   known["median_ms" if kind != "recall" else "accuracy"])  # fmt: skip
    lines = run_cli("results", "export", "--results", folder, "--kind", kind, "--format", "jsonl").stdout.splitlines()
    assert [json.loads(line) for line in lines] == [schema.decode_json(row) for row in stored_rows(folder, kind)]
