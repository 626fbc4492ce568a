"""From runs to points: which learning rate is chosen, what becomes of seeds and failures, and what is said of it."""

import numpy as np
import pandas as pd
import pytest

from basedbench.analysis import select, selection_note
from basedbench.analysis.intervals import t_interval
from basedbench.errors import UserError


def run(learning_rate, seed, accuracy, **more):
    return {
        "suite": "s",
        "family": "based",
        "mixer": "based",
        "config": '{"feature_dim": 16}',
        "d_model": 64,
        "init": None,
        "select_split": "test",
        "learning_rate": learning_rate,
        "seed": seed,
        "status": "ok",
        "accuracy": accuracy,
        "validation_accuracy": np.nan,
        "state_bytes": 1000,
        "train_s": 1.0,
    } | more


def frame(*runs):
    return pd.DataFrame(list(runs))


def test_the_best_rate_is_that_with_the_largest_mean_over_seeds():
    lucky = [run(1e-2, 0, 0.9), run(1e-2, 1, 0.1)]
    steady = [run(1e-3, 0, 0.6), run(1e-3, 1, 0.7)]
    (point,) = select(frame(*lucky, *steady)).to_dict("records")
    assert point["learning_rate"] == 1e-3
    assert point["accuracy"] == pytest.approx(0.65)
    assert (point["accuracy_low"], point["accuracy_high"]) == pytest.approx(t_interval([0.6, 0.7]))
    assert (point["seeds"], point["learning_rates"], point["diverged"]) == (2, 2, 0)


def test_one_seed_has_no_interval():
    (point,) = select(frame(run(1e-2, 0, 0.9))).to_dict("records")
    assert np.isnan(point["accuracy_low"])
    assert np.isnan(point["accuracy_high"])


def test_a_diverged_run_counts_as_tried_and_as_zero():
    fragile = [run(1e-2, 0, 0.9), run(1e-2, 1, np.nan, status="diverged")]
    steady = [run(1e-3, 0, 0.5), run(1e-3, 1, 0.5)]
    hopeless = [run(1e-1, 0, 0.99, status="diverged")]
    (point,) = select(frame(*fragile, *steady, *hopeless)).to_dict("records")
    assert (point["learning_rate"], point["learning_rates"], point["diverged"]) == (1e-3, 3, 0)
    (point,) = select(frame(*fragile, *hopeless)).to_dict("records")
    assert (point["learning_rate"], point["accuracy"], point["seeds"], point["diverged"]) == (1e-2, 0.9, 1, 1)


def test_other_failures_say_nothing_of_the_model():
    lost = [run(1e-1, 0, np.nan, status=status) for status in ("oom", "crashed", "timeout")]
    (point,) = select(frame(run(1e-2, 0, 0.9), *lost)).to_dict("records")
    assert (point["learning_rates"], point["seeds"]) == (1, 1)


def test_a_model_without_a_finished_run_has_no_point():
    points = select(frame(run(1e-2, 0, 0.9, status="diverged")))
    assert points.empty
    assert {"accuracy", "accuracy_low", "state_bytes"} <= set(points.columns)


def test_models_differ_by_everything_but_rate_and_seed():
    base = run(1e-2, 0, 0.5)
    others = {
        "suite": "t",
        "mixer": "mamba",
        "config": '{"feature_dim": 8}',
        "d_model": 128,
        "init": "correct",
    }
    runs = [base | {name: value} for name, value in others.items()]
    assert len(select(frame(base, *runs))) == 1 + len(others)
    same = [base | {"seed": 1}, base | {"learning_rate": 1e-3}]
    assert len(select(frame(base, *same))) == 1


def test_suites_that_ask_for_the_same_are_one_experiment():
    asked = {"task": "{}", "recipe": '{"epochs": 32}'}
    shared = [run(1e-2, 0, 0.5, suite=suite, case_id="a", **asked) for suite in ("parity", "figure2")]
    more = run(1e-2, 1, 0.8, suite="parity", case_id="b", **asked)
    (point,) = select(frame(*shared, more)).to_dict("records")
    assert (point["suite"], point["seeds"], point["accuracy"]) == ("figure2", 2, pytest.approx(0.65))
    other = more | {"recipe": '{"epochs": 64}', "case_id": "c"}
    assert select(frame(*shared, other))["suite"].tolist() == ["figure2", "parity"]
    untold = [one | {"recipe": None} for one in (*shared, more)]  # rows of earlier versions
    assert sorted(select(frame(*untold))["seeds"]) == [1, 2]


