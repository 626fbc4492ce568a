"""What stands in front of a cold sample on a GPU: an emptied cache, and a blocker that hides the host.

The cache is emptied by *reading* twice its size. Writing would do it too, but the written lines would have to be stored
back to memory during the measured call, which then pays for the flush.

The blocker keeps the device busy for as long as the host needs to enqueue the measured call: the device then finds
all of it waiting, and the sample holds no gap in which it waited for the host.
"""

from collections import deque

import torch

# A blocker longer than this would cost more than it tells: such a call is bound by the host whatever is done.
LONGEST_BLOCKER_MS = 5.0
_PROBE_CYCLES = 2_000_000
_REMEMBERED = 64  # calls


class Flush:
    """Empties a GPU's second-level cache."""

    def __init__(self, device: str) -> None:
        size = torch.cuda.get_device_properties(device).L2_cache_size
        self.buffer = torch.ones(2 * size // 4, dtype=torch.float32, device=device)
        self.total = torch.empty((), dtype=torch.float32, device=device)

    def __call__(self) -> None:
        """Enqueue the reading; returns at once."""
        torch.sum(self.buffer, dim=0, out=self.total)


class Lead:
    """For how long the device must be busy: half as long again as the host has needed for a call lately, at the most.

    One slow call (the system had something else to do) is forgotten after some more.
    """

    def __init__(self, host_ms: float) -> None:
        self.recent = deque([host_ms], maxlen=_REMEMBERED)

    @property
    def milliseconds(self) -> float:
        """At most LONGEST_BLOCKER_MS."""
        return min(1.5 * max(self.recent) + 0.05, LONGEST_BLOCKER_MS)

    def learn(self, host_ms: float, exposed: bool) -> None:
        """What one more call took. Twice the lead where the device was faster all the same."""
        self.recent.append(max(host_ms, 4 / 3 * self.milliseconds) if exposed else host_ms)


class Blocker:
    """A wait on the device."""

    def __init__(self) -> None:
        self.cycles_per_ms = _cycles_per_ms()

    def __call__(self, milliseconds: float) -> None:
        """Enqueue the wait; returns at once."""
        torch.cuda._sleep(int(milliseconds * self.cycles_per_ms))


def _cycles_per_ms() -> float:
    """The rate of the counter that the device's wait counts on, measured after a first wait that wakes it."""
    for _ in range(2):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        torch.cuda._sleep(_PROBE_CYCLES)
        end.record()
        end.synchronize()
    return _PROBE_CYCLES / start.elapsed_time(end)
