"""Student's t against scipy, and the interval against its textbook form."""

import math

import numpy as np
import pytest
from scipy import stats

from basedbench.analysis.intervals import t_interval, t_quantile


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
