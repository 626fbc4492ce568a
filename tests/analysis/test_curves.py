"""Learning curves: whose they are, what several seeds and early stops make of them, and when they are halfway."""

import math
from pathlib import Path

import pandas as pd
import pytest

from basedbench.analysis import select
from basedbench.analysis.curves import curves, curves_note, halfway
from basedbench.analysis.suites import rows_for_figure
from basedbench.errors import UserError
from basedbench.store import load

REFERENCE = Path(__file__).parents[2] / "results" / "reference"


def run(learning_rate, seed, by_epoch, **more):
    return {
        "suite": "s",
        "family": "based",
        "mixer": "based",
        "config": "{}",
        "d_model": 64,
        "learning_rate": learning_rate,
        "seed": seed,
        "epochs": 4,
        "steps": 10 * len(by_epoch),
        "status": "ok",
        "stop_reason": "epochs" if len(by_epoch) == 4 else "accuracy above 0.99",
        "accuracy": by_epoch[-1],
        "accuracy_by_epoch": by_epoch,
        "loss_by_epoch": [8 - 8 * one for one in by_epoch],
        "accuracy_by_slice": {"64x4": by_epoch[-1]},
        "accuracy_by_slice_by_epoch": {"64x4": by_epoch},
        "validation_accuracy": None,
        "state_bytes": 1000,
        "vocab_size": 8192,
    } | more


def only(*runs, y="accuracy"):
    (point,) = curves(pd.DataFrame(runs), y).to_dict("records")
    return point


def test_a_curve_is_the_mean_of_the_seeds_at_the_best_rate_with_their_ends():
    point = only(
        run(0.01, 0, [0.0, 0.2, 0.4, 0.5]),
        run(0.01, 1, [0.2, 0.2, 0.6, 0.9]),
        run(0.1, 0, [0.6, 0.6, 0.6, 0.6]),
    )
    assert point["learning_rate"] == 0.01
    assert point["mean"] == pytest.approx([0.1, 0.2, 0.5, 0.7])
    assert (point["low"], point["high"]) == ([0.0, 0.2, 0.4, 0.5], [0.2, 0.2, 0.6, 0.9])
    assert (point["stopped"], point["held"], point["steps_per_epoch"]) == (False, False, 10)


def test_one_seed_has_no_band():
    point = only(run(0.01, 0, [0.0, 0.2, 0.4, 0.5]))
    assert (point["low"], point["high"]) == (None, None)


def test_the_last_value_of_a_seed_that_stopped_early_counts_on():
    frame = pd.DataFrame([run(0.01, 0, [0.5, 1.0]), run(0.01, 1, [0.1, 0.2, 0.3, 0.4])])
    points = curves(frame)
    (point,) = points.to_dict("records")
    assert point["mean"] == pytest.approx([0.3, 0.6, 0.65, 0.7])
    assert point["mean"][-1] == pytest.approx(point["accuracy"])  # as every other figure has it
    assert (point["stopped"], point["held"]) == (False, True)
    assert "The last value of a seed that stopped early counts on." in curves_note(points, frame)


def test_a_model_all_of_whose_seeds_stopped_early_is_told():
    frame = pd.DataFrame([run(0.01, 0, [0.5, 1.0]), run(0.01, 1, [0.1, 0.9, 1.0])])
    points = curves(frame)
    assert points["stopped"].tolist() == [True]
    assert len(points["mean"].iloc[0]) == 3
    assert "stopped early (accuracy above 0.99)" in curves_note(points, frame)
    assert "stopped early" not in curves_note(curves(frame.assign(epochs=3)[1:]), frame[1:])


def test_diverged_and_failed_runs_bend_no_curve():
    lost = [run(0.01, 1, [0.3], status="diverged"), run(0.01, 2, [0.4], status="oom")]
    point = only(run(0.01, 0, [0.0, 0.2, 0.4, 0.5]), *lost)
    assert point["mean"] == [0.0, 0.2, 0.4, 0.5]
    assert (point["seeds"], point["diverged"]) == (1, 1)


def test_the_measures_are_columns_of_the_rows():
    row = run(0.01, 0, [0.0, 0.5, 0.5, 1.0], accuracy_by_slice_by_epoch={"64x4": [0.25, 0.5, 0.75, 1.0]})
    assert only(row, y="loss")["mean"] == [8, 4, 4, 0]
    for y in ("accuracy@4", "accuracy@64x4"):
        assert only(row, y=y)["mean"] == [0.25, 0.5, 0.75, 1.0]


@pytest.mark.parametrize(
    ("y", "said"),
    [("accurate", "did you mean 'accuracy'"), ("accuracy@9", "no row was tested on"), ("state_bytes", "no curve")],
)
def test_a_measure_that_is_not_there(y, said):
    with pytest.raises(UserError, match=said):
        curves(pd.DataFrame([run(0.01, 0, [0.5])]), y)


@pytest.mark.parametrize("nothing", [None, [], [None], [math.nan]])
def test_rows_without_curves(nothing):
    old, new = run(0.01, 0, [0.5], accuracy_by_epoch=nothing), run(0.01, 0, [0.1, 0.5], d_model=128)
    assert [mean is None for mean in curves(pd.DataFrame([old, new]))["mean"]] == [True, False]
    with pytest.raises(UserError, match="no accuracy by epoch, so there is nothing to draw"):
        curves(pd.DataFrame([old]))


def test_an_epoch_without_a_number_is_a_gap():
    mean = only(run(0.01, 0, [0.5]) | {"accuracy_by_epoch": [0.0, None, 0.4, 0.5]})["mean"]
    assert (mean[0], mean[2:]) == (0.0, [0.4, 0.5])
    assert math.isnan(mean[1])


@pytest.mark.parametrize(
    ("curve", "y", "vocabulary", "epoch"),
    [
        ([0.0, 0.01, 0.39, 0.4, 0.8], "accuracy", 8192, 4),
        ([0.8, 0.8], "accuracy", 8192, 1),
        ([0.0, 0.0], "accuracy", 8192, None),
        ([0.2, math.nan], "accuracy", 8192, None),
        ([math.nan, 0.2], "accuracy", 8192, 2),
        ([9.0, 5.1, 4.9, 1.0], "loss", math.exp(9), 3),
        ([9.5, 9.1], "loss", math.exp(9), None),
        ([5.0, 1.0], "loss", math.nan, None),
        (None, "accuracy", 8192, None),
    ],
)
def test_halfway_from_chance_to_the_last_value(curve, y, vocabulary, epoch):
    assert halfway(curve, y, vocabulary) == epoch


@pytest.mark.parametrize(("device", "suite"), [("h200", "figure2"), ("cpu", "quick")])
def test_curves_of_the_reference_end_where_other_figures_have_their_points(device, suite):
    frame = rows_for_figure(load(REFERENCE / device, "recall", understood=True), [suite])
    points, known = curves(frame), select(frame)
    assert [mean[-1] for mean in points["mean"]] == pytest.approx(known["accuracy"].tolist())
    pd.testing.assert_frame_equal(points[known.columns], known)
    early = [len(mean) < epochs for mean, epochs in zip(points["mean"], points["epochs"], strict=True)]
    assert points["stopped"].tolist() == early
    assert any(early)
    assert points["steps_per_epoch"].nunique() == 1
