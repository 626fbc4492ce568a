import math
from itertools import pairwise

import pytest

from basedbench.config import case_id, expand_grid
from basedbench.config.grid import axis_values


def test_grid_is_the_product_with_the_last_key_fastest() -> None:
    assert expand_grid({"a": [1, 2], "b": [3, 4]}) == [
        {"a": 1, "b": 3},
        {"a": 1, "b": 4},
        {"a": 2, "b": 3},
        {"a": 2, "b": 4},
    ]


def test_scalars_and_series() -> None:
    assert expand_grid({"d_model": 64, "window": {"powers_of_two": [8, 64]}}) == [
        {"d_model": 64, "window": window} for window in (8, 16, 32, 64)
    ]


def test_logspace_is_even_in_the_exponent() -> None:
    rates = [setting["lr"] for setting in expand_grid({"lr": {"logspace": [-3, -1.5, 4]}})]
    assert rates[0] == 0.001
    assert [math.log10(rate) for rate in rates] == pytest.approx([-3, -2.5, -2, -1.5], abs=1e-5)


@pytest.mark.parametrize("count", [1, 2, 3, 10, 31])
def test_logspace_of_any_length(count: int) -> None:
    rates = [setting["lr"] for setting in expand_grid({"lr": {"logspace": [-3.5, -1.25, count]}})]
    assert len(set(rates)) == count
    assert rates == sorted(rates)
    assert rates[0] == pytest.approx(10**-3.5, rel=1e-5)
    if count > 1:
        assert rates[-1] == pytest.approx(10**-1.25, rel=1e-5)
        steps = [math.log10(b / a) for a, b in pairwise(rates)]
        assert steps == pytest.approx([2.25 / (count - 1)] * (count - 1), abs=1e-5)


def test_learning_rates_of_a_logspace_are_given_by_exponents() -> None:
    with pytest.raises(ValueError, match=r"learning_rates: logspace takes exponents of ten, -3 for 0\.001"):
        axis_values("learning_rates", {"logspace": [0.001, 0.03, 4]})
    assert axis_values("learning_rates", {"logspace": [-3, 0, 2]}) == [0.001, 1]


def test_whole_numbers_of_a_logspace_are_whole() -> None:
    """Models are named after them."""
    assert [str(setting["n"]) for setting in expand_grid({"n": {"logspace": [0, 2, 3]}})] == ["1", "10", "100"]
    assert [str(setting["n"]) for setting in expand_grid({"n": {"logspace": [-1, 0.5, 2]}})] == ["0.1", "3.16228"]


def test_a_denser_logspace_holds_the_same_numbers() -> None:
    """Equal runs are found by their learning rate."""
    coarse, dense = (
        {setting["lr"] for setting in expand_grid({"lr": {"logspace": [-3, -1.5, count]}})} for count in (4, 10)
    )
    assert coarse < dense


@pytest.mark.parametrize(
    "grid",
    [
        {"a": []},
        {"a": {"logspace": [1, 2]}},
        {"a": {"powers_of_two": [3, 8]}},
        {"a": {"powers_of_two": [16, 8]}},
        {"a": {"linspace": [1, 2, 3]}},
        {"a": {"logspace": [1, 2, 0]}},
        {"a": {"logspace": [1, 2, 2.5]}},
        {"a": {"logspace": [1, 2, 10**11]}},
        {"a": {"logspace": [-4000, 2000, 3]}},
        {"a": {"logspace": [True, True, True]}},
        {"a": {"powers_of_two": [True, 8]}},
    ],
)
def test_malformed_series_name_their_key(grid: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"^a: "):
        expand_grid(grid)


def test_identity_ignores_spelling() -> None:
    one = {"d": 64, "lr": 0.01, "layers": [{"mixer": "based", "f": 16}]}
    other = {"layers": [{"f": 16.0, "mixer": "based"}], "lr": 1e-2, "d": 64.0}
    assert case_id(one) == case_id(other)
    assert len(case_id(one)) == 12


@pytest.mark.parametrize("change", [{"lr": 0.011}, {"d": 65}, {"flag": None}, {"flag": False}])
def test_identity_follows_meaning(change: dict[str, object]) -> None:
    base = {"lr": 0.01, "d": 64}
    assert case_id(base) != case_id(base | change)


def test_true_is_not_one() -> None:
    assert case_id({"a": True}) != case_id({"a": 1})
