"""Whether two measurements differ, and when the honest answer is that one cannot tell.

A difference counts only if a Welch test on the medians of rounds and its size agree; sameness only if the whole
interval lies within the threshold. Tests on pooled samples call identical code different in every other run, because
rounds differ from each other by more than samples within one.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from basedbench.analysis.intervals import Welch
from basedbench.timing.stopping import FEWEST_ROUNDS

LEVEL = 0.01
THRESHOLD = 0.02
MOST_ROUNDS = 400
VERDICTS = ("FASTER", "SLOWER", "HIGHER", "LOWER", "SAME", "UNCLEAR", "MISSING", "FAILED")
NOT_COMPARED = ("MISSING", "FAILED")
IDENTICAL = "identical"  # why two sides are the same that have the very same numbers


@dataclass(frozen=True)
class Comparison:
    """A verdict on b against a. `change` is the ratio b / a of times, or the difference b - a of accuracies.

    What A has and B lacks is MISSING; what failed in A is FAILED, for nothing of it can be missing. Both have a reason.
    An UNCLEAR verdict has a reason, and `needed`, the rounds or seeds on each side that should settle it.
    """

    verdict: str
    change: float | None = None
    low: float | None = None
    high: float | None = None
    reason: str | None = None
    needed: int | None = None


def compare_times(a: Sequence[float], b: Sequence[float], threshold: float = THRESHOLD) -> Comparison:
    """Two groups of round medians (times): is b FASTER, SLOWER, the SAME, or UNCLEAR?"""
    fewest = min(len(a), len(b))
    if fewest < FEWEST_ROUNDS:
        return Comparison("UNCLEAR", reason=f"only {fewest} rounds on one side", needed=10)
    if list(a) == list(b):  # the rounds of one run: a test of their spread would call that uncertain
        return Comparison("SAME", 1.0, 1.0, 1.0, IDENTICAL)
    # On a logarithmic scale differences are ratios.
    test = Welch([math.log(x) for x in a], [math.log(x) for x in b])
    ratio, (low, high) = math.exp(test.difference), (math.exp(end) for end in test.interval())
    # By how much the longer time exceeds the shorter: the same whichever side it is on.
    effect, most = math.expm1(abs(test.difference)), 1 + threshold
    if effect >= threshold and test.significant(LEVEL):
        return Comparison("FASTER" if ratio < 1 else "SLOWER", ratio, low, high)
    if 1 / most <= low and high <= most:
        return Comparison("SAME", ratio, low, high)
    needed = _needed(test, len(a), len(b), threshold)
    return Comparison("UNCLEAR", ratio, low, high, _reason(effect, threshold, low - 1, high - 1), needed)


def compare_accuracies(a: Sequence[float], b: Sequence[float], threshold: float = THRESHOLD) -> Comparison:
    """Accuracies over seeds: is b HIGHER, LOWER, the SAME within `threshold` (absolute), or UNCLEAR?"""
    if sorted(a) == sorted(b):
        return Comparison("SAME", 0.0, 0.0, 0.0, IDENTICAL)
    fewest = min(len(a), len(b))
    if fewest < 2:
        return Comparison("UNCLEAR", b[0] - a[0] if len(a) == len(b) else None, reason="one seed on a side", needed=5)
    test = Welch(a, b)
    low, high = test.interval()
    if abs(test.difference) >= threshold and test.significant(LEVEL):
        return Comparison("HIGHER" if test.difference > 0 else "LOWER", test.difference, low, high)
    if -threshold <= low and high <= threshold:
        return Comparison("SAME", test.difference, low, high)
    needed = _needed(test, len(a), len(b), threshold)
    reason = _reason(abs(test.difference), threshold, low, high)
    return Comparison("UNCLEAR", test.difference, low, high, reason, needed)


def _reason(effect: float, threshold: float, low: float, high: float) -> str:
    span = f"95 % interval {100 * low:+.1f} % to {100 * high:+.1f} %"
    if effect >= threshold:
        return f"a difference of {100 * effect:.1f} %, not certain at the {100 * LEVEL:g} % level ({span})"
    return f"less than {100 * threshold:g} % apart, but as much is not ruled out ({span})"


def _needed(test: Welch, count_a: int, count_b: int, threshold: float) -> int:
    """Values on each side that make the error a quarter of what is to be told apart, if their spread stays as it is."""
    one_each = test.error / math.sqrt((1 / count_a + 1 / count_b) / 2)
    errors = 4 * one_each / max(threshold, abs(test.difference))
    wanted = math.ceil(min(errors, MOST_ROUNDS) ** 2)  # larger ones ask for no more, and may have no square
    return min(MOST_ROUNDS, max(wanted, 2 * max(count_a, count_b)))
