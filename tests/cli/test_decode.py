"""`basedbench throughput --models` and the plot that needs it."""

import json
from pathlib import Path

import pytest

from basedbench.store import load
from basedbench.timing import decode
from basedbench.timing.samples import Round
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


def test_stopped_in_between_it_stores_what_it_can_and_names_the_rest(
    run_cli: RunCli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    class Stopped:
        """A worker of three models that is stopped in the fourth round, before the last model's turn."""

        def __init__(self, *_: object) -> None:
            pass

        def ask(self, what: str, *_: object, limit_s: float) -> object:
            asked.append(what)
            if asked.count("round") == 12:
                raise KeyboardInterrupt
            return Round([1.0] * 5, []) if what == "round" else {"status": "ok"}

        def stop(self) -> None:
            pass

    monkeypatch.setattr(decode, "Worker", Stopped)
    monkeypatch.setattr(decode, "FEWEST_ROUNDS", 4)
    monkeypatch.setattr(decode.random.Random, "shuffle", lambda self, order: order.sort())
    command = ("throughput", "--models", "smoke", "--device", "cpu", "--out", tmp_path)
    outcome = run_cli(*command)
    assert outcome.exit_code == 130
    frame = load(tmp_path, "throughput")
    assert set(frame["stop_reason"]) == {"stopped after 4 of 15 rounds"}
    assert "2 of 3 models have a row of the rounds so far; the same command begins anew" in outcome.stderr
    (lost,) = [line for line in outcome.stderr.splitlines() if line.startswith("Lost, with fewer than 4 rounds: ")]
    assert lost.partition(": ")[2] in run_cli(*command, "--dry-run").stdout.splitlines()
    assert len(frame) == 2
    assert "tokens/s" in outcome.stdout


def test_a_time_limit_ends_it_in_time_as_if_done(run_cli: RunCli, tmp_path: Path) -> None:
    limit = ("--rounds", 10**6, "--time-limit", "4s")
    outcome = run_cli("throughput", "--models", "smoke", "--device", "cpu", "--out", tmp_path, *limit)
    assert outcome.exit_code == 0
    assert "The time is up: 3 of 3 models have a row" in outcome.stderr
    assert load(tmp_path, "throughput")["rounds"].between(3, 10**6 - 1).all()


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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--batch", 3), "--batch goes with --models alone"),
        (("--models", "smoke", "--batch", 2**31), "--batch takes whole numbers from 1 to"),
        (("--cross-check",), "--cross-check asks tools that time GPUs"),
        (("--plugin", "mixers.py"), "only mixers are registered"),
        (("--plugin", "contenders.py", "--models", "smoke"), "no mixer is registered"),
    ],
)
@pytest.mark.usefixtures("own_registries")
def test_what_would_be_ignored_is_refused(
    run_cli: RunCli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[object, ...], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mixers.py").write_text(
        "from basedbench.mixers import Mixer, register\nregister(type('Mine', (Mixer,), {'name': 'mine'}))"
    )
    (tmp_path / "contenders.py").write_text(
        "from basedbench.contenders import contender\ncontender('ssd', name='mine')(len)"
    )
    outcome = run_cli("throughput", "--device", "cpu", *arguments)
    assert outcome.exit_code == 2
    assert message in outcome.stderr
    assert not (tmp_path / "results").exists()
