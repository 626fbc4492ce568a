"""`basedbench results`, and the errors that every command has in common."""

import errno
import json
import os
import shlex
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from basedbench.cli.tables import print_json
from basedbench.store import Store, schema
from basedbench.store.dataset import rows


@pytest.fixture
def results(tmp_path: Path) -> Path:
    store = Store(tmp_path / "results")
    values = {"config": {"feature_dim": 16}, "state_bytes": 65536, "accuracy": float("nan"), "reason": "loss is nan"}
    lists = {"accuracy_by_epoch": [index / 32 for index in range(32)], "accuracy_by_slice": {"64x4": 0.25}}
    row = schema.blank_row("recall") | {"suite": "quick", "status": "diverged"} | values | lists
    for case_id in ("aa1100000000", "aa2200000000"):
        store.write("recall", row | {"case_id": case_id})
    store.write("recall", row | {"case_id": "aa2200000000", "suite": "figure2"})
    timed = schema.blank_row("throughput") | {"suite": "kernels", "status": "ok", "case_id": "bb3300000000"}
    shape = {"operator": "ssd", "contender": "ours", "mode": "fwd", "dtype": "fp32", "batch": 1, "length": 64}
    store.write("throughput", timed | shape | {"config": {}, "median_ms": 1.0, "device_name": "a CPU"})
    return store.root


def test_compact_merges_every_kind(run_cli, results):
    outcome = run_cli("results", "compact", "--results", results)
    assert outcome.exit_code == 0
    assert outcome.stdout == "recall: merged 3 files into one\nthroughput: nothing to merge\n"
    assert [len(list((results / kind).iterdir())) for kind in ("recall", "throughput")] == [1, 1]


def test_compact_names_a_corrupt_file_and_sets_it_aside_when_told(run_cli, results):
    bad = results / "recall" / "2026-bad.parquet"
    bad.write_bytes(b"PAR1")
    refused = run_cli("results", "compact", "--results", results)
    assert refused.exit_code == 2
    assert str(bad) in refused.stderr
    assert len(list((results / "recall").iterdir())) == 4
    outcome = run_cli("results", "compact", "--set-aside-corrupt", "--results", results)
    assert outcome.exit_code == 0
    assert f"moved a file that cannot be read to {results / 'recall' / 'corrupt' / bad.name}" in outcome.stdout
    assert "merged 3 files" in outcome.stdout


def test_compact_without_results_says_where_it_looked(run_cli, tmp_path):
    outcome = run_cli("results", "compact", "--results", tmp_path / "nowhere")
    assert outcome.exit_code == 2
    assert (
        outcome.stderr == f"Error: there are no results in '{tmp_path}/nowhere'; choose their folder with --results.\n"
    )
    assert not (tmp_path / "nowhere").exists()


def test_show_prints_every_column_within_100(run_cli, results):
    outcome = run_cli("results", "show", "aa11", "--results", results)
    assert outcome.exit_code == 0
    assert "recall row aa1100000000 (suite quick)" in outcome.stdout
    names = {line.split()[0].rstrip(":") for line in outcome.stdout.splitlines() if line.split()}
    assert set(schema.RECALL.names) <= names
    assert max(map(len, outcome.stdout.splitlines())) <= 100
    for shown in ("65,536", "loss is nan", "(32 values)", "64x4"):
        assert shown in outcome.stdout


def test_show_as_json_is_whole_and_strict(run_cli, results):
    outcome = run_cli("results", "show", "aa11", "--results", results, "--json")
    row = json.loads(outcome.stdout, parse_constant=pytest.fail)
    assert set(row) == set(schema.RECALL.names)
    assert row["config"] == {"feature_dim": 16}
    assert row["accuracy"] is None
    assert len(row["accuracy_by_epoch"]) == 32


def test_json_is_strict_whatever_is_in_it(capsys):
    print_json({"a": float("inf"), "b": [float("nan"), (1.5, -float("inf"))]})
    assert json.loads(capsys.readouterr().out, parse_constant=pytest.fail) == {"a": None, "b": [None, [1.5, None]]}


