"""A GPU that is not there: what Triton and the public functions ask of one is answered as an H200 would.

Triton asks its driver for the target: a stand-in answers "cuda, 90". Tensors on the CPU claim to lie on a GPU, so that
the public functions take their kernels, and launches only compile. What they compute is garbage; what they launch is
what they launch on a GPU.
"""

from collections.abc import Callable
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction


class Hopper:
    """What Triton wants to know of a driver in order to compile."""

    def get_current_device(self) -> int:
        return 0

    def set_current_device(self, device: int) -> None:
        pass

    def get_current_stream(self, device: int | None = None) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_active_torch_device(self) -> str:
        return "cpu"


def seem_there() -> None:
    """From here on tensors seem to lie on an H200, for Triton and for the public functions."""
    triton.runtime.driver.set_active(Hopper())
    torch.Tensor.is_cuda = property(lambda self: True)  # type: ignore[assignment, misc]
    torch.cuda.get_device_capability = lambda device=None: (9, 0)  # type: ignore[assignment]


def pretend(wanted: Callable[[str], bool] = lambda name: True) -> dict[str, tuple[str, Any]]:
    """`seem_there`, and launches compile; returns what has been compiled, by hash.

    A launch of a kernel that is not wanted does nothing.
    """
    seem_there()
    torch.set_num_threads(1)
    compiled: dict[str, tuple[str, Any]] = {}
    compile_or_launch = JITFunction.run

    def only_compile(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        if not wanted(self.fn.__name__):
            return None
        kernel = compile_or_launch(self, *args, grid=grid, warmup=True, **kwargs)
        compiled.setdefault(kernel.hash, (self.fn.__name__, kernel))
        return kernel

    JITFunction.run = only_compile
    return compiled
