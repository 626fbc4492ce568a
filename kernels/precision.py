"""The precision of the references: float32 for narrower inputs, float64 for float64 inputs, autocast or not."""

from collections.abc import Callable
from functools import wraps
from typing import Concatenate, ParamSpec, TypeVar

import torch
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")


def float32_precision() -> str:
    """torch.get_float32_matmul_precision(), which torch.compile cannot trace: there it is a constant."""
    return torch.get_float32_matmul_precision()


# What `torch.compiler.assume_constant_result` does, which imports the compiler: a second for each command.
float32_precision._dynamo_marked_constant = True  # type: ignore[attr-defined]


def precision_of(dtype: torch.dtype) -> str:
    """What kernels round operands of their products to, see `taylor_tiles`. float16 keeps more than one tf32 would."""
    if dtype == torch.bfloat16:
        return "bf16"
    tf32 = dtype == torch.float32 and float32_precision() != "highest"
    return "tf32" if tf32 else "tf32x3"


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """float64 accumulates in itself, everything narrower in float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def negative_exp(A_log: Tensor) -> Tensor:
    """A = -exp(A_log), in fp32 at least."""
    return -A_log.to(accumulation_dtype(A_log.dtype)).exp()


def product_dtype(x: Tensor) -> torch.dtype | None:
    """Autocast's dtype where it is on: who writes what products read should write that, or it would be cast first."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None


def without_autocast(function: Callable[Concatenate[Tensor, P], R]) -> Callable[Concatenate[Tensor, P], R]:
    """Keep autocast out: it would take the products of the accumulation back to half precision."""

    @wraps(function)
    def wrapper(first: Tensor, /, *args: P.args, **kwargs: P.kwargs) -> R:
        with torch.autocast(first.device.type, enabled=False):
            return function(first, *args, **kwargs)

    return wrapper