def test_show_finds_a_case_of_any_kind(run_cli, results):
    outcome = run_cli("results", "show", "bb", "--results", results, "--json")
    assert json.loads(outcome.stdout)["suite"] == "kernels"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["aa"], "3 cases begin with 'aa'"),
        (["aa22"], "or --suite"),
        (["zz"], "basedbench list runs --results"),
        (["\udcff"], "case '\\udcff': it is not UTF-8 text"),
        (["aa11", "--suite", "figure2"], "in suite 'figure2'"),
    ],
)
def test_show_says_why_it_found_no_single_row(run_cli, results, arguments, message):
    outcome = run_cli("results", "show", *arguments, "--results", results)
    assert outcome.exit_code == 2
    assert outcome.stderr.startswith("Error: ")
    assert message in outcome.stderr
    assert outcome.stdout == ""


def test_show_takes_the_suite_of_a_case_in_several(run_cli, results):
    outcome = run_cli("results", "show", "aa22", "--suite", "figure2", "--results", results, "--json")
    assert json.loads(outcome.stdout)["suite"] == "figure2"


def test_table_prints_markdown_or_writes_its_section(run_cli, results, tmp_path):
    printed = run_cli("results", "table", "kernels", "--results", results)
    assert printed.exit_code == 0
    assert "No times of the suite `kernels` from a GPU" in printed.stdout
    readme = tmp_path / "README.md"
    readme.write_text("<!-- kernels:begin -->\n<!-- kernels:end -->\n")
    run_cli("results", "table", "kernels", "--results", results, "--write", readme)
    assert readme.read_text() == f"<!-- kernels:begin -->\n{printed.stdout}<!-- kernels:end -->\n"


def test_table_keeps_everything_else_of_a_page(run_cli, results, tmp_path):
    printed = run_cli("results", "table", "kernels", "--results", results).stdout.encode()
    page = tmp_path / "page.md"
    before, after = "\ufeffé\r\none\n".encode(), "\r\nend ±".encode()
    page.write_bytes(before + b"<!-- kernels:begin -->\r\nold\r\n<!-- kernels:end -->" + after)
    assert run_cli("results", "table", "kernels", "--results", results, "--write", page).exit_code == 0
    table = printed.replace(b"\n", b"\r\n")
    assert page.read_bytes() == before + b"<!-- kernels:begin -->\r\n" + table + b"<!-- kernels:end -->" + after


def test_table_leaves_a_page_that_it_cannot_read_or_write(run_cli, results, tmp_path, monkeypatch):
    page = tmp_path / "page.md"
    page.write_bytes(b"\xe9 <!-- kernels:begin -->\n<!-- kernels:end -->")
    outcome = run_cli("results", "table", "kernels", "--results", results, "--write", page)
    assert (outcome.exit_code, "not UTF-8" in outcome.stderr) == (2, True)
    page.write_bytes(b"<!-- kernels:begin -->\n<!-- kernels:end -->")
    monkeypatch.setattr(os, "write", full)
    outcome = run_cli("results", "table", "kernels", "--results", results, "--write", page)
    assert (outcome.exit_code, "the disk is full; the file is as it was" in outcome.stderr) == (2, True)
    assert page.read_bytes() == b"<!-- kernels:begin -->\n<!-- kernels:end -->"


def test_table_does_not_write_over_a_page_without_results(run_cli, tmp_path):
    page = tmp_path / "page.md"
    page.write_text("<!-- kernels:begin -->\nthe table\n<!-- kernels:end -->\n")
    outcome = run_cli("results", "table", "kernels", "--results", tmp_path / "misspelt", "--write", page)
    assert (outcome.exit_code, "no throughput results in" in outcome.stderr) == (2, True)
    assert "the table" in page.read_text()
    of_another_kind = {"suite": "calibration", "case_id": "0123456789ab", "status": "ok"}
    Store(tmp_path).write("calibration", schema.blank_row("calibration") | of_another_kind)
    outcome = run_cli("results", "table", "kernels", "--results", tmp_path, "--write", page)
    assert (outcome.exit_code, "the table" in page.read_text()) == (2, True)


