"""What kernels ask of their tensors: the last dimension side by side, and something in the place of what is missing."""

from typing import overload

from torch import Tensor


@overload
def dense_rows(x: Tensor) -> Tensor: ...


@overload
def dense_rows(x: None) -> None: ...


@overload
def dense_rows(x: Tensor | None) -> Tensor | None: ...


def dense_rows(x: Tensor | None) -> Tensor | None:
    """x itself, a slice of something wider too; a copy only where its rows are not dense."""
    return x if x is None or x.stride(-1) == 1 else x.contiguous()


def either(part: Tensor | None, other: Tensor) -> Tensor:
    """A pointer that is not read stands for what is missing."""
    return other if part is None else part
