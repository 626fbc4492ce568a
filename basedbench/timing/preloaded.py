"""What the server of worker processes does once for all of them: what each would do for itself at first use.

It imports what they need, up to what torch imports with the first backward pass: eleven processes that do so at once
take three seconds for what one does in half of one. It makes the key by which Triton looks for a compiled kernel, a
hash of its own hundreds of megabytes, and has the module compiled through which Triton calls the driver: threads see to
these while the imports go on, and have ended when the first process is forked. None of it touches a GPU.

torch shields every operator that is registered with it from its compiler, and imports that when the operator is first
called: two seconds in every worker. Here the shield is up when there is something to shield from.
"""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial, wraps
from importlib import import_module
from typing import Any

from basedbench.forking import driver_is_there
from basedbench.timing.timeline import note, noted
from basedbench.timing.waking import FIRST_BACKWARD

NEEDED = ("torch", "basedbench.timing.session", "basedbench.timing.operator", "basedbench.timing.language")
# What workers on a GPU import before their first case.
ON_A_GPU = ("basedbench.timing.ceilings", "basedbench.engines.kernel_keys", "basedbench.plugins", FIRST_BACKWARD)
TRITON = ("triton.compiler", "triton.backends.nvidia.compiler")
DRIVER_LIMIT_S = 60.0
COMPILER = "torch._dynamo"


def make_triton_key() -> str | None:
    """The key, which Triton keeps; None if this version makes it elsewhere, and then each process does."""
    with suppress(ImportError, OSError):
        from triton.runtime.cache import triton_key

        return str(triton_key())
    return None


def make_triton_driver() -> None:
    """Have the module compiled through which Triton calls the driver, by a process that may load the driver's library.

    Where that fails it fails again in the worker that needs it, which then says so.
    """
    with noted("Triton's driver, compiled"), suppress(OSError, subprocess.TimeoutExpired):
        command = [sys.executable, "-c", "from triton.backends.nvidia.driver import CudaUtils; CudaUtils()"]
        subprocess.run(command, capture_output=True, timeout=DRIVER_LIMIT_S, check=False)


def shield_when_needed() -> None:
    """From here on what torch shields from its compiler is called as it is until the compiler is there."""
    import torch

    shield: Any = getattr(torch, "_disable_dynamo", None)
    if shield is None:  # nothing else may end the server
        return

    def later(function: Any = None, recursive: bool = True) -> Any:
        if function is None:
            return partial(later, recursive=recursive)
        shielded = shield(function, recursive)

        @wraps(function)
        def call(*arguments: Any, **named: Any) -> Any:
            return (shielded if COMPILER in sys.modules else function)(*arguments, **named)

        return call

    torch._disable_dynamo = later  # type: ignore[assignment]


def import_all(names: tuple[str, ...]) -> None:
    """Modules; what this machine lacks is missed where it is needed."""
    for name in names:
        with suppress(ImportError):
            import_module(name)


def preload() -> None:
    """All of it; on a machine without a GPU only the imports that every worker has."""
    if not driver_is_there():
        import_all(NEEDED)
        return
    import_all(TRITON)
    with ThreadPoolExecutor() as beside:
        beside.submit(make_triton_key)
        beside.submit(make_triton_driver)
        import_all(NEEDED)
        shield_when_needed()
        import_all(ON_A_GPU)
        note("the server has imported what workers need")
    note("the server is ready")


preload()
