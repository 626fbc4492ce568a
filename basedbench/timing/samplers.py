"""How one sample is taken: on a CPU, cold on a GPU, hot in a CUDA graph. Calls take turns, one per input set.

What a cold sample calls may itself be the replay of a graph (`captured`): then no launch of the host is in it.
"""

import math
from collections.abc import Callable, Sequence
from itertools import cycle, pairwise
from time import perf_counter
from typing import Protocol

import torch

from basedbench.timing.clock import Clock
from basedbench.timing.flush import Blocker, Flush, Lead

Thunk = Callable[[], object]
# Calls shorter than this are timed several at a time: the clock and the loop cost tenths of a microsecond.
SHORTEST_CPU_SAMPLE_MS = 0.1
# What the host is taken to need for a replay before one was seen.
REPLAY_HOST_MS = 0.1
# Behind so many calls the queue to the device may be full, and the host wait for room.
FREE_CALLS = 16
# A graph is made at least this long, so that the gap in front of it does not count, and the host is ahead of a row.
SHORTEST_GRAPH_MS = 2.0
MOST_GRAPH_PASSES = 256


class Sampler(Protocol):
    """Takes samples, in milliseconds for one call each."""

    exposed: int  # samples during which the device waited for the host

    def sample(self, count: int) -> list[float]:
        """So many samples."""


class CpuSampler:
    """A host clock around calls that return when they are done."""

    def __init__(self, calls: Sequence[Thunk], clock: Clock, estimate_ms: float) -> None:
        self.calls, self.clock, self.exposed = cycle(calls), clock, 0
        self.repeat = max(1, math.ceil(SHORTEST_CPU_SAMPLE_MS / max(estimate_ms, 1e-6)))

    def sample(self, count: int) -> list[float]:
        """So many samples, each the mean of `repeat` calls."""
        return [self._one() for _ in range(count)]

    def _one(self) -> float:
        calls = [next(self.calls) for _ in range(self.repeat)]
        start = self.clock.now()
        for call in calls:
            call()
        return (self.clock.now() - start) * 1e3 / self.repeat


class ColdSampler:
    """Flush, blocker, event, call, event. Exposed: the device reached the call before all of it was enqueued."""

    def __init__(self, calls: Sequence[Thunk], device: str, enqueue_ms: float) -> None:
        self.calls, self.exposed = cycle(calls), 0
        self.flush, self.blocker, self.lead = Flush(device), Blocker(), Lead(enqueue_ms)

    def sample(self, count: int) -> list[float]:
        """So many samples of one call each."""
        events = [self._enqueue(freely=index < FREE_CALLS) for index in range(count)]
        torch.cuda.synchronize()
        return [start.elapsed_time(end) for start, end in events]

    def _enqueue(self, freely: bool) -> tuple[torch.cuda.Event, torch.cuda.Event]:
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        call = next(self.calls)
        self.flush()
        self.blocker(self.lead.milliseconds)
        began = perf_counter()
        start.record()
        call()
        end.record()
        host_ms, exposed = (perf_counter() - began) * 1e3, start.query()
        self.exposed += exposed
        if freely or exposed:
            self.lead.learn(host_ms, exposed)
        return start, end


class GraphSampler:
    """Replays of a CUDA graph that holds whole passes over the input sets: no host, caches as the calls leave them.

    Samples are replays in a row, as a loop that generates makes them; only the first of a row follows a blocker.
    Exposed: the device had ended what was in front before the replay was enqueued.
    """

    def __init__(self, calls: Sequence[Thunk]) -> None:
        self.calls, self.exposed = list(calls), 0
        self.blocker, self.lead = Blocker(), Lead(REPLAY_HOST_MS)
        self._hold(1)
        [pass_ms] = self._in_a_row(1)
        if self.exposed or pass_ms < SHORTEST_GRAPH_MS:  # the lead is known by now: others say how many make a sample
            pass_ms = min(self._in_a_row(2))
        passes = min(MOST_GRAPH_PASSES, max(1, math.ceil(SHORTEST_GRAPH_MS / max(pass_ms, 1e-4))))
        if passes > 1:
            self._hold(passes)

    def sample(self, count: int) -> list[float]:
        """So many samples, each the mean over one replay."""
        return [replay_ms / (self.passes * len(self.calls)) for replay_ms in self._in_a_row(count)]

    def _hold(self, passes: int) -> None:
        """A graph of so many passes, replayed once: that brings it onto the device."""
        self.graph, self.passes = _capture(self.calls, passes), passes
        self.graph.replay()
        torch.cuda.synchronize()

    def _in_a_row(self, count: int) -> list[float]:
        """The time of each of so many replays."""
        marks = [torch.cuda.Event(enable_timing=True) for _ in range(count + 1)]
        self.blocker(self.lead.milliseconds)
        began = perf_counter()
        marks[0].record()
        for index, end in enumerate(marks[1:]):
            self.graph.replay()
            end.record()
            exposed = marks[index].query()
            self.exposed += exposed
            if index == 0:
                self.lead.learn((perf_counter() - began) * 1e3, exposed)
        torch.cuda.synchronize()
        return [start.elapsed_time(end) for start, end in pairwise(marks)]


def wall_ms(calls: Sequence[Thunk], clock: Clock, count: int) -> float:
    """Plain wall time of one call in a row of `count` without a graph: what the host adds shows."""
    row = [call for call, _ in zip(cycle(calls), range(count), strict=False)]
    torch.cuda.synchronize()
    start = clock.now()
    for call in row:
        call()
    torch.cuda.synchronize()
    return (clock.now() - start) * 1e3 / count


def captured(call: Thunk) -> Thunk:
    """What replays everything that `call`, which has run before, launches. RuntimeError if that cannot be captured.

    Nothing runs on a side stream first: what whole prompts need would be held there a second time. As the capture
    begins, the memory that earlier calls left free is given back; the graph's is its own.
    """
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
    try:
        with torch.cuda.graph(graph):
            call()
    except RuntimeError:
        torch.cuda.set_stream(stream)  # a capture that cannot be ended leaves its own
        raise
    return graph.replay


def _capture(calls: Sequence[Thunk], passes: int) -> torch.cuda.CUDAGraph:
    """`passes` rounds of all calls as one graph, after a warm-up on a side stream as capture demands."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for call in calls:
            call()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(passes):
            for call in calls:
                call()
    return graph
