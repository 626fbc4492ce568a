"""Statistics against scipy, and by simulation: do the intervals hold what they say?"""

import math

import numpy as np
import pytest
from scipy import stats

from basedbench.timing.comparison import compare_times
from basedbench.timing.statistics import autocorrelation_time, median_interval, outliers, round_interval
from basedbench.timing.stopping import StoppingRule


def test_the_interval_of_the_median_is_that_of_order_statistics() -> None:
    """The ranks are scipy's binomial quantiles, or one further out."""
    rng = np.random.default_rng(0)
    for count in (12, 30, 101, 400):
        samples = list(rng.permutation(count).astype(float))
        time = autocorrelation_time(samples)
        low, high = median_interval(samples)
        assert low <= stats.binom.ppf(0.025, count, 0.5) <= low + 2 + (time - 1) * count / 8
        assert high >= stats.binom.ppf(0.975, count, 0.5) - 1


def test_the_interval_of_the_median_covers_it() -> None:
    rng = np.random.default_rng(1)
    hits = 0
    for _ in range(1000):
        low, high = median_interval(list(rng.exponential(1, 80)))
        hits += low <= math.log(2) <= high
    assert 0.93 <= hits / 1000 <= 0.99


def test_too_few_samples_have_no_interval() -> None:
    assert median_interval([]) == (-math.inf, math.inf)
    assert median_interval([1.0, 2.0, 3.0]) == (-math.inf, math.inf)


def test_correlated_samples_count_less() -> None:
    rng = np.random.default_rng(2)
    noise = rng.normal(size=4000)
    series = [0.0]
    for value in noise:
        series.append(0.8 * series[-1] + value)
    # Signs of an AR(1) process with coefficient r are correlated by 2/pi asin(r^k).
    exact = 1 + 2 * sum(2 / math.pi * math.asin(0.8**k) for k in range(1, 60))
    assert autocorrelation_time(series) == pytest.approx(exact, rel=0.25)
    assert autocorrelation_time(list(noise)) < 1.2
    assert autocorrelation_time([3.0, 3.0, 3.0, 3.0]) == 1.0


def test_the_published_interval_is_a_t_interval_over_rounds() -> None:
    medians = [1.0, 1.2, 0.9, 1.05]
    middle, low, high = round_interval(medians)
    expected = stats.t.interval(0.95, 3, np.mean(medians), stats.sem(medians))
    assert (middle, low, high) == pytest.approx((np.mean(medians), *expected))
    assert math.isnan(round_interval([1.0])[1])
    assert stats.t.interval(0.95, 1, 0.55, stats.sem([1.0, 0.1]))[0] < 0 == round_interval([1.0, 0.1])[1]


def test_outliers_are_counted_within_their_round() -> None:
    calm = [1.0, 1.01, 0.99, 1.02, 0.98]
    shifted = [sample + 1 for sample in calm]  # another round's level is no outlier
    assert outliers([calm, shifted]) == 0
    assert outliers([[*calm, 3.0], [*shifted, 0.1, 9.0]]) == 3
    assert outliers([[1.0, 1.0, 1.0, 5.0]]) == 0  # no spread to measure by


def measured(
    rng: np.random.Generator, shift: float, noise: float, rule: StoppingRule, skewed: bool = False
) -> list[float]:
    """The round medians of a simulated case, sampled until the rule says so: each round is off by its own amount."""
    rounds: list[list[float]] = []
    while rule.reason(rounds, 0.0) is None:
        level = 10 * (1 + rng.normal(0, shift))
        rounds.append([float(x) for x in level * (1 + rng.normal(0, noise, 20))])
    return [float(np.median(one)) for one in rounds]


@pytest.mark.parametrize(("shift", "noise"), [(0.0, 0.01), (0.005, 0.01), (0.01, 0.01), (0.02, 0.005)])
def test_the_published_interval_covers_the_truth(shift: float, noise: float) -> None:
    """93 to 97 % with the stopping rule in force, on independent noise and on rounds that shift."""
    rng, trials = np.random.default_rng(round(1e4 * (shift + noise))), 900
    rule = StoppingRule(min_rounds=7, max_rounds=20)
    hits = 0
    for _ in range(trials):
        _, low, high = round_interval(measured(rng, shift, noise, rule))
        hits += low <= 10 <= high
    assert 0.93 <= hits / trials <= 0.97


@pytest.mark.parametrize("shift", [0.0, 0.005, 0.01])
def test_identical_code_is_hardly_ever_called_different(shift: float) -> None:
    rng, rule = np.random.default_rng(7), StoppingRule(max_rounds=20)
    verdicts = [
        compare_times(measured(rng, shift, 0.01, rule), measured(rng, shift, 0.01, rule)).verdict for _ in range(400)
    ]
    assert sum(verdict in ("FASTER", "SLOWER") for verdict in verdicts) <= 4
