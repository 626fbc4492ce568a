"""The same call timed as others time it: Triton's `do_bench`, and the profiler's sum over kernels.

For those who want to know what our number would be in their tool; `throughput --cross-check` stores both in the row.
do_bench: events around single calls behind a flush that *writes* 256 MB, no wait on the device in front, so the host's
enqueuing shows where it is slow. Profiler: the kernels' own durations in one call, without the gaps between them, with
caches as the previous call left them.
"""

from collections.abc import Callable, Sequence
from itertools import cycle
from statistics import median
from typing import Any

import torch

PROFILED_CALLS = 12
WARM_UP_MS, REPEAT_MS = 25, 100


def cross_check(calls: Sequence[Callable[[], object]]) -> dict[str, float]:
    """`do_bench_ms` and `profiler_ms` of calls on a GPU, which take turns as in a sample."""
    from triton.testing import do_bench

    turn = cycle(calls)
    time_ms = do_bench(lambda: next(turn)(), warmup=WARM_UP_MS, rep=REPEAT_MS, return_mode="median")
    return {"do_bench_ms": float(time_ms), "profiler_ms": profiler_ms(calls)}


def profiler_ms(calls: Sequence[Callable[[], object]]) -> float:
    """Median over calls of the time that their kernels take together."""
    turn = cycle(calls)
    found = []
    for _ in range(PROFILED_CALLS):
        call = next(turn)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA], acc_events=True) as profile:
            call()
            torch.cuda.synchronize()
        found.append(device_time_ms(profile.events()))
    return median(found)


def device_time_ms(events: Sequence[Any]) -> float:
    """The durations of what ran on the device, copies and fills included."""
    return sum(event.device_time for event in events if event.device_type == torch.autograd.DeviceType.CUDA) / 1e3