def full(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(("arguments", "message"), [(["kernel"], "'kernels'"), (["kernels", "--write", "no"], "'no'")])
def test_table_refuses_what_it_cannot_do(run_cli, results, arguments, message):
    outcome = run_cli("results", "table", *arguments, "--results", results)
    assert outcome.exit_code == 2
    assert message in outcome.stderr


def test_status_adds_up_a_sweep_run_in_parts(run_cli, tmp_path):
    out = tmp_path / "results"
    run_cli("recall", "--sweep", "--suite", "smoke", "--device", "cpu", "--filter", "^based ", "--out", out, "-q")
    run_cli("recall", "--sweep", "--suite", "smoke", "--device", "cpu", "--filter", "^mamba ", "--out", out, "-q")
    found = json.loads(run_cli("results", "status", "--results", out, "--json").stdout)
    total = found["suites"][0]["total"]
    assert (total["runs"], total["done"], total["left"]) == (3, 2, 1)
    assert found["train_s"] == pytest.approx(total["train_s"])
    assert total["train_s"] > 0
    printed = run_cli("results", "status", "--suite", "smoke", "--results", out).stdout
    assert "on one core" in printed
    assert "\nOn a CPU times are of one core" in printed
    command = f"basedbench recall --sweep --suite smoke --precision fp32 --filter '^attention ' --out {out}"
    assert command in printed.replace("\n", "")
    arguments = shlex.split(command)[1:]
    assert run_cli(*arguments, "--device", "cpu", "-q").exit_code == 0
    printed = run_cli("results", "status", "--results", out).stdout
    assert "basedbench recall" not in printed
    assert "other suites" not in printed
    for row in rows(out, "recall"):
        Store(tmp_path / "other").write("recall", row | {"suite": "mine"})
    printed = run_cli("results", "status", "--suite", "smoke", "--results", tmp_path / "other").stdout
    assert "3 of the runs done have rows of other suites only (mine): figures with --suite smoke lack them" in printed
    drawn = run_cli("plot", "pareto", "--suite", "smoke", "--results", tmp_path / "other")
    assert "no rows of suite 'smoke'" in drawn.stderr


def test_status_of_a_suite_that_nobody_has_names_no_number_of_runs(run_cli, tmp_path):
    row = schema.blank_row("recall") | {"status": "ok", "mixer": "based", "config": {}, "train_s": 1.0}
    Store(tmp_path).write("recall", row | {"suite": "mine", "case_id": "a"})
    printed = run_cli("results", "status", "--results", tmp_path).stdout
    (line,) = (line.split() for line in printed.splitlines() if line.split()[:1] == ["total"])
    assert line == ["total", "-", "1", "-", "-", "1", "s", "1.0", "s", "-"]
    assert "What is left cannot be told: no suite 'mine'" in printed


@pytest.mark.parametrize(("rows", "told"), [(1, "1 more row of this suite is of another"), (2, "2 more rows of this")])
def test_status_counts_rows_of_other_runs(run_cli, tmp_path, rows, told):
    row = schema.blank_row("recall") | {"suite": "smoke", "status": "ok", "mixer": "based", "config": {}}
    for case in range(rows):
        Store(tmp_path).write("recall", row | {"case_id": str(case)})
    assert told in run_cli("results", "status", "--results", tmp_path).stdout


def test_status_without_times_is_strict(run_cli, tmp_path):
    row = schema.blank_row("recall") | {"suite": "quick", "status": "ok", "case_id": "a", "train_s": float("nan")}
    Store(tmp_path).write("recall", row | {"mixer": "based", "config": {}})
    assert run_cli("results", "status", "--results", tmp_path).exit_code == 0
    found = json.loads(run_cli("results", "status", "--results", tmp_path, "--json").stdout, parse_constant=pytest.fail)
    assert found["train_s"] == 0


def test_text_that_should_be_json_is_shown(run_cli, results):
    path = next((results / "throughput").iterdir())
    table = pq.read_table(path)
    column = table.schema.get_field_index("config")
    pq.write_table(table.set_column(column, "config", pa.array(["{\x1b[2J"])), path)
    outcome = run_cli("results", "show", "bb", "--results", results)
    assert outcome.exit_code == 0
    assert "{?[2J" in outcome.stdout
    assert json.loads(run_cli("results", "show", "bb", "--results", results, "--json").stdout)["config"] == "{\x1b[2J"


def test_status_without_rows_says_what_to_do(run_cli, tmp_path):
    outcome = run_cli("results", "status", "--results", tmp_path / "none")
    assert outcome.exit_code == 2
    assert "recall --sweep" in outcome.stderr
    planned = run_cli("results", "status", "--suite", "smoke", "--results", tmp_path / "none")
    assert planned.exit_code == 0
    assert "--filter '^mamba '" in planned.stdout
    assert run_cli("results", "status", "--suite", "kernels").exit_code == 2
