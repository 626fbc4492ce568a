"""The published points against the formulas of their byte counts, and the comparison with them."""

import numpy as np
import pandas as pd
import pytest

from basedbench.analysis import against_published, published
from basedbench.analysis.published import SLICES, check_comparable
from basedbench.errors import UserError

KNOWN = published().set_index(["family", "label"])


@pytest.mark.parametrize("d_model", [48, 64, 128])
@pytest.mark.parametrize("feature_dim", [8, 16, 24])
def test_based_bytes(d_model, feature_dim):
    features = feature_dim * (feature_dim + 1) // 2 + feature_dim + 1
    point = KNOWN.loc[("based", f"d{d_model} f{feature_dim}")]
    assert point["state_bytes_paper"] == 4 * features * (d_model + 1)
    assert point["state_bytes_zoology"] == 4 * features * (d_model + 1) + 4 * 3 * d_model


@pytest.mark.parametrize("d_model", [64, 128, 256])
@pytest.mark.parametrize(
    ("family", "elements"), [("delta_net", 1 / 2), ("gated_delta_net", 1), ("gla", 1 / 4), ("rwkv7", None)]
)
def test_bytes_of_the_later_mixers(family, elements, d_model):
    point = KNOWN.loc[(family, f"d{d_model}")]
    mixer = 64 * d_model if elements is None else elements * d_model**2
    assert point["state_bytes_zoology"] == 4 * mixer + 4 * 3 * d_model
    assert np.isnan(point["state_bytes_paper"])


def test_window_and_attention_bytes():
    assert KNOWN.loc[("sliding_window", "w64"), "state_bytes_zoology"] == 4 * (2 * 128 * 64 + 3 * 128)
    assert KNOWN.loc[("sliding_window", "w64"), "state_bytes_paper"] == 8 * 64 * 128
    assert KNOWN.loc[("attention", "d64"), "state_bytes_zoology"] == 4 * (2 * 64 * 1024 + 3 * 64)
    assert KNOWN.loc[("attention", "d64"), "state_bytes_paper"] == 8 * 64 * 1024


def test_accuracies_rise_with_the_window_and_are_accuracies():
    windows = published().query("family == 'sliding_window'")
    assert windows["accuracy"].is_monotonic_increasing
    assert published()["accuracy"].between(0, 1).all()
    assert len(published()) == 9 + 2 + 8 + 7 + 4 + 3 + 3 + 4 * 3


def test_comparison_pairs_points_by_family_and_bytes():
    points = pd.DataFrame(
        {
            "family": ["based", "based", "mamba2", "mamba2", "mine"],
            "init": ["correct", "correct", "published", "correct", "correct"],
            "state_bytes_zoology": [40_548.0, 40_549.0, 16_384.0, 16_384.0, 40_548.0],
            "accuracy": [0.9, 0.9, 0.7, 0.7, 0.9],
        }
    )
    compared = against_published(points)
    np.testing.assert_array_equal(compared["published"], [0.912, np.nan, 0.690, np.nan, np.nan])
    np.testing.assert_allclose(compared["difference"], [-0.012, np.nan, 0.010, np.nan, np.nan])


def test_a_published_point_stands_beside_the_best_model_of_its_size():
    points = pd.DataFrame(
        {
            "family": "mamba",
            "init": "published",
            "precision": ["bf16", "bf16", "bf16", "fp32"],
            "d_model": [64, 128, 64, 128],
            "state_bytes_zoology": [16_384, 16_384, 24_576, 16_384],
            "accuracy": [0.7, 0.6, 0.5, 0.65],
        }
    )
    compared = against_published(points)
    np.testing.assert_array_equal(compared["published"], [0.695, np.nan, 0.697, 0.695])
    np.testing.assert_allclose(compared["difference"], [0.005, np.nan, -0.197, -0.045])


def frame(slices):
    return pd.DataFrame({"accuracy_by_slice": [{f"{length}x{pairs}": 0.5 for length, pairs in slices}]})


def test_only_the_same_test_is_comparable():
    check_comparable(frame(SLICES), "state_bytes_paper", "accuracy")
    with pytest.raises(UserError, match="were tested on 32x4"):
        check_comparable(frame([(32, 4)]), "state_bytes_paper", "accuracy")
    with pytest.raises(UserError, match="use --x state_bytes_zoology"):
        check_comparable(frame(SLICES), "state_bytes", "accuracy")
    with pytest.raises(UserError, match="not as accuracy@256"):
        check_comparable(frame(SLICES), "state_bytes_paper", "accuracy@256")
