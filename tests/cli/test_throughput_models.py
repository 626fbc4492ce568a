"""`basedbench throughput` over whole models, and what is made of their rows, on the CPU."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from basedbench.models.language import LanguageModel, identify_checkpoint, preset
from basedbench.store import Store, load
from basedbench.store.schema import THROUGHPUT, blank_row
from tests.cli.conftest import RunCli
from tests.models.language.test_checkpoint import released
from tests.plots.conftest import language_row

SUITE = """
kind: throughput
measure: {seconds: 0.1, min_rounds: 3, max_rounds: 4, round_ms: 1, timeout: 60, threads: 1}
models:
  - presets: [attention-360m]
    contenders: [sdpa-math]
    baseline: sdpa-math
    overrides: {d_model: 32, heads: 2, mlp_inner: 32, vocab_size: 64, layers: [[attention, attention]]}
    grid: [{mode: generation, batch: [1, 2], length: [8, 16]}, {mode: prefill, batch: 2, length: 16}]
  - presets: [based-360m]
    baseline: attention-360m/sdpa-math
    overrides: {d_model: 32, heads: 2, mlp_inner: 32, vocab_size: 64, layers: [[conv, linear]], feature_dim: 4}
    grid: [{mode: generation, batch: [1, 2], length: [8, 16]}, {mode: prefill, batch: 2, length: 16}]
"""

SMALL = {"d_model": 32, "heads": 2, "mlp_inner": 32, "vocab_size": 64, "layers": ["attention", "attention"]}


@pytest.fixture
def generated(tmp_path: Path) -> Path:
    """A results folder with a few rows that nobody timed."""
    store = Store(tmp_path / "generated")
    for index, (batch, length) in enumerate(((1, 8), (2, 8), (1, 16))):
        _write(store, language_row("attention-360m", batch, length, 2.0), f"{index:012}")
    return store.root


@pytest.fixture
def run(run_cli: RunCli, tmp_path: Path, out: Path) -> Any:
    """`throughput` over the small suite; more arguments may follow."""
    suite = tmp_path / "own.yaml"
    suite.write_text(SUITE)
    return lambda *more: run_cli("throughput", "--suite", suite, "--device", "cpu", "--out", out, *more)


def test_models_run_are_shown_go_on_and_are_drawn(run: Any, run_cli: RunCli, out: Path) -> None:
    first = run("--limit", 3)
    assert first.exit_code == 0
    assert "7 cases are left" in first.stdout
    rest = run()
    assert "7 of 10 cases to do" in rest.stderr
    assert "0 of 10 cases to do" in run().stderr
    assert all(len(line) <= 100 for line in rest.stdout.splitlines() if str(out) not in line)
    assert "generation fp32, hot cache" in rest.stdout
    assert "prefill fp32, hot cache" in rest.stdout
    assert "basedbench plot generation" in rest.stdout
    assert set(load(out, "throughput")["status"]) == {"ok"}

    drawn = run_cli("plot", "generation", "--results", out, "--json")
    assert drawn.exit_code == 0, drawn.stderr
    points = json.loads(drawn.stdout)["points"]
    assert len(points) == 8
    assert all(0 < point["low"] <= point["value"] for point in points)
    table = run_cli("plot", "generation", "--results", out, "--filter", "based", "--batch", 2, "--width", "single")
    assert "attention-360m" not in table.stdout
    assert (out / "generation.png").stat().st_size > 0
    assert run_cli("plot", "throughput", "--results", out).exit_code == 0
    listed = run_cli("list", "runs", "--kind", "throughput", "--results", out)
    assert "based-360m" in listed.stdout
    compared = run_cli("compare", out, out)
    assert compared.exit_code == 0
    assert "model/attention-360m generation fp32 1x8" in compared.stdout
    against = run_cli("compare", out, "--contender", "based-360m/ours", "--against", "attention-360m/sdpa-math")
    assert "model/based-360m" in against.stdout


def test_a_row_says_what_it_is(run: Any) -> None:
    outcome = run("--filter", r"^model/based-360m generation fp32 2x16", "--json", "--quiet")
    (row,) = json.loads(outcome.stdout)
    assert (row["model"], row["operator"], row["mode"], row["batch"], row["length"]) == (
        "based-360m", None, "generation", 2, 16
    )  # fmt: skip
    assert row["config"]["preset"] == "based-360m"
    assert row["config"]["layers"] == ["conv", "linear"]
    assert row["threads"] == 1
    assert row["parameters"] * 4 + 2 * row["state_bytes"] == row["memory_bytes"]
    assert 0 < row["bandwidth_fraction"] < 1
    assert row["graph"] is False


def test_what_would_swap_is_a_row_at_once(run: Any, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Known before any worker starts: a model of 1.3B in a free gigabyte."""
    monkeypatch.setattr("basedbench.timing.sweep.free_memory", lambda device: 2**30)
    monkeypatch.setattr("basedbench.timing.worker.Workers.of", lambda self, case: pytest.fail("a worker was started"))
    suite = out.with_name("large.yaml")
    suite.write_text("""kind: throughput
models: [{presets: [based-1.3b], baseline: ours, grid: {mode: [generation, prefill], dtype: bf16, length: 1024}}]""")
    outcome = run("--suite", suite)
    assert outcome.exit_code == 1, outcome.stderr
    frame = load(out, "throughput")
    assert frame["status"].tolist() == ["oom", "oom"]
    assert frame["reason"].str.fullmatch(r"needs [78]\.\d GiB of memory, 1\.0 GiB are free").all()
    assert "needs 7" in outcome.stdout


