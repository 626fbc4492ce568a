"""Which products are taken from PyTorch, on any machine; tests/kernels/triton has their results."""

from typing import Any

import pytest
import torch
from torch import Tensor

from basedbench.kernels.tall_matmul import Product, TallMatmuls, make, read

aten = torch.ops.aten


def half(*shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.bfloat16)


X, W, BIAS = half(1024, 64), half(64, 128), half(128)


ROOM = half(1032, 128)
LEFT = {
    "tokens that are no multiple of 8": Product(half(1020, 64), W),
    "an inner side that is none": Product(half(1024, 60), half(60, 128)),
    "columns that are none": Product(X, half(64, 129)),
    "no tokens": Product(half(0, 64), W),
    "few tokens": Product(half(512, 64), W),
    "work enough for a library": Product(half(1024, 512), half(512, 256)),
    "the same, over tokens": Product(half(512, 2048), half(2048, 256)),
    "float32": Product(X.float(), W.float()),
    "a bias in float32": Product(X, W, BIAS.float()),
    "a result that PyTorch would resize": Product(X, W, None, half(128)),
    "no side that lies together": Product(X[:, ::2], W[::2]),
    "rows that are no whole 16 bytes apart": Product(half(1024, 65)[:, :64], W),
    "a column for all": Product(X, W, half(1024, 1)),
    "a number for all": Product(X, W, half(1)),
    "a matrix that lies the other way": Product(X, W, half(128, 1024).t()),
    "a vector along the tokens": Product(W.t(), X.t(), half(1024)),
    "sides that do not fit": Product(X, half(32, 128)),
    "no side at all": Product(X, W, torch.zeros((), dtype=torch.bfloat16)),
    "one row many times": Product(X, W, None, half(1, 128).expand(1024, 128)),
    "a result that overlaps what is added": Product(X, W, ROOM[8:], ROOM[:-8]),
    "a sum over tokens and a matrix": Product(half(64, 1024), half(1024, 64), half(64, 64)),
}


@pytest.mark.parametrize("name", LEFT)
def test_left_to_pytorch(name: str) -> None:
    assert make(LEFT[name]) is None


def test_what_an_operation_multiplies() -> None:
    out = half(1024, 128)
    assert read(aten.mm.default, (X, W), {}) == (X, W, None, None)
    assert read(aten.mm.out, (X, W), {"out": out}) == (X, W, None, out)
    assert read(aten.addmm.default, (BIAS, X, W), {}) == (X, W, BIAS, None)
    assert read(aten.addmm.out, (BIAS, X, W), {"out": out}) == (X, W, BIAS, out)
    assert read(aten.addmm_.default, (out, X, W), {}) == (X, W, out, out)
    assert read(aten.addmm.default, (BIAS, X, W), {"alpha": 2}) is None
    assert read(aten.addmm_.default, (out, X, W), {"beta": 0}) is None
    assert read(aten.bmm.default, (X[None], W[None]), {}) is None


def test_turned_is_the_same_product() -> None:
    a, b, added = torch.randn(3, 5), torch.randn(5, 4), torch.randn(3, 4)
    turned = Product(a, b, added).turned()
    assert turned.added is not None
    torch.testing.assert_close((turned.a @ turned.b + turned.added).t(), a @ b + added)


def test_on_a_cpu_nothing_changes() -> None:
    x, weight, bias = torch.randn(1024, 16).bfloat16(), torch.randn(8, 16).bfloat16(), torch.randn(8).bfloat16()
    with TallMatmuls():
        found = torch.nn.functional.linear(x, weight, bias)
    assert torch.equal(found, torch.nn.functional.linear(x, weight, bias))


def test_what_is_compiled_stays_compiled() -> None:
    """A mixer of the user's may compile its parts; inside of most modes PyTorch would call them as they are."""
    graphs = []

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(lambda x: x @ x + 1, backend=backend)
    x = torch.randn(4, 4)
    with TallMatmuls():
        found = compiled(x)
    assert len(graphs) == 1
    torch.testing.assert_close(found, x @ x + 1)


def test_sides_that_do_not_fit_are_said_not_to() -> None:
    with TallMatmuls(), pytest.raises(RuntimeError, match="cannot be multiplied"):
        torch.mm(X, W[:32])


def test_operators_of_functions_go_on() -> None:
    """PyTorch refuses them inside of a mode that says nothing of them."""
    x = torch.randn(4, 4)
    with TallMatmuls():
        found = torch.cond(x.sum() > -1e9, lambda x: x @ x, lambda x: x * 2, (x,))
    torch.testing.assert_close(found, x @ x)
