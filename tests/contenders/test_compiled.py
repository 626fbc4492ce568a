"""Compiled contenders stay compiled, however many cases a worker has."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from basedbench.contenders.compiled import compiled

CASES = 20  # more than PyTorch compiles one function for


def _function(x: Tensor) -> Tensor:
    return x.cos() * 2


class Backend:
    """Counts what is compiled."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        self.graphs += 1
        return graph.forward


def test_every_case_is_compiled_once() -> None:
    backend = Backend()
    cases = [(compiled(_function, backend=backend), torch.ones(size)) for size in range(1, CASES + 1)]
    for _ in range(2):
        for call, x in cases:
            torch.testing.assert_close(call(x), _function(x))
    assert backend.graphs == CASES


def test_closures_keep_what_they_hold() -> None:
    def scaling(offset: Tensor) -> Callable[..., Tensor]:
        def scaled(x: Tensor, factor: int = 2) -> Tensor:
            return x * factor + offset

        return compiled(scaled, backend=Backend())

    for offset in (1.0, 5.0):
        assert scaling(torch.tensor(offset))(torch.ones(3)).tolist() == [2 + offset] * 3


def test_what_cannot_be_compiled_whole_is_an_error() -> None:
    def broken(x: Tensor) -> Tensor:
        torch._dynamo.graph_break()
        return x

    with pytest.raises(Exception, match=r"(?i)graph.?break"):
        compiled(broken, backend=Backend())(torch.ones(2))
