"""Verdicts on groups of round medians, and on accuracies over seeds."""

import numpy as np
import pytest

from basedbench.timing.comparison import MOST_ROUNDS, compare_accuracies, compare_times
from basedbench.timing.machines import hardware_difference, software_difference


def rounds(level: float, spread: float, count: int = 12, seed: int = 0) -> list[float]:
    """Medians around a level; the spread is exact, so that verdicts do not hang on luck."""
    noise = np.random.default_rng(seed).normal(0, 1, count)
    return [float(x) for x in level * (1 + spread * (noise - noise.mean()) / noise.std(ddof=1))]


def test_a_difference_needs_size_and_certainty() -> None:
    a = rounds(10, 0.01)
    assert compare_times(a, rounds(9, 0.01, seed=1)).verdict == "FASTER"
    assert compare_times(a, rounds(11, 0.01, seed=1)).verdict == "SLOWER"
    certain_but_small = compare_times(rounds(10, 0.001), rounds(10.15, 0.001, seed=1))
    assert certain_but_small.verdict == "SAME"
    large_but_uncertain = compare_times(rounds(10, 0.2), rounds(11, 0.2, seed=1))
    assert large_but_uncertain.verdict == "UNCLEAR"
    assert "not certain at the 1 % level" in str(large_but_uncertain.reason)


def test_the_ratio_is_b_over_a_with_its_interval() -> None:
    result = compare_times(rounds(10, 0.01), rounds(12, 0.01, seed=1))
    assert result.change == pytest.approx(1.2, rel=1e-3)
    assert 1.18 < result.low < result.change < result.high < 1.22


def test_sameness_needs_the_whole_interval() -> None:
    assert compare_times(rounds(10, 0.005), rounds(10.02, 0.005, seed=1)).verdict == "SAME"
    wide = compare_times(rounds(10, 0.05), rounds(10.02, 0.05, seed=1))
    assert wide.verdict == "UNCLEAR"
    assert "not ruled out" in str(wide.reason)


def test_the_threshold_is_the_users() -> None:
    a, b = rounds(10, 0.005), rounds(10.4, 0.005, seed=1)
    assert compare_times(a, b, threshold=0.02).verdict == "SLOWER"
    assert compare_times(a, b, threshold=0.1).verdict == "SAME"


@pytest.mark.parametrize("level", [10.197, 10.203])
def test_a_verdict_does_not_hang_on_which_side_is_a(level: float) -> None:
    one, other = rounds(10, 0.001), rounds(level, 0.001, seed=1)
    verdicts = compare_times(one, other).verdict, compare_times(other, one).verdict
    assert verdicts == (("SLOWER", "FASTER") if level > 10.2 else ("UNCLEAR", "UNCLEAR"))


def test_the_rounds_it_asks_for_would_settle_it() -> None:
    for level in (10.05, 10.6):
        unclear = compare_times(rounds(10, 0.06), rounds(level, 0.06, seed=1))
        assert unclear.verdict == "UNCLEAR"
        needed = unclear.needed
        assert compare_times(rounds(10, 0.06, needed), rounds(level, 0.06, needed, seed=1)).verdict != "UNCLEAR"


@pytest.mark.parametrize("threshold", [1e-200, 5e-324])
def test_no_threshold_is_too_small(threshold: float) -> None:
    a, b = rounds(10, 0.06), rounds(10, 0.06, seed=1)
    results = compare_times(a, b, threshold), compare_accuracies(a, b, threshold)
    assert [(result.verdict, result.needed) for result in results] == [("UNCLEAR", MOST_ROUNDS)] * 2


def test_one_measurement_is_the_same_as_itself_however_it_scatters() -> None:
    one = rounds(10, 0.2)
    result = compare_times(one, list(one))
    assert (result.verdict, result.change, result.low, result.high) == ("SAME", 1.0, 1.0, 1.0)
    assert compare_times(one, one[::-1]).verdict == "UNCLEAR"  # as many numbers, of another run


def test_two_rounds_say_nothing() -> None:
    result = compare_times([1.0, 1.0], [2.0, 2.0, 2.0])
    assert (result.verdict, result.reason) == ("UNCLEAR", "only 2 rounds on one side")


def test_accuracies_are_compared_over_seeds() -> None:
    a = [0.80, 0.81, 0.79, 0.80]
    assert compare_accuracies(a, [0.90, 0.91, 0.89, 0.90]).verdict == "HIGHER"
    lower = compare_accuracies(a, [0.70, 0.71, 0.69])
    assert lower.verdict == "LOWER"
    assert lower.change == pytest.approx(-0.1)
    assert compare_accuracies(a, [0.801, 0.799, 0.80, 0.805]).verdict == "SAME"
    assert compare_accuracies([0.5, 0.9], [0.6, 0.8]).verdict == "UNCLEAR"


def test_one_seed_says_nothing_unless_nothing_changed() -> None:
    assert compare_accuracies([0.8], [0.8]).verdict == "SAME"
    result = compare_accuracies([0.8], [0.85])
    assert (result.verdict, result.reason) == ("UNCLEAR", "one seed on a side")
    assert result.change == pytest.approx(0.05)


def test_machines_are_their_hardware() -> None:
    cpu = {"device": "cpu", "fingerprint": '{"cpu": "A", "cpu_usable": 2, "gpu": null, "torch": "2.13"}'}
    newer = cpu | {"fingerprint": '{"cpu": "A", "cpu_usable": 2, "gpu": "X", "torch": "2.14"}'}
    assert hardware_difference(cpu, newer) is None  # the GPU plays no part in a result of the CPU
    assert software_difference(cpu, newer) == "torch: 2.13 against 2.14"
    more = cpu | {"fingerprint": '{"cpu": "A", "cpu_usable": 8}'}
    assert hardware_difference(cpu, more) == "cpu_usable: 2 against 8"
    gpu = {"device": "cuda", "fingerprint": '{"cpu": "B", "gpu": "X"}'}
    assert hardware_difference(gpu, gpu | {"fingerprint": '{"cpu": "C", "gpu": "X"}'}) is None
    assert hardware_difference(gpu, gpu | {"fingerprint": '{"cpu": "B", "gpu": "Y"}'}) == "gpu: X against Y"
    assert hardware_difference(cpu, gpu) == "device: cpu against cuda"
