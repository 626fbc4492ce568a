"""A decode step that can be repeated for ever at one context, with or without a CUDA graph around it."""

from collections.abc import Callable

import torch
from torch import Tensor

from basedbench.mixers import State


def repeated_step(step: Callable[[State], tuple[Tensor, State]], state: State, position: int) -> Callable[[], Tensor]:
    """`step` from `state` behind `position` tokens; what it counts is put back after every call, in one launch.

    The state's other tensors go on as the step leaves them: new ones are copied into the old, which a graph knows.
    """
    counters = [tensor for tensor in state.values() if not tensor.is_floating_point()]
    for tensor in counters:
        tensor.fill_(position)
    before = [tensor.clone() for tensor in counters]

    def call() -> Tensor:
        logits, after = step(state)
        if after.keys() != state.keys():
            raise ValueError(f"a step changes what the state consists of: {sorted(after.keys() ^ state.keys())}")
        for name, tensor in after.items():
            if tensor is not state[name]:
                state[name].copy_(tensor)
        if counters:
            torch._foreach_copy_(counters, before)
        return logits

    return call
