"""Sums of partial sums that wait for each other, to be finished in one launch.

Many operators' backward ends with adding up what its programs left for the gradients of gains, biases and weights: a
launch of a few microseconds each, as long as a small model's product. `together` lets those sums wait that nobody reads
before the whole backward is over: the gradients of leaves that are read once. With others autograd goes on computing.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import Tensor


class _Waiting(NamedTuple):
    leaves: set[int]
    sums: list[tuple[Tensor, Tensor]]  # partial sums (P, W), and where their sum belongs (W,)


_open: list[_Waiting] = []


@contextmanager
def together(loss: Tensor) -> Iterator[None]:
    """Take gradients of `loss` inside, by `torch.autograd.grad`; some of them are complete only behind it."""
    _open.append(_Waiting(_read_once(loss), []))
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
    if not _open or not given or any(leaf.dtype != out_W.dtype for leaf in given):
        return False
    if not {id(leaf) for leaf in given} <= _open[-1].leaves:
        return False
    _open[-1].sums.append((partials_PW, out_W))
    return True


def _read_once(loss: Tensor) -> set[int]:
    """The leaves that autograd reaches from `loss` on one way only: nothing is added to their gradients."""
    reads: Counter[int] = Counter()
    reached: set[Any] = {loss.grad_fn}
    nodes = [loss.grad_fn]
    while nodes:
        for node, _ in getattr(nodes.pop(), "next_functions", ()):
            if type(node).__name__ == "AccumulateGrad":
                reads[id(node.variable)] += 1
            elif node is not None and node not in reached:
                reached.add(node)
                nodes.append(node)
    return {leaf for leaf, count in reads.items() if count == 1}
