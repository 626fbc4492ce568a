"""Samples on a mock clock: the arithmetic of the CPU sampler."""

import pytest

from basedbench.timing.samplers import CpuSampler
from tests.timing.conftest import MockClock


def test_a_sample_is_the_time_of_one_call(clock: MockClock) -> None:
    assert CpuSampler([lambda: clock.advance(0.25)], clock, estimate_ms=250).sample(3) == pytest.approx([250] * 3)


def test_inputs_rotate_across_samples(clock: MockClock) -> None:
    calls = [lambda s=s: clock.advance(s) for s in (0.001, 0.002, 0.003)]
    sampler = CpuSampler(calls, clock, estimate_ms=1)
    assert sampler.sample(2) + sampler.sample(3) == pytest.approx([1, 2, 3, 1, 2])


def test_short_calls_are_timed_several_at_a_time(clock: MockClock) -> None:
    seen = []
    calls = [lambda i=i: (seen.append(i), clock.advance(1e-5)) for i in range(3)]
    assert CpuSampler(calls, clock, estimate_ms=0.01).sample(1) == pytest.approx([0.01])
    assert seen == [i % 3 for i in range(10)]
