"""Statistics of timings, which are skewed, correlated and shift between rounds.

Two intervals, for two purposes. Whether to go on sampling is decided by the interval of the median from order
statistics, widened by the autocorrelation time. What is published is a t-interval over the medians of rounds: rounds
differ from each other by more than samples within one do, so an interval pooled over samples covers the truth far
less often than it says.
"""

import math
from collections.abc import Sequence
from statistics import fmean, median

import numpy as np

from basedbench.analysis.intervals import t_interval

Z_95 = 1.959964
# A sample is an outlier beyond this many scaled median absolute deviations from the median of its round.
OUTLIER_DEVIATIONS = 6.0
_MAD_TO_SIGMA = 1.4826


def median_interval(samples: Sequence[float]) -> tuple[float, float]:
    """The 95 % interval of the median of a series in the order it was taken.

    Order statistics at ranks n/2 -+ 1.96 sqrt(n tau)/2, tau the autocorrelation time: correlated samples count less.
    (-inf, inf) where there are too few samples for such ranks.
    """
    count = len(samples)
    if count == 0:
        return -math.inf, math.inf
    half = Z_95 * math.sqrt(count * autocorrelation_time(samples)) / 2
    low, high = math.floor(count / 2 - half) - 1, math.ceil(count / 2 + half)
    ordered = sorted(samples)
    return ordered[low] if low >= 0 else -math.inf, ordered[high] if high < count else math.inf


def autocorrelation_time(samples: Sequence[float]) -> float:
    """How many samples carry the information of one independent one; at least 1.

    The integrated autocorrelation of the signs around the median (the median's own error depends on those, and no
    outlier dominates them), summed until the first pair of lags whose sum is negative (Geyer's initial positive
    sequence).
    """
    values = np.asarray(samples, dtype=float)
    signs = np.sign(values - np.median(values))
    variance = float(signs @ signs)
    if variance == 0:
        return 1.0
    time = 1.0
    for lag in range(1, len(signs) // 2, 2):
        pair = float(signs[:-lag] @ signs[lag:] + signs[: -lag - 1] @ signs[lag + 1 :]) / variance
        if pair <= 0:
            break
        time += 2 * pair
    return time


def round_interval(medians: Sequence[float]) -> tuple[float, float, float]:
    """(estimate, low, high): the mean of the rounds' medians and its 95 % t-interval; nan ends below two rounds.

    No time is below zero, where few and unlike rounds would have it reach.
    """
    low, high = t_interval(medians)
    return fmean(medians), max(low, 0.0), high


def outliers(rounds: Sequence[Sequence[float]]) -> int:
    """How many samples lie far from the median of their round. They are counted, never dropped."""
    return sum(_far(samples) for samples in rounds)


def _far(samples: Sequence[float]) -> int:
    middle = median(samples)
    spread = _MAD_TO_SIGMA * median(abs(x - middle) for x in samples)
    return sum(abs(x - middle) > OUTLIER_DEVIATIONS * spread for x in samples) if spread else 0
