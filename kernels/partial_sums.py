"""Sums of partial sums that wait for each other, to be finished in one launch.

Many operators' backward ends with adding up what its programs left for the gradients of gains, biases and weights: a
launch of a few microseconds each, as long as a small model's product. `together` lets those sums wait that nobody reads
before the whole backward is over: the gradients of leaves to which one way leads, without hooks. With others autograd
goes on computing. A hook on a turned leaf (`weight.t().register_hook`) would read what is not there yet: nothing shows
it.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
from torch import Tensor


class _Waiting:
    """The backward of a loss. Its graph is looked at when somebody asks, which on a CPU nobody does."""

    def __init__(self, loss: Tensor) -> None:
        self.loss = loss
        self.sums: list[tuple[Tensor, Tensor]] = []  # partial sums (P, W), and where their sum belongs (W,)

    @cached_property
    def edges(self) -> Counter[Any]:
        """How many ways lead to each node of the graph from others in it, the first node included with none."""
        return _edges(self.loss)

    @cached_property
    def leaves(self) -> set[int]:
        leaves = (node.variable for node, count in self.edges.items() if _accumulates(node) and count == 1)
        return {id(leaf) for leaf in leaves if not leaf._backward_hooks}


_open: list[_Waiting] = []


@contextmanager
def together(loss: Tensor) -> Iterator[None]:
    """Take gradients of `loss` inside, by `torch.autograd.grad`; some of them are complete only behind it."""
    _open.append(_Waiting(loss))
    try:
        yield
    finally:
        sums = _open.pop().sums
    if sums:
        from .partial_sums_triton import add_up

        add_up(sums)


def waits(partials_PW: Tensor, out_W: Tensor, leaves: Sequence[Tensor | None]) -> bool:
    """Whether somebody else will add up; out_W is to be nothing but the gradients of `leaves`, side by side."""
    given = [leaf for leaf in leaves if leaf is not None]
    if not given or running() is None or any(leaf.dtype != out_W.dtype for leaf in given):
        return False
    if not {id(leaf) for leaf in given} <= _open[-1].leaves:
        return False
    _open[-1].sums.append((partials_PW, out_W))
    return True


def running() -> Any:
    """The node of the open backward that runs now; None where it is one of another that such a node has begun."""
    node = torch._C._current_autograd_node()  # type: ignore[attr-defined]
    return node if _open and node in _open[-1].edges else None


def leaf_behind(node: Any) -> Tensor | None:
    """The leaf whose whole gradient is what the open backward hands to `node`, turned over at most; None for others."""
    while type(node).__name__ == "TBackward0" and _open[-1].edges[node] == 1:
        node = node.next_functions[0][0]
    if not _accumulates(node):
        return None
    leaf: Tensor = node.variable
    return leaf if id(leaf) in _open[-1].leaves else None


def _accumulates(node: Any) -> bool:
    return type(node).__name__ == "AccumulateGrad"


def _edges(loss: Tensor) -> Counter[Any]:
    edges: Counter[Any] = Counter({loss.grad_fn: 0})
    nodes = [loss.grad_fn]
    while nodes:
        for node, _ in getattr(nodes.pop(), "next_functions", ()):
            if node is not None:
                if node not in edges:
                    nodes.append(node)
                edges[node] += 1
    return edges
