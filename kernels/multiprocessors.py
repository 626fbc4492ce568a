"""How many multiprocessors a device has: it gives the number of programs that take one piece of work after another."""

from functools import lru_cache

import torch

USUAL = 132  # of an H100 or H200, where no device can be asked


@lru_cache
def multiprocessors(device: torch.device) -> int:
    """Of a GPU; of anything else the usual number."""
    if device.type != "cuda":
        return USUAL
    count: int = torch.cuda.get_device_properties(device).multi_processor_count
    return count
