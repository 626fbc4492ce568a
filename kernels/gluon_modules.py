"""Modules of kernels in Gluon, an experimental part of Triton: imported when first needed, and not everywhere there.

Where Gluon is missing or another one than these kernels are written for, something else takes over: plain Triton
kernels if there are any, otherwise the PyTorch reference, which is right and slow.
"""

from functools import lru_cache
from importlib import import_module
from types import ModuleType
from warnings import warn

import torch

OLDEST = (3, 6)  # Triton, with the Gluon that the kernels are written for


def triton_version() -> tuple[int, ...]:
    """Major and minor; ImportError where there is no Triton."""
    import triton

    return tuple(map(int, triton.__version__.split(".")[:2]))


@lru_cache
def is_hopper(device: torch.device) -> bool:
    """Of compute capability 9.0, which kernels with warpgroup products and tensor maps are written for."""
    return torch.cuda.get_device_capability(device) == (9, 0)


@lru_cache
def gluon_module(name: str) -> ModuleType | str:
    """The module of this package, or why it cannot be used."""
    try:
        import triton

        if triton_version() < OLDEST:
            oldest = ".".join(map(str, OLDEST))
            return f"Triton {triton.__version__} is older than {oldest}, for whose Gluon these kernels are written"
        return import_module(f".{name}", __package__)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        return f"this Triton has no Gluon that these kernels know: {error}"


@lru_cache
def usable(name: str, operator: str) -> bool:
    """Whether the module can be used; if not, says once that the reference computes the operator."""
    found = gluon_module(name)
    if isinstance(found, str):
        warn(f"{operator} runs as its PyTorch reference, which is slow: {found}.", stacklevel=3)
    return not isinstance(found, str)
