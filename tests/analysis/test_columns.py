"""Numbers by name: columns and slices, which direction is better, and what is said of unknown names."""

import numpy as np
import pandas as pd
import pytest

from basedbench.analysis import check_accuracy, larger_is_better, numbers, slices
from basedbench.errors import UserError

FRAME = pd.DataFrame(
    {
        "mixer": ["based", "mamba", "h3"],
        "state_bytes": [8, 16, 32],
        "accuracy": [0.5, 0.6, 0.7],
        "graph": [True, False, True],
        "accuracy_by_slice": [{"64x4": 0.9, "128x8": 0.5, "64x8": 0.4}, {"64x4": 0.8}, None],
    },
    index=[5, 3, 4],
)


@pytest.mark.parametrize("name", ["accuracy", "accuracy@64x4", "validation_accuracy", "decode_tokens_per_s"])
def test_larger_is_better(name):
    assert larger_is_better(name)


@pytest.mark.parametrize("name", ["state_bytes", "parameters", "train_s", "median_ms", "peak_memory_bytes"])
def test_smaller_is_better(name):
    assert not larger_is_better(name)


def test_a_column_comes_as_floats_on_the_same_index():
    values = numbers(FRAME, "state_bytes")
    assert values.dtype == "float64"
    assert values.to_dict() == {5: 8.0, 3: 16.0, 4: 32.0}


def test_slices_are_ordered_by_pairs_then_length():
    assert slices(FRAME) == [(64, 4), (64, 8), (128, 8)]


def test_accuracy_of_a_slice():
    np.testing.assert_array_equal(numbers(FRAME, "accuracy@64x4"), [0.9, 0.8, np.nan])
    np.testing.assert_array_equal(numbers(FRAME, "accuracy@64x8"), [0.4, np.nan, np.nan])


def test_accuracy_at_pairs_takes_the_longest_slice():
    np.testing.assert_array_equal(numbers(FRAME, "accuracy@8"), [0.5, np.nan, np.nan])


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("state_bites", "did you mean 'state_bytes'"),
        ("acuracy", "did you mean 'accuracy'"),
        ("accuracy@16", "there are accuracy@64x4, accuracy@64x8, accuracy@128x8"),
        ("accuracy@256x4", "there are accuracy@64x4"),
        ("mixer", "does not hold numbers"),
        ("graph", "does not hold numbers"),
        ("decode_tokens_per_s", "throughput rows of the same mixers .mode decode"),
        ("tokens_per_s", "throughput rows of the same mixers"),
    ],
)
def test_unknown_names(name, said):
    with pytest.raises(UserError, match=said):
        numbers(FRAME, name)


def test_rows_without_slices():
    assert slices(FRAME.drop(columns="accuracy_by_slice")) == []
    with pytest.raises(UserError, match="no slices at all"):
        numbers(FRAME.drop(columns="accuracy_by_slice"), "accuracy@4")


def test_only_accuracies_pass_as_accuracies():
    check_accuracy(FRAME, "accuracy@4")
    with pytest.raises(UserError, match="'state_bytes' is no accuracy: valid: accuracy, accuracy@K"):
        check_accuracy(FRAME, "state_bytes")