@pytest.mark.parametrize("suites", [("figure2", "parity"), ("parity", "figure2")])
def test_of_a_run_that_suites_share_the_newest_row_counts(suites):
    asked = {"task": "{}", "recipe": '{"epochs": 32}', "case_id": "a"}
    old, new = (
        run(1e-2, 0, accuracy, suite=suite, **asked) for suite, accuracy in zip(suites, (0.5, 0.7), strict=True)
    )
    assert select(frame(old, new))["accuracy"].tolist() == [0.7]


def test_selection_on_the_validation_split():
    chosen = run(1e-3, 0, 0.6, select_split="validation", validation_accuracy=0.9)
    better_on_test = run(1e-2, 0, 0.8, select_split="validation", validation_accuracy=0.7)
    points = select(frame(chosen, better_on_test))
    assert points["accuracy"].tolist() == [0.6]
    assert "chosen on the validation split" in selection_note(points)


def test_without_any_validation_accuracy_the_test_split_chooses_and_the_note_says_so():
    runs = [run(rate, seed, rate, select_split="validation") for rate in (1e-3, 1e-2) for seed in (0, 1)]
    for rows in (frame(*runs), frame(*runs).drop(columns="validation_accuracy")):
        points = select(rows)
        assert (points["learning_rate"].tolist(), points["by_seed"].tolist()) == ([1e-2], [1e-2])
        assert "chosen on the test split" in selection_note(points)


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("missing", [1e-3, 1e-2])
def test_a_rate_without_a_score_is_not_chosen_whatever_the_order(order, missing):
    known = 1e-3 + 1e-2 - missing
    runs = [run(missing, seed, 0.9, select_split="validation") for seed in (0, 1)]
    runs += [run(known, seed, 0.5, select_split="validation", validation_accuracy=0.5) for seed in (0, 1)]
    (point,) = select(frame(*runs[::order])).to_dict("records")
    assert (point["learning_rate"], point["select_split"]) == (pytest.approx(known), "validation")
    assert np.isnan(point["by_seed"])  # no seed has a score at all rates


def test_all_keeps_every_learning_rate():
    points = select(frame(run(1e-3, 0, 0.4), run(1e-2, 0, 0.9), run(1e-2, 1, 0.7)), how="all")
    assert dict(zip(points["learning_rate"], points["accuracy"], strict=True)) == pytest.approx({1e-3: 0.4, 1e-2: 0.8})


def test_metrics_are_means_over_the_seeds_of_the_chosen_rate():
    runs = [
        run(1e-2, 0, 0.9, train_s=2.0, accuracy_by_slice={"64x4": 1.0}),
        run(1e-2, 1, 0.7, train_s=4.0, accuracy_by_slice={"64x4": 0.5}),
        run(1e-3, 0, 0.1, train_s=100.0, accuracy_by_slice={"64x4": 0.0}),
    ]
    (point,) = select(frame(*runs), ["train_s", "accuracy@4"]).to_dict("records")
    assert (point["train_s"], point["accuracy@4"]) == (3.0, 0.75)


def test_unknown_selection():
    with pytest.raises(UserError, match="did you mean 'best-lr'"):
        select(frame(run(1e-2, 0, 0.9)), how="best")


@pytest.mark.parametrize(
    ("runs", "how", "note"),
    [
        ([run(1e-2, 0, 0.9)], "best-lr", "One learning rate per model; one seed."),
        (
            [run(rate, seed, 0.9) for rate in (1e-3, 1e-2) for seed in (0, 1, 2)],
            "best-lr",
            "Best of 2 learning rates per model, chosen on the test split; mean of 3 seeds, bars: 95% t-intervals.",
        ),
        (
            [run(1e-2, 0, 0.9), run(1e-2, 1, 0.9), run(1e-2, 0, 0.5, d_model=128), run(1e-3, 0, 0.4, d_model=128)],
            "best-lr",
            "Best of 1 to 2 learning rates per model, chosen on the test split; "
            "mean of 1 to 2 seeds, bars: 95% t-intervals where there are several.",
        ),
        ([run(1e-2, 0, 0.9), run(1e-3, 0, 0.9)], "all", "Every learning rate is a point; one seed."),
    ],
)
def test_note(runs, how, note):
    assert selection_note(select(frame(*runs), how=how), how) == note
