"""When sampling stops, and what is said about it."""

import numpy as np

from basedbench.timing.stopping import StoppingRule

STEADY = [1.0, 1.001, 0.999, 1.0, 1.002]


def test_a_known_median_is_enough_after_the_least_rounds() -> None:
    rule = StoppingRule(precision=0.01, min_rounds=4)
    assert rule.reason([STEADY] * 3, spent_s=0.1) is None
    assert rule.reason([STEADY] * 4, spent_s=0.1) == "converged"


def test_noise_goes_on_until_time_or_rounds_are_up() -> None:
    rng = np.random.default_rng(0)
    noisy = [list(rng.normal(1, 0.2, 5)) for _ in range(30)]
    rule = StoppingRule(min_rounds=4, max_rounds=30, seconds=2)
    assert rule.reason(noisy[:10], spent_s=1) is None
    assert rule.reason(noisy[:10], spent_s=2) == "time limit of 2 s"
    assert rule.reason(noisy, spent_s=1) == "30 rounds"


def test_time_never_stops_before_there_is_an_interval() -> None:
    rule = StoppingRule(seconds=1)
    assert rule.reason([[1.0]] * 2, spent_s=60) is None
    assert rule.reason([[1.0]] * 3, spent_s=60) == "time limit of 1 s"


def test_rounds_that_shift_do_not_look_converged() -> None:
    """The pooled samples of each round agree to 0.1 %, but the rounds do not: that is autocorrelation."""
    rng = np.random.default_rng(1)
    rounds = [list((1 + level) * rng.normal(1, 0.001, 30)) for level in rng.normal(0, 0.03, 8)]
    assert StoppingRule(precision=0.005).reason(rounds, spent_s=0) is None
