"""Student's t: the interval around a mean of few values (seeds, rounds), and around the difference of two means. And
Fisher's exact test: whether two shares differ.

The distribution function is the closed form for whole degrees of freedom (Abramowitz and Stegun, 26.7.3 and 26.7.4),
so that plotting needs no statistics library.
"""

import math
from collections.abc import Sequence
from statistics import fmean


def t_quantile(degrees: int, confidence: float = 0.95) -> float:
    """The t with P(|T| <= t) = confidence for a whole number of degrees of freedom >= 1."""
    if degrees < 1 or not 0 < confidence < 1:
        raise ValueError(f"degrees {degrees} must be >= 1 and confidence {confidence} between 0 and 1.")
    low, high = 0.0, math.pi / 2
    for _ in range(60):
        angle = (low + high) / 2
        low, high = (angle, high) if _probability_within(angle, degrees) < confidence else (low, angle)
    return math.sqrt(degrees) * math.tan((low + high) / 2)


def t_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """Lower and upper end of the interval around the mean; (nan, nan) for fewer than two values."""
    count = len(values)
    if count < 2:
        return math.nan, math.nan
    mean = fmean(values)
    half = t_quantile(count - 1, confidence) * math.sqrt(_variance(values) / count)
    return mean - half, mean + half


class Welch:
    """The difference between the means of two groups, b - a, their variances not assumed equal.

    Degrees of freedom (Welch-Satterthwaite) are rounded down, which errs on the side of no difference. Takes at least
    two values on each side.
    """

    def __init__(self, a: Sequence[float], b: Sequence[float]) -> None:
        self.difference = fmean(b) - fmean(a)
        parts = [(_variance(values) / len(values), len(values) - 1) for values in (a, b)]
        variance = sum(part for part, _ in parts)
        self.error = math.sqrt(variance)
        spread = sum(part**2 / degrees for part, degrees in parts)
        self.degrees = variance**2 / spread if spread else float(len(a) + len(b) - 2)

    def significant(self, level: float = 0.01) -> bool:
        """Whether a difference this large would arise less often than `level` between equal groups."""
        return abs(self.difference) > t_quantile(max(1, int(self.degrees)), 1 - level) * self.error

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """The interval of the difference."""
        half = t_quantile(max(1, int(self.degrees)), confidence) * self.error
        return self.difference - half, self.difference + half


def share_probability(a: tuple[int, int], b: tuple[int, int]) -> float:
    """How often two equal shares would come out as unlike as `a` and `b`, (some, of how many) each, or more so."""
    some, count = a[0] + b[0], a[1] + b[1]
    ways = [math.comb(a[1], k) * math.comb(b[1], some - k) if some >= k else 0 for k in range(a[1] + 1)]
    return sum(way for way in ways if way <= ways[a[0]]) / math.comb(count, some)


def _probability_within(angle: float, degrees: int) -> float:
    """P(|T| <= t) with angle = atan(t / sqrt(degrees))."""
    odd = degrees % 2
    term = math.cos(angle) if odd else 1.0
    total = term if degrees > 1 else 0.0
    for power in range(2 + odd, degrees - 1, 2):
        term *= math.cos(angle) ** 2 * (power - 1) / power
        total += term
    within = math.sin(angle) * total
    return 2 / math.pi * (angle + within) if odd else within


def _variance(values: Sequence[float]) -> float:
    mean = fmean(values)
    return math.fsum((x - mean) ** 2 for x in values) / (len(values) - 1)
