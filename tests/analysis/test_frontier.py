"""The frontier against its definition, the hypervolume against sums over a grid."""

import numpy as np
import pandas as pd
import pytest

from basedbench.analysis import hypervolume, pareto_front
from basedbench.errors import UserError


def points(*places, x="state_bytes", y="accuracy"):
    return pd.DataFrame(places, columns=[x, y])


def brute_force(frame, x, y, sign):
    """The positions of rows that no other dominates, the first of equals, by x."""
    rows = list(zip(sign * frame[x], frame[y], strict=True))
    kept = []
    for index, (cost, gain) in enumerate(rows):
        if np.isnan(cost) or np.isnan(gain):
            continue
        beaten = any(c <= cost and g >= gain and (c < cost or g > gain) for c, g in rows)
        if not beaten and (cost, gain) not in [rows[other] for other in kept]:
            kept.append(index)
    return sorted(kept, key=lambda index: frame[x].iloc[index])


@pytest.mark.parametrize(("x", "sign"), [("state_bytes", 1), ("tokens_per_s", -1)])
@pytest.mark.parametrize("seed", range(20))
def test_front_is_what_nothing_dominates(x, sign, seed):
    random = np.random.default_rng(seed)
    # Few distinct values, so that ties in x, in y and in both are common.
    frame = pd.DataFrame({x: random.integers(1, 7, 30) * 1.0, "accuracy": random.integers(0, 7, 30) / 6})
    frame.loc[random.integers(0, 30, 4), x] = np.nan
    frame.loc[random.integers(0, 30, 4), "accuracy"] = np.nan
    frame.index = random.permutation(30)
    front = pareto_front(frame, x)
    assert front.index.tolist() == [frame.index[place] for place in brute_force(frame, x, "accuracy", sign)]


def test_what_failed_is_not_on_the_frontier():
    frame = points((1.0, 0.0), (2.0, 0.5)).assign(status=["diverged", "ok"])
    assert pareto_front(frame).index.tolist() == [1]


def test_equal_points_keep_the_first():
    frame = points((8, 0.5), (8, 0.5), (8, 0.4), (16, 0.5)).assign(name=list("abcd"))
    assert pareto_front(frame)["name"].tolist() == ["a"]


def test_all_columns_and_the_index_survive():
    frame = points((16, 0.9), (8, 0.5)).assign(name=["big", "small"])
    front = pareto_front(frame)
    assert front["name"].tolist() == ["small", "big"]
    assert front.index.tolist() == [1, 0]


def test_directions_can_be_overridden():
    frame = points((1, 0.1), (2, 0.2), (3, 0.3))
    assert pareto_front(frame, minimise_x=False)["state_bytes"].tolist() == [3]
    assert pareto_front(frame, maximise_y=False)["state_bytes"].tolist() == [1]
    # Accuracy is better large and bytes are better small, on whichever axis they stand.
    assert pareto_front(frame, "accuracy", "state_bytes")["accuracy"].tolist() == [0.1, 0.2, 0.3]


def test_front_over_one_slice():
    frame = points((8, 0.9), (16, 0.95)).assign(accuracy_by_slice=[{"64x4": 0.8}, {"64x4": 0.7}])
    assert pareto_front(frame, y="accuracy@4").index.tolist() == [0]


def test_nothing_in_gives_nothing_out():
    assert pareto_front(points((np.nan, 0.5), (8, np.nan))).empty
    assert hypervolume(points((np.nan, 0.5)), "state_bytes", "accuracy", (1e6, 0)) == 0


def test_unknown_column_names_the_nearest():
    with pytest.raises(UserError, match=r"'state_byte' .*did you mean 'state_bytes'"):
        pareto_front(points((8, 0.5)), "state_byte")


def test_hypervolume_of_one_point_is_its_rectangle():
    frame = points((1_000, 0.75))
    assert hypervolume(frame, "state_bytes", "accuracy", (1_000_000, 0.25)) == pytest.approx(3 * 0.5)
    assert hypervolume(frame, "state_bytes", "accuracy", (1_000_000, 0.25), log_x=False) == pytest.approx(999_000 * 0.5)


def test_hypervolume_of_a_stair():
    frame = points((1e3, 0.5), (1e4, 0.8), (1e5, 0.7), (1e2, 0.5))
    # 0.5 from 1e2 on, 0.3 more from 1e4 on, up to 1e6.
    assert hypervolume(frame, "state_bytes", "accuracy", (1e6, 0.0)) == pytest.approx(4 * 0.5 + 2 * 0.3)


def test_hypervolume_of_a_rate_counts_towards_larger():
    frame = points((1e4, 0.8), (1e5, 0.5), x="tokens_per_s")
    assert hypervolume(frame, "tokens_per_s", "accuracy", (1e3, 0.0)) == pytest.approx(0.8 + 0.5)


def test_points_beyond_the_reference_add_nothing():
    frame = points((1e3, 0.5), (1e7, 0.99), (10, 0.05), (0, 0.9))
    assert hypervolume(frame, "state_bytes", "accuracy", (1e6, 0.1)) == pytest.approx(3 * 0.4)
    with pytest.raises(ValueError, match="positive"):
        hypervolume(frame, "state_bytes", "accuracy", (0, 0.1))


@pytest.mark.parametrize("seed", range(10))
def test_hypervolume_against_a_sum_over_cells(seed):
    """Points on a coarse grid: count the cells between each dominated corner and the reference."""
    random = np.random.default_rng(seed)
    exponents, levels = random.integers(0, 8, 12), random.integers(0, 11, 12)
    frame = points(*zip(10.0**exponents, levels / 10, strict=True))
    cells = sum(
        any(exponent <= column and level > row for exponent, level in zip(exponents, levels, strict=True))
        for column in range(8)
        for row in range(10)
    )
    assert hypervolume(frame, "state_bytes", "accuracy", (1e8, 0.0)) == pytest.approx(cells / 10)
