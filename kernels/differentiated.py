"""Whether a backward may follow, for which a forward keeps what it needs; and that it comes only once."""

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor


def differentiated(*tensors: Tensor | None) -> bool:
    """Gradients are on, and one of the tensors that are given asks for one."""
    return torch.is_grad_enabled() and any(one is not None and one.requires_grad for one in tensors)


def once_differentiable(backward: Callable[..., Any]) -> Callable[..., Any]:
    """For the backward of an autograd.Function that autograd cannot differentiate: RuntimeError where that is tried.

    PyTorch's own leaves gradients as constants where the gradient that comes in is one, as that of a sum: what is
    differentiated twice is then wrong, and nothing says so.
    """

    @wraps(backward)
    def once(ctx: Any, *grads: Tensor | None) -> Any:
        if not torch.is_grad_enabled():  # create_graph
            return backward(ctx, *grads)
        read = _Read(ctx)
        with torch.no_grad():
            found = backward(read, *grads)
        several = found if isinstance(found, tuple) else (found,)
        made_of = [one for one in (*grads, *read.saved_tensors) if one is not None and one.requires_grad]
        tensors = [one for one in several if one is not None]
        refusing = iter(_Refusing.apply(len(tensors), *tensors, *made_of))
        told = tuple(None if one is None else next(refusing) for one in several)
        return told if isinstance(found, tuple) else told[0]

    return once


class _Read:
    """A context whose saved tensors have been asked for once: checkpoints do not give them out again."""

    def __init__(self, ctx: Any) -> None:
        self._ctx, self.saved_tensors = ctx, ctx.saved_tensors

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ctx, name)


class _Refusing(torch.autograd.Function):
    """The first `count` tensors as they are, and a node of the graph that ends what is differentiated through it."""

    @staticmethod
    def forward(ctx: Any, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(one.view_as(one) for one in tensors[:count])

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> Any:
        raise RuntimeError("this operator has first derivatives only: its gradients cannot be differentiated")
