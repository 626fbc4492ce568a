"""The precision of the references: float32 for narrower inputs, float64 for float64 inputs, autocast or not."""

from collections.abc import Callable
from functools import wraps
from typing import Concatenate, ParamSpec, TypeVar

import torch
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """float64 accumulates in itself, everything narrower in float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def without_autocast(function: Callable[Concatenate[Tensor, P], R]) -> Callable[Concatenate[Tensor, P], R]:
    """Keep autocast out: it would take the products of the accumulation back to half precision."""

    @wraps(function)
    def wrapper(first: Tensor, /, *args: P.args, **kwargs: P.kwargs) -> R:
        with torch.autocast(first.device.type, enabled=False):
            return function(first, *args, **kwargs)

    return wrapper