def test_choosing_and_listing(run: Any, out: Path) -> None:
    listed = json.loads(run("--dry-run", "--json", "--mode", "prefill").stdout)
    assert [case["model"] for case in listed] == ["attention-360m", "based-360m"]
    flash = run("--dry-run", "--contender", "sdpa-flash", "--mode", "generation").stdout
    assert flash.count("by=sdpa-flash") == 8
    assert "8 of 8 cases would run" in flash
    assert not (out / "throughput").exists()


def test_a_contender_without_attention_to_compute_is_a_row_that_may_be_retried(run: Any, out: Path) -> None:
    only = ("--contender", "sdpa-flash", "--filter", "based-360m prefill")
    assert "has no softmax attention" in run(*only).stdout
    assert load(out, "throughput")["status"].tolist() == ["unsupported"]
    assert "0 of 1 cases to do" in run(*only).stderr
    assert "1 of 1 cases to do" in run(*only, "--retry", "unsupported").stderr
    assert "1 of 1 cases to do" in run(*only, "--fresh").stderr


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[based-360m]", "[basd-360m]", "did you mean 'based-360m'"),
        ("feature_dim", "feature_dims", "feature_dims"),
        ("sdpa-math]", "sdpa-maths]", "did you mean 'sdpa-math'"),
        ("mode: prefill", "mode: prefil", "mode"),
        ("presets: [attention-360m]", "preset: [attention-360m]", "did you mean 'presets'"),
        ("presets: [attention-360m]", "presets: attention-360m", "models[0].presets: takes a list, got"),
        ("mode: prefill", "mode: prefill, dtype: [4]", "models[0]: grid: dtype: input should be 'fp32', 'bf16' or"),
        (
            "[[conv, linear]]",
            "[[conv, liner]]",
            "suite bad, based-360m: language model: option 'layers.1' = 'liner': did",
        ),
        ("heads: 2, mlp", "heads: 5, mlp", "heads = 5 does not divide d_model = 32."),
    ],
)
def test_a_bad_suite_is_one_sentence(
    run_cli: RunCli, tmp_path: Path, out: Path, old: str, new: str, message: str
) -> None:
    suite = tmp_path / "bad.yaml"
    suite.write_text(SUITE.replace(old, new))
    outcome = run_cli("throughput", "--suite", suite, "--device", "cpu", "--out", out)
    assert outcome.exit_code == 2
    assert message in outcome.stderr
    assert outcome.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--batch", "7"], "--batch 7: nothing was timed there, only at 1, 2"),
        (["--context", "7"], "--context 7: nothing was timed there, only at 8, 16"),
        (["--filter", "nobody"], "finds none of the models attention-360m"),
        (["--filter", "("], "is not a regular expression"),
    ],
)
def test_plot_generation_refuses_what_is_not_there(
    run_cli: RunCli, generated: Path, arguments: list[str], message: str
) -> None:
    outcome = run_cli("plot", "generation", "--results", generated, *arguments)
    assert outcome.exit_code == 2
    assert message in outcome.stderr


