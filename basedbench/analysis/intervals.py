"""Student's t: the interval around a mean of few values (seeds, rounds).

The distribution function is the closed form for whole degrees of freedom (Abramowitz and Stegun, 26.7.3 and 26.7.4),
so that plotting needs no statistics library.
"""

import math
from collections.abc import Sequence


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
    mean = math.fsum(values) / count
    variance = math.fsum((value - mean) ** 2 for value in values) / (count - 1)
    half = t_quantile(count - 1, confidence) * math.sqrt(variance / count)
    return mean - half, mean + half


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
