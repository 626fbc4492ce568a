"""torch.compile for one case."""

from collections.abc import Callable
from types import FunctionType
from typing import Any

import torch


def compiled(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """`function` compiled for whatever shape it is called with first, as a case's contender is.

    A worker has many cases of one contender. After eight of them PyTorch no longer compiles a function but runs it as
    it stands, and says so in a warning only: what is timed then is something else. It counts by code object, so every
    case has its own; and a function that is not compiled whole is an error.
    """
    assert isinstance(function, FunctionType)
    copy = FunctionType(
        function.__code__.replace(),
        function.__globals__,
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    return torch.compile(copy, dynamic=False, fullgraph=True, **options)
