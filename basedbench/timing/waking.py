"""What a process does before its first call on a GPU: the device's context, and what libraries do on first use."""

import ctypes
import os
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from importlib import import_module

from basedbench.timing.timeline import noted

LIBRARY = "libcuda.so.1"
# Imported by the first backward pass, in half a second; there by now where processes are forked (see `preloaded`).
FIRST_BACKWARD = "torch.fx.experimental.symbolic_shapes"
# Said once by every process whose first product is in a backward pass; PyTorch then takes the device's own context.
NO_CONTEXT_YET = "Attempting to run cuBLAS, but there was no current CUDA context"


def open_device(device: str) -> None:
    """Make the device's context and it torch's current device.

    A context takes most of a second, in which torch would let nothing else happen in this process. So the driver is
    asked for it by a thread while this one imports; torch then finds it there, or makes it if the driver did not.
    """
    import torch

    warnings.filterwarnings("ignore", message=NO_CONTEXT_YET)
    os.environ.setdefault("CUDA_MODULE_LOADING", "LAZY")  # as torch does, but before older drivers first look
    with noted("device"):
        with ThreadPoolExecutor(1) as beside:
            beside.submit(make_context, index_of(device))
            with noted("imports of a first backward pass"), suppress(ImportError):
                import_module(FIRST_BACKWARD)
        torch.cuda.set_device(device)


def index_of(device: str) -> int:
    """The driver's number of a device: 1 of "cuda:1", 0 of "cuda"."""
    return int(device.partition(":")[2] or 0)


def make_context(index: int) -> bool:
    """Whether the driver could be asked for the primary context of a device, and gave it."""
    device, context = ctypes.c_int(), ctypes.c_void_p()
    with noted("context"), suppress(OSError, AttributeError):
        driver = ctypes.CDLL(LIBRARY)
        return not (
            driver.cuInit(0)
            or driver.cuDeviceGet(ctypes.byref(device), index)
            or driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), device)
        )
    return False


def wake(device: str) -> None:
    """What libraries do on first use, while nothing is timed: generators, handles, Triton's driver."""
    import torch
    import triton

    with noted("libraries"):
        for dtype in (torch.bfloat16, torch.float32, torch.float64):
            x = torch.randn(64, 64, device=device).to(dtype)
            (x @ x).square().sum()
        torch.cuda.synchronize()
    with noted("Triton's driver"):
        triton.runtime.driver.active.get_current_device()
