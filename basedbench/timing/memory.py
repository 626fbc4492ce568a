"""Peak memory of one call, as the difference to what was held before it; on a CPU in a call of its own."""

import gc
from collections.abc import Callable
from itertools import accumulate

import torch
from torch.autograd.profiler import profile


def peak_memory(call: Callable[[], object], device: str) -> int:
    """Bytes that torch's allocator hands out for the call beyond its inputs, outputs included."""
    gc.collect()
    return _peak_of_events(call) if device == "cpu" else _peak_of_statistics(call)


def _peak_of_statistics(call: Callable[[], object]) -> int:
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def _peak_of_events(call: Callable[[], object]) -> int:
    """The CPU's allocator keeps no statistics, but tells a profiler of every block it gives and takes back."""
    with profile(use_cpu=True, profile_memory=True) as recorded:
        call()
    events = [event for event in recorded.kineto_results.events() if event.name() == "[memory]"]
    sizes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    return max(accumulate(sizes, initial=0))
