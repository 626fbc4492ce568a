"""Two commands in one results folder at the same time."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from basedbench import locks
from basedbench.cli.in_hand import FILE, hold
from basedbench.store import load
from tests.cli.conftest import RunCli
from tests.cli.test_recall import SUITE

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="files are locked with fcntl")

HOLDS = """
import sys
from pathlib import Path
from basedbench import locks

file = locks.opened(Path(sys.argv[1]))
for key in sys.argv[2:]:
    assert locks.take(file, key)
print("in hand", flush=True)
sys.stdin.read()
"""


@contextmanager
def another(out: Path, keys: list[str]) -> Iterator[subprocess.Popen[str]]:
    """Another command, which has these in hand."""
    command = [sys.executable, "-c", HOLDS, str(out / FILE), *keys]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "in hand\n"
        yield process
        process.kill()


def test_runs_in_anothers_hands_are_left_to_it_until_it_has_ended(run_cli: RunCli, tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(SUITE)
    out = tmp_path / "results"
    sweep = ["recall", "--sweep", "--suite", tmp_path / "s.yaml", "--device", "cpu", "--jobs", 1, "--out", out]
    cases = json.loads(run_cli(*sweep, "--dry-run", "--json").stdout)
    keys = [f"runs {case['case_id']}" for case in cases]
    with another(out, keys):
        outcome = run_cli(*sweep)
        assert outcome.exit_code == 2
        assert "has all runs in hand that are left to do (4)" in outcome.stderr
        assert "--filter" in outcome.stderr
    with another(out, keys[1:]) as other:
        outcome = run_cli(*sweep)
        assert outcome.exit_code == 0
        assert f"Another command is at work in {str(out)!r} and has 3 of 4 runs in hand: left to it." in outcome.stderr
        assert list(load(out, "recall")["case_id"]) == [cases[0]["case_id"]]
        other.kill()
        other.wait()
        outcome = run_cli(*sweep, "--limit", 2)
        assert "Another command" not in outcome.stderr
        assert len(load(out, "recall")) == 3


def test_cases_of_throughput_too_and_models(run_cli: RunCli, out: Path, tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(SUITE)
    timing = ["throughput", "--device", "cpu", "--out", out, "--rounds", 3]
    chosen = [*timing, "--filter", "^linear_attention/ours fwd "]
    cases = [case for case in json.loads(run_cli(*chosen, "--dry-run", "--json").stdout) if case["due"]]
    with another(out, [f"cases quick-throughput {case['case_id']}" for case in cases]):
        outcome = run_cli(*chosen)
    assert outcome.exit_code == 2
    assert "Two that time on one device disturb each other." in outcome.stderr
    models = [*timing, "--models", tmp_path / "s.yaml", "--batch", 1]
    assert run_cli(*models).exit_code == 0
    made = load(out, "throughput")
    with another(
        out, [f"models {model} {config}" for model, config in zip(made["model"], made["config"], strict=True)]
    ):
        assert "has all models in hand" in run_cli(*models).stderr


def test_where_nothing_can_be_locked_everything_is_run(
    run_cli: RunCli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "s.yaml").write_text(SUITE)
    monkeypatch.setattr(locks, "fcntl", None)
    sweep = ["recall", "--sweep", "--suite", tmp_path / "s.yaml", "--device", "cpu", "--jobs", 1, "--limit", 1]
    assert run_cli(*sweep, "--out", tmp_path / "results").exit_code == 0
    assert not (tmp_path / "results" / FILE).exists()


@pytest.mark.parametrize("limit", [None, 2])
def test_what_another_has_finished_before_it_let_go_is_not_run_again(
    run_cli: RunCli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int | None
) -> None:
    """Its row comes between this command's look at the rows and its taking what is left in hand."""
    (tmp_path / "s.yaml").write_text(SUITE)
    out, elsewhere = tmp_path / "results", tmp_path / "elsewhere"
    sweep = ["recall", "--sweep", "--suite", tmp_path / "s.yaml", "--device", "cpu", "--jobs", 1, "--out"]
    run_cli(*sweep, elsewhere, "--limit", 1)

    def late(*arguments: Any) -> Any:
        shutil.copytree(elsewhere / "recall", out / "recall", dirs_exist_ok=True)
        return hold(*arguments)

    monkeypatch.setattr("basedbench.cli.in_hand.hold", late)
    outcome = run_cli(*sweep, out, *(["--limit", limit] if limit else []))
    assert outcome.exit_code == 0
    assert len(load(out, "recall")) == len(list((out / "recall").glob("*.parquet"))) == (limit or 4)
    assert ("2 runs are left" in outcome.stdout) == bool(limit)
