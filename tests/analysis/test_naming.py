"""Labels tell the points of a family apart, in as few letters as will do."""

import json

import pandas as pd
import pytest

from basedbench.analysis.naming import family_title, point_labels


def labels(*models, **more):
    rows = [{"family": family, "d_model": d_model, "config": json.dumps(config)} for family, d_model, config in models]
    return point_labels(pd.DataFrame(rows), **more).tolist()


@pytest.mark.parametrize(
    ("name", "title"),
    [
        *(("sliding_window", "Sliding window"), ("mamba2", "Mamba-2"), ("my_mixer", "My mixer"), ("gla", "GLA")),
        *(
            ("linear_attention/all_poly", "Linear attention, All poly"),
            ("linear_attention/relu", "Linear attention, ReLU"),
        ),
    ],
)
def test_titles(name, title):
    assert family_title(name) == title


def test_width_and_size_are_named_and_constants_are_not():
    based = [("based", d, {"feature_dim": f, "heads": 1}) for d, f in ((64, 8), (64, 16), (128, 16))]
    assert labels(*based) == ["d64 f8", "d64 f16", "d128 f16"]


def test_a_shared_width_is_left_out_unless_asked_for():
    windows = [("sliding_window", 128, {"window": w}) for w in (8, 64)]
    assert labels(*windows) == ["w8", "w64"]
    assert labels(*windows, always_width=True) == ["d128 w8", "d128 w64"]
    assert labels(("attention", 64, {"heads": 1})) == ["d64"]


def test_what_varies_is_named():
    mixed = [("based", 64, {"feature_dim": 16, "heads": h, "feature_map": m}) for h, m in ((1, "taylor"), (2, "relu"))]
    assert labels(*mixed) == ["f16 h1 taylor", "f16 h2 relu"]
    assert labels(("own", 64, {"rank": 4}), ("own", 64, {"rank": 8, "decay": 0.25})) == ["rank=4", "rank=8 decay=0.25"]


def test_a_part_that_no_model_has_is_not_named():
    assert labels(*[("based", 64, {"feature_dim": f, "window": 0}) for f in (8, 16)]) == ["f8", "f16"]
    assert labels(*[("based", 64, {"feature_dim": 8, "window": w}) for w in (0, 64)]) == ["f8 w0", "f8 w64"]


def test_one_familys_options_do_not_name_anothers():
    assert labels(("a", 64, {"heads": 1}), ("b", 64, {"heads": 2})) == ["d64", "d64"]


def test_learning_rates_tell_points_of_one_model_apart():
    rows = [{"family": "based", "d_model": 64, "config": "{}", "learning_rate": rate} for rate in (1e-3, 10**-2.5)]
    assert point_labels(pd.DataFrame(rows)).tolist() == ["lr 0.001", "lr 0.00316"]


def test_a_suite_is_named_only_where_nothing_else_tells_points_apart():
    own = {"family": "mamba", "d_model": 64, "config": "{}"}
    rows = [own | {"init": init, "suite": suite} for init, suite in (("published", "a"), ("correct", "b"))]
    assert point_labels(pd.DataFrame(rows)).tolist() == ["published", "correct"]
    assert point_labels(pd.DataFrame(rows).drop(columns="init")).tolist() == ["a", "b"]


def test_labels_stand_on_the_points_index():
    frame = pd.DataFrame({"family": ["b", "a", "b"], "d_model": [1, 2, 3], "config": "{}"}, index=[7, 5, 6])
    assert point_labels(frame).to_dict() == {7: "d1", 5: "d2", 6: "d3"}
