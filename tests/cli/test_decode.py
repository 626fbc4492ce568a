"""`basedbench throughput --models` and the plot that needs it."""

import json
from pathlib import Path

import pytest

from basedbench.store import load
from tests.cli.conftest import RunCli


def test_recall_against_decode_rate(run_cli: RunCli, tmp_path: Path) -> None:
    out = tmp_path / "results"
    place = ["--device", "cpu", "--out", out]
    assert run_cli("recall", "--sweep", "--suite", "smoke", *place).exit_code == 0
    missing = run_cli("plot", "pareto", "--results", out, "--x", "decode_tokens_per_s")
    assert missing.exit_code == 2
    assert "throughput" in missing.stderr
    outcome = run_cli("throughput", "--models", "smoke", "--batch", 4, "--rounds", 3, *place)
    assert outcome.exit_code == 0, outcome.stderr
    assert "tokens/s" in outcome.stdout
    assert set(load(out, "throughput")["status"]) == {"ok"}
    drawn = run_cli("plot", "pareto", "--results", out, "--x", "decode_tokens_per_s", "--json")
    assert drawn.exit_code == 0, drawn.stderr
    points = json.loads(drawn.stdout)["points"]
    assert all(point["decode_tokens_per_s"] > 0 for point in points)
    assert "batch 4, behind 32 tokens, fp32" in json.loads(drawn.stdout)["note"]


def test_a_dry_run_of_models_times_nothing(run_cli: RunCli, tmp_path: Path) -> None:
    arguments = ("throughput", "--models", "smoke", "--device", "cpu", "--out", tmp_path / "results", "--dry-run")
    listed = run_cli(*arguments)
    assert listed.exit_code == 0
    assert "attention d_model=16\n" in listed.stdout
    assert "3 models would be timed. Nothing was run." in listed.stdout
    assert len(json.loads(run_cli(*arguments, "--json").stdout)) == 3
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    "option", [("--suite", "kernels"), ("--contender", "ours"), ("--mode", "fwd"), ("--limit", 1), ("--retry", "oom")]
)
def test_what_means_nothing_to_models_is_refused(run_cli: RunCli, option: tuple[object, ...]) -> None:
    outcome = run_cli("throughput", "--models", "smoke", "--device", "cpu", *option)
    assert outcome.exit_code == 2
    assert f"{option[0]} does not go with --models" in outcome.stderr


def test_a_throughput_suite_has_no_models(run_cli: RunCli) -> None:
    outcome = run_cli("throughput", "--models", "quick-throughput", "--device", "cpu")
    assert outcome.exit_code == 2
    assert "is a throughput suite" in outcome.stderr
