"""A projection cut into parts whose gradients are not put together again where they already lie side by side.

    x (..., E) -> parts x_0, x_1, ... of the given widths, views

Autograd copies the parts' gradients into one tensor: read and written once more, as long as a product of small models.
A kernel that takes parts as they are may as well write their gradients so: `gradients_like` makes room for them.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class _Cut(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, widths: Sequence[int]) -> tuple[Tensor, ...]:
        return x.split(list(widths), -1)

    @staticmethod
    def backward(ctx: Any, *parts: Tensor) -> tuple[Tensor, None]:
        return torch.cat(parts, -1) if (whole := _whole(parts)) is None else whole, None


def cut(x: Tensor, widths: Sequence[int]) -> tuple[Tensor, ...]:
    """`x.split(widths, -1)`, whose backward copies nothing that `gradients_like` made."""
    return _Cut.apply(x, widths) if torch.is_grad_enabled() and x.requires_grad else x.split(list(widths), -1)


def gradients_like(*parts: Tensor) -> list[Tensor]:
    """Room for the gradients of parts (B,L,H,K): lying as they do, if they are a whole tensor cut, else contiguous."""
    widths = [part.shape[2] * part.shape[3] for part in parts]
    dense = all(part.numel() and part[0, 0].is_contiguous() for part in parts)
    whole = _whole([part.flatten(2) for part in parts]) if dense else None
    if whole is None:
        return [torch.empty(part.shape, dtype=part.dtype, device=part.device) for part in parts]
    pieces = torch.empty_like(whole).split(widths, -1)
    return [piece.unflatten(-1, part.shape[2:]) for piece, part in zip(pieces, parts, strict=True)]


def _whole(parts: Sequence[Tensor]) -> Tensor | None:
    """The dense tensor that is these parts side by side, if there is one."""
    first = parts[0]
    shape = (*first.shape[:-1], sum(part.shape[-1] for part in parts))
    strides = torch.empty(shape, device="meta").stride()
    at = first.storage_offset()
    for part in parts:
        same = part.untyped_storage()._cdata == first.untyped_storage()._cdata and part.dtype == first.dtype
        if not same or part.storage_offset() != at or part.stride() != strides:
            return None
        at += part.shape[-1]
    return first.as_strided(shape, strides)