def test_what_nobody_can_compute_is_counted_and_not_drawn(run_cli: RunCli, generated: Path) -> None:
    lost = language_row("attention-360m", 1, 8, None, status="unsupported", contender="ours", reason="none of its own")
    _write(Store(generated), lost, "unsupported")
    outcome = run_cli("plot", "generation", "--results", generated, "--each")
    assert "Failed: 1 unsupported." in outcome.stdout
    assert outcome.stdout.count("by=sdpa-flash") == 3
    assert outcome.stdout.count("attention-360m") == 3
    for path in (generated / "throughput").iterdir():
        path.unlink()
    _write(Store(generated), lost, "unsupported")
    nothing = run_cli("plot", "generation", "--results", generated)
    assert nothing.exit_code == 2
    assert "there is nothing to draw" in nothing.stderr


def _write(store: Store, row: dict[str, Any], case_id: str) -> None:
    """Store a row of `language_row`."""
    known = {name: value for name, value in row.items() if name in THROUGHPUT.names}
    store.write("throughput", blank_row("throughput") | known | {"case_id": case_id})


def test_an_interval_without_an_upper_end_is_said_so(run_cli: RunCli, generated: Path) -> None:
    _write(Store(generated), language_row("mamba-360m", 1, 8, 2.0, ci_low_ms=-1.0, ci_high_ms=5.0), "wide")
    drawn = run_cli("plot", "generation", "--results", generated)
    assert drawn.exit_code == 0, drawn.stderr
    assert "over 200" in drawn.stdout
    assert "- -" not in drawn.stdout


def test_a_checkpoint_s_weights_are_timed_and_named(run: Any, run_cli: RunCli, tmp_path: Path, out: Path) -> None:
    config = preset("attention-360m", **SMALL)
    model = LanguageModel(config, dtype=torch.float32, seed=5)
    weights = tmp_path / "weights.bin"
    torch.save(released(model), weights)
    of_all = run("--checkpoint", weights)
    assert of_all.exit_code == 2
    assert "does not fit" in of_all.stderr
    assert "--filter" in of_all.stderr
    assert run("--checkpoint", tmp_path / "none", "--filter", "attention").exit_code == 2

    cases = "attention.*generation.*2x8"
    assert run("--filter", cases).exit_code == 0
    told = run("--filter", cases, "--checkpoint", weights)
    assert "1 of 1 cases to do" in told.stderr  # not the one with random weights
    assert "0 of 1 cases to do" in run("--filter", cases, "--checkpoint", weights).stderr
    random, loaded = (json.loads(text) for text in load(out, "throughput").sort_values("created_at")["config"])
    assert loaded == random | {"checkpoint": identify_checkpoint([config], weights)}
    assert set(load(out, "throughput")["status"]) == {"ok"}
    assert f"checkpoint={loaded['checkpoint']}" in run_cli("plot", "generation", "--results", out, "--batch", 2).stdout
    assert run_cli("compare", out, out).exit_code == 0

    operators = run_cli("throughput", "--suite", "quick-throughput", "--device", "cpu", "--checkpoint", weights)
    assert operators.exit_code == 2
    assert "whole models alone" in operators.stderr
