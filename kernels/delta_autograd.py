"""The derivative of a delta rule's operator: what its forward leaves for its backward, in one place for both forms."""

from typing import Any

import torch
from torch import Tensor


def _save(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    *tensors, return_state, _ = inputs
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(*(output[2:] if return_state else output[1:]))
    ctx.given = len(tensors)
    ctx.save_for_backward(*tensors, *output[2:])


def register(forward: Any, backward: Any) -> None:
    """`forward` of tensors (v the third), return_state and keep gives y, the last state and what `backward` needs.

    `backward` of the tensors, that, and the gradients of y and of the last state gives one gradient per tensor.
    """

    def gradients(ctx: Any, grads: list[Tensor | None]) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors  # once: checkpoints do not give them out again
        tensors, rest = saved[: ctx.given], saved[ctx.given :]
        dy, grad_state = grads[:2]
        dy = torch.zeros_like(tensors[2]) if dy is None else dy
        found = backward(*tensors, *rest, dy, grad_state)
        given = (None if part is None else grad for part, grad in zip(tensors, found, strict=True))
        return *given, None, None

    forward.register_autograd(gradients, setup_context=_save)
