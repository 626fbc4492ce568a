"""Samples on a mock clock: the arithmetic of the CPU sampler, and of what hides the host on a GPU."""

from dataclasses import dataclass
from types import SimpleNamespace

import pytest

from basedbench.timing import samplers
from basedbench.timing.flush import LONGEST_BLOCKER_MS, Lead
from basedbench.timing.samplers import CpuSampler, GraphSampler
from tests.timing.conftest import MockClock


@dataclass
class MockDevice:
    """What graphs are replayed on: does one thing after another, behind the host's back. Milliseconds."""

    host_ms: float  # of a replay
    call_ms: float
    now: float = 0.0  # of the host
    free: float = 0.0  # the device, once all that is enqueued is done

    def run(self, ms: float) -> None:
        self.free = max(self.free, self.now) + ms

    def synchronize(self) -> None:
        self.now = max(self.now, self.free)

    def event(self, enable_timing: bool) -> SimpleNamespace:
        event = SimpleNamespace(record=lambda: vars(event).update(at=max(self.free, self.now)))
        event.query = lambda: event.at <= self.now
        event.elapsed_time = lambda end: end.at - event.at
        return event

    def capture(self, calls: list[object], passes: int) -> SimpleNamespace:
        return SimpleNamespace(replay=lambda: self.replay(passes * len(calls)))

    def replay(self, calls: int) -> None:
        self.now += self.host_ms
        self.run(calls * self.call_ms)


@pytest.fixture
def graphs_of(monkeypatch: pytest.MonkeyPatch):
    def sampler(calls: int, **given: float) -> GraphSampler:
        device = MockDevice(**given)
        cuda = SimpleNamespace(Event=device.event, synchronize=device.synchronize)
        monkeypatch.setattr(samplers, "torch", SimpleNamespace(cuda=cuda))
        monkeypatch.setattr(samplers, "_capture", device.capture)
        monkeypatch.setattr(samplers, "Blocker", lambda: device.run)
        monkeypatch.setattr(samplers, "perf_counter", lambda: device.now / 1e3)
        return GraphSampler([lambda: None] * calls)

    return sampler


@pytest.mark.parametrize("host_ms", [0.01, 0.4, 1.9])
@pytest.mark.parametrize(("calls", "call_ms", "passes"), [(1, 5.0, 1), (1, 1.5, 2), (3, 0.01, 67)])
def test_a_graph_is_timed_without_the_host(graphs_of, host_ms, calls, call_ms, passes):
    sampler = graphs_of(calls, host_ms=host_ms, call_ms=call_ms)
    sampler.sample(1)  # by now it is known what the host needs
    before = sampler.exposed
    assert sampler.sample(4) == pytest.approx([call_ms] * 4)
    assert (sampler.passes, sampler.exposed) == (passes, before)


def test_a_graph_shorter_than_its_launch_is_exposed(graphs_of):
    sampler = graphs_of(1, host_ms=8.0, call_ms=0.01)
    before = sampler.exposed
    assert max(sampler.sample(3)) > 0.01
    assert sampler.exposed - before == 3


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
