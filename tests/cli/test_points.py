"""`basedbench.points` gives what `basedbench plot pareto` draws."""

import json

import pandas as pd
import pytest

import basedbench
from basedbench.errors import warn
from basedbench.store import Store
from tests.cli.test_plot import RUNS, TIMINGS, recall_row

BEFORE, AFTER = ({"vocab_size": 128, "train": [{"length": length, "pairs": 4}]} for length in (64, 128))


@pytest.mark.parametrize(("x", "y"), [("state_bytes", "accuracy"), ("parameters", "accuracy@4")])
def test_the_points_are_those_that_the_figure_prints(run_cli, tmp_path, capsys, x, y):
    """Of an edited suite, with several learning rates and seeds, a failure, and a model that has no place."""
    store = Store(tmp_path)
    store.write("recall", recall_row(10, "based", {"feature_dim": 2}, 0.99, 16, task=BEFORE))
    for row in RUNS:
        store.write("recall", row | {"task": AFTER})
    store.write("recall", recall_row(11, "none", {}, 0.1, 0, task=AFTER, parameters=0))
    warn.cache_clear()
    points = basedbench.points(tmp_path, x, y, suites=["mine"])
    assert "1 row is left out: of another task that the suite mine had before" in capsys.readouterr().err
    if x == "state_bytes":
        based = points[points["config"] == '{"feature_dim": 16}']
        assert based["accuracy"].tolist() == [0.9], "of two learning rates"
        assert points.loc[points["frontier"], "accuracy"].tolist() == [0.5, 0.9, 1.0]
    check_same(
        points, run_cli("plot", "pareto", "--results", tmp_path, "--suite", "mine", "--x", x, "--y", y, "--json")
    )


def test_so_are_those_of_several_suites(run_cli, tmp_path):
    store = Store(tmp_path)
    for row in RUNS:
        store.write("recall", row | {"suite": "theirs" if row["mixer"] == "based" else "mine"})
    check_same(basedbench.points(tmp_path), run_cli("plot", "pareto", "--results", tmp_path, "--json"))


def test_what_cannot_be_drawn_is_refused_in_the_same_words(run_cli, tmp_path):
    store = Store(tmp_path)
    store.write("recall", RUNS[0])
    store.write("recall", RUNS[1] | {"suite": "other", "vocab_size": 64})
    store.write("throughput", TIMINGS[0])
    for arguments in ([], ["--x", "decode_tokens_per_s", "--suite", "mine"]):
        with pytest.raises(basedbench.UserError) as refused:
            basedbench.points(tmp_path, *arguments[1:2], suites=arguments[3:])
        assert str(refused.value) in " ".join(
            run_cli("plot", "pareto", "--results", tmp_path, *arguments).stderr.split()
        )


def check_same(points, drawn):
    printed = pd.DataFrame(json.loads(drawn.stdout)["points"])
    assert len(points) == len(printed)
    for name in set(points.columns) & set(printed.columns) - {"config"}:
        found = points[name].reset_index(drop=True)
        pd.testing.assert_series_equal(found, printed[name], check_dtype=False, check_exact=True)
