"""Student's t against scipy, and the interval against its textbook form."""

import math

import numpy as np
import pytest
from scipy import stats

from basedbench.analysis.intervals import Welch, share_probability, t_interval, t_quantile


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 7, 10, 29, 100, 1001])
@pytest.mark.parametrize("confidence", [0.5, 0.95, 0.99])
def test_quantile(degrees, confidence):
    assert t_quantile(degrees, confidence) == pytest.approx(stats.t.ppf((1 + confidence) / 2, degrees), rel=1e-10)


def test_interval():
    values = [0.61, 0.64, 0.60, 0.66]
    expected = stats.t.interval(0.95, 3, loc=np.mean(values), scale=stats.sem(values))
    assert t_interval(values) == pytest.approx(expected)
    assert t_interval([0.5, 0.5, 0.5]) == (0.5, 0.5)


def test_one_value_has_no_interval():
    assert all(math.isnan(end) for end in t_interval([0.5]))


@pytest.mark.parametrize(("degrees", "confidence"), [(0, 0.95), (3, 0.0), (3, 1.0)])
def test_impossible_quantiles(degrees, confidence):
    with pytest.raises(ValueError, match="must be"):
        t_quantile(degrees, confidence)


def test_welch_is_scipys() -> None:
    rng = np.random.default_rng(3)
    for size in (3, 5, 12, 30):
        a, b = rng.normal(0, 0.02, size), rng.normal(0.01, 0.05, size + 2)
        ours, theirs = Welch(list(a), list(b)), stats.ttest_ind(b, a, equal_var=False)
        assert ours.difference / ours.error == pytest.approx(theirs.statistic)
        assert ours.degrees == pytest.approx(theirs.df)
        if theirs.pvalue > 0.01:  # whole degrees of freedom err on this side only
            assert not ours.significant(0.01)
        if theirs.pvalue < 0.003:
            assert ours.significant(0.01)
        low, high = theirs.confidence_interval(0.95)
        assert ours.interval(0.95)[0] <= low + 1e-9
        assert ours.interval(0.95)[1] >= high - 1e-9
        assert ours.interval(0.95) == pytest.approx((low, high), rel=0.25)


def test_identical_groups_without_spread_are_not_different() -> None:
    same = Welch([2.0, 2.0, 2.0], [2.0, 2.0, 2.0])
    assert not same.significant()
    assert same.interval() == (0.0, 0.0)


def test_shares_are_compared_as_scipy_does() -> None:
    shares = [
        ((0, 7), (6, 7)),
        ((1, 9), (11, 12)),
        ((3, 10), (3, 10)),
        ((8, 10), (1, 6)),
        ((0, 4), (0, 9)),
        ((2, 2), (5, 5)),
    ]
    for a, b in shares:
        table = [[some, count - some] for some, count in (a, b)]
        assert share_probability(a, b) == pytest.approx(stats.fisher_exact(table).pvalue)
        assert share_probability(b, a) == pytest.approx(share_probability(a, b))
