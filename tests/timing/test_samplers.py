"""Samples on a mock clock: the arithmetic of the CPU sampler, and of what hides the host on a GPU."""

import pytest

from basedbench.timing.flush import LONGEST_BLOCKER_MS, Lead
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


def test_the_lead_covers_the_slowest_call_of_late_and_forgets_it() -> None:
    lead = Lead(0.1)
    assert lead.milliseconds == pytest.approx(0.2)
    lead.learn(1.0, exposed=False)
    assert lead.milliseconds == pytest.approx(1.55)
    for _ in range(63):
        lead.learn(0.2, exposed=False)
        assert lead.milliseconds == pytest.approx(1.55)
    lead.learn(0.2, exposed=False)
    assert lead.milliseconds == pytest.approx(0.35)


def test_the_lead_doubles_where_it_was_too_short_whatever_the_host_says() -> None:
    lead = Lead(0.1)
    for _ in range(10):
        before = lead.milliseconds
        lead.learn(0.0, exposed=True)
        assert lead.milliseconds == LONGEST_BLOCKER_MS or lead.milliseconds >= 2 * before
    assert lead.milliseconds == LONGEST_BLOCKER_MS
