"""Guesses at a run's time: against the steps that were measured, and what they grow with."""

from dataclasses import replace
from pathlib import Path

import pytest

from basedbench.config import load_suite
from basedbench.store.dataset import rows
from basedbench.training.cases import RecallCase, recall_cases
from basedbench.training.cost import GPU, TIMED, estimate
from tests.training.conftest import tiny_suite

REFERENCE = Path(__file__).parents[2] / "results" / "reference"
BASED = next(
    case for case in recall_cases(load_suite("figure2")) if case.model_label == "based d_model=64 feature_dim=16"
)
# docs/log/trainer.md: ms per step of based (64, 16) with 256 sequences.
MEASURED = {
    "fp32": {(64, 4): 0.37, (128, 8): 0.58, (256, 16): 1.04, (256, 64): 1.64},
    "bf16": {(64, 4): 0.150, (128, 8): 0.228, (256, 16): 0.370, (256, 64): 0.533},
}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_steps_take_what_was_measured(precision: str) -> None:
    step = GPU[precision]
    for (length, pairs), measured in MEASURED[precision].items():
        fitted = step.fixed_ms + 256 * (length * step.token_ns + pairs * step.question_ns) * 1e-6
        assert fitted == pytest.approx(measured, rel=0.04)


def at(case: RecallCase, **train: object) -> RecallCase:
    return replace(case, train=case.train.model_copy(update=train))


def at_bf16(case: RecallCase) -> RecallCase:
    return at(case, precision="bf16")


def test_a_run_of_based_is_near_its_row() -> None:
    """19.6 s in fp32, an earlier form; 6.4 s in bf16 without compiling."""
    fp32, half = estimate(BASED, "cuda:0"), estimate(at(BASED, precision="bf16"), "cuda:0")
    assert 10 < fp32.seconds < 25
    assert 4 < half.seconds < 10
    assert not fp32.guessed
    assert not half.guessed


def test_the_quick_suite_takes_about_as_long_as_its_rows() -> None:
    """Seconds a run in results/reference/cpu, of runs that did not stop early."""
    known = {"based": 2.39, "linear_attention": 2.44, "sliding_window": 3.35, "mamba2": 4.15, "mamba": 7.08}
    for case in recall_cases(load_suite("quick")):
        guess = estimate(case, "cpu")
        assert not guess.guessed
        if case.mixer in known:
            assert known[case.mixer] / 2 < guess.seconds < 2 * known[case.mixer]


def test_time_grows_with_epochs_width_and_evaluation() -> None:
    seconds = estimate(BASED, "cuda:0").seconds
    assert estimate(at(BASED, epochs=64), "cuda:0").seconds == pytest.approx(2 * seconds)
    assert seconds < estimate(replace(BASED, d_model=128), "cuda:0").seconds < 2 * seconds
    judged = replace(BASED, test=BASED.test.model_copy(update={"select": "validation"}))
    assert seconds < estimate(judged, "cuda:0").seconds < 1.2 * seconds


def test_runs_on_a_gpu_take_about_as_long_as_their_rows() -> None:
    """Those of figure2 in bf16 that did not stop early, on an H100."""
    cases = {case.case_id: case for case in map(at_bf16, recall_cases(load_suite("figure2")))}
    stored = [row for row in rows(REFERENCE / "h100", "recall") if row["stop_reason"] == "epochs"]
    known = [row for row in stored if row["case_id"] in cases]
    ratios = [row["train_s"] / estimate(cases[row["case_id"]], "cuda:0").seconds for row in known]
    assert len(ratios) > 100
    assert min(ratios) > 0.4
    assert max(ratios) < 2.5


def test_a_mixer_that_was_never_timed_is_a_guess() -> None:
    case = recall_cases(tiny_suite([{"mixer": "rwkv4", "grid": {"d_model": 64}}]))[0]
    assert estimate(case, "cuda:0").guessed
    assert estimate(case, "cpu").guessed
    assert "rwkv4" not in TIMED["gpu"] | TIMED["cpu"]
