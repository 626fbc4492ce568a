"""Products of many tokens and few columns against float64."""

from itertools import product

import pytest
import torch
from torch import Tensor

from basedbench.kernels import partial_sums_triton, tall_matmul, tall_matmul_triton
from basedbench.kernels.partial_sums import together
from basedbench.kernels.tall_matmul import Product, TallMatmuls, make
from tests.kernels.triton.conftest import interpreted

# Relative errors of results that are rounded once, and of sums in float32.
ROUNDED, SUMMED = {torch.float16: 4e-4, torch.bfloat16: 3e-3}, 1e-5
# Tokens, inner side and columns: whole tiles and not, one turn of the loop and several, one tile across and several.
SIZES = [(1024, 64, 128), (1032, 40, 256), (1096, 128, 72), (8, 8, 8), (1024, 8, 152), (2048, 200, 24)]
SUMS = [(64, 1024, 128), (40, 1096, 256), (128, 3000, 72), (8, 8, 8), (24, 5000, 8)]
SHARE = 8 if interpreted else 1  # of the tokens, with which all limits shrink


@pytest.fixture(autouse=True)
def fewer_tokens(monkeypatch):
    monkeypatch.setattr(tall_matmul, "MANY", tall_matmul.MANY // SHARE)
    monkeypatch.setattr(tall_matmul_triton, "LEAST_TOKENS", tall_matmul_triton.LEAST_TOKENS // SHARE)


def fewer(tokens: int) -> int:
    """Whole units of them."""
    return -(-tokens // (SHARE * tall_matmul.UNIT)) * tall_matmul.UNIT


def matrix(randn, device, dtype, rows, columns, together=True, beside=0) -> Tensor:
    """With the numbers of a row together, or those of a column; `beside`: NaN behind each of them in memory."""
    shape = (rows, columns) if together else (columns, rows)
    room = torch.full((shape[0], shape[1] + beside), torch.nan, dtype=dtype, device=device)
    room[:, : shape[1]] = randn(*shape)
    found = room[:, : shape[1]]
    return found if together else found.t()


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("added", ["none", "vector", "matrix", "out"])
def test_products(randn, relative_error, device, dtypes, size, added):
    tokens, inner, columns = fewer(size[0]), *size[1:]
    for dtype, a_rows, b_rows, out_rows in product(dtypes[1:], *[(True, False)] * 3):
        a = matrix(randn, device, dtype, tokens, inner, a_rows, 8)
        b = matrix(randn, device, dtype, inner, columns, b_rows, 16)
        out = matrix(randn, device, dtype, tokens, columns, out_rows, 8)
        given = {"none": None, "vector": matrix(randn, device, dtype, 1, columns)[0], "out": out}
        given["matrix"] = matrix(randn, device, dtype, tokens, columns, out_rows)
        exact = a.double() @ b.double() + (0 if given[added] is None else given[added].double())
        found = tall_matmul_triton.tall_matmul(a, b, out, given[added])
        assert found is out
        assert relative_error(found, exact) <= ROUNDED[dtype]
        behind = torch.as_strided(
            out if out_rows else out.t(), (1, 8), (1, 1), out.storage_offset() + out.shape[out_rows]
        )
        assert behind.isnan().all()


@pytest.mark.parametrize("size", SUMS, ids=str)
def test_sums_over_tokens(randn, relative_error, device, dtypes, size):
    rows, tokens, columns = size[0], fewer(size[1]), size[2]
    for dtype, a_rows, b_rows in product(dtypes[1:], *[(True, False)] * 2):
        a = matrix(randn, device, dtype, rows, tokens, a_rows, 8)
        b = matrix(randn, device, dtype, tokens, columns, b_rows, 8)
        for kept, most in ((torch.float32, SUMMED), (dtype, ROUNDED[dtype])):
            found = tall_matmul_triton.token_sum(a, b, kept)
            assert found.dtype == kept
            assert relative_error(found, a.double() @ b.double()) <= most
            assert torch.equal(found, tall_matmul_triton.token_sum(a, b, kept))


def test_what_a_layer_multiplies(randn, relative_error, device, dtypes, launches):
    """Forward and both gradients of a linear layer, as autograd takes them, each way round."""
    for dtype in dtypes[1:]:
        x, dy = (matrix(randn, device, dtype, 1024 // SHARE, width) for width in (40, 24))
        weight, bias = matrix(randn, device, dtype, 24, 40), matrix(randn, device, dtype, 1, 24)[0]
        for one in (
            Product(x, weight.t(), bias), Product(dy, weight), Product(dy.t(), x), Product(weight, x.t()),
            Product(dy, weight, x, x.clone()), Product(weight.t(), dy.t(), x.t(), x.clone().t()),
            Product(x.t(), dy, None, torch.empty(40, 24, dtype=dtype, device=device)),
        ):  # fmt: skip
            before = len(launches)
            found = make(one)
            assert len(launches) > before
            exact = one.a.double() @ one.b.double() + (0 if one.added is None else one.added.double())
            assert relative_error(found, exact) <= ROUNDED[dtype]
            assert one.out is None or found is one.out


def test_inside_autograd_takes_them(randn, relative_error, device, dtypes, launches, monkeypatch):
    monkeypatch.setattr(tall_matmul, "_on_gpu", lambda one: True)
    for dtype in dtypes[1:]:
        given = [matrix(randn, device, dtype, *shape) for shape in ((1024 // SHARE, 40), (24, 40), (1, 24))]
        x, weight, bias = (one.requires_grad_() for one in (*given[:2], given[2][0].detach()))
        dy = matrix(randn, device, dtype, 1024 // SHARE, 24)
        with TallMatmuls():
            y = torch.nn.functional.linear(x, weight, bias)
            assert launches == ["tall_matmul_kernel"]
            found = torch.autograd.grad(y, [x, weight], dy)
        assert sorted(launches)[-2:] == ["tall_matmul_kernel", "token_sum_kernel"]
        exact = [dy.double() @ weight.double(), dy.double().t() @ x.double()]
        assert relative_error(y, x.double() @ weight.double().t() + bias.double()) <= ROUNDED[dtype]
        for one, true in zip(found, exact, strict=True):
            assert relative_error(one, true) <= ROUNDED[dtype]
        launches.clear()


def test_gradients_of_leaves_wait_for_each_other(randn, relative_error, device, dtypes, monkeypatch):
    """Where nothing reads them before: not of a weight that is used twice, cast, or scaled."""
    sums: list[int] = []
    add_up = partial_sums_triton.add_up
    monkeypatch.setattr(partial_sums_triton, "add_up", lambda given: (sums.append(len(given)), add_up(given)))
    monkeypatch.setattr(tall_matmul, "_on_gpu", lambda one: True)
    monkeypatch.setattr(tall_matmul_triton, "LEAST_TOKENS", 256 // SHARE)
    linear = torch.nn.functional.linear
    for dtype in dtypes[1:]:
        x = matrix(randn, device, dtype, 1024 // SHARE, 40)
        once, other, twice, scaled = (matrix(randn, device, dtype, 40, 40).requires_grad_() for _ in range(4))
        wide = matrix(randn, device, torch.float32, 40, 40).requires_grad_()
        leaves = [once, other, twice, scaled, wide]

        def outputs(x, once, other, twice, scaled, wide):
            y = linear(linear(x, once), other) + linear(x, twice) + linear(x, twice * 2)
            return (y + linear(x, scaled * 3) + linear(x, wide.to(x.dtype))) / 64

        with TallMatmuls():
            loss = outputs(x, *leaves).square().sum(dtype=torch.float32)
            sums.clear()
            with together(loss):
                found = torch.autograd.grad(loss, leaves)
        assert sums == [1, 1, 1, 1, 2]
        exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
        for one, true in zip(
            found, torch.autograd.grad(outputs(x.double(), *exact).square().sum(), exact), strict=True
        ):
            assert relative_error(one, true) <= 8 * ROUNDED[dtype]  # of several roundings


class Again(torch.autograd.Function):
    """(x W^T)^2 whose backward computes it anew and goes back through that."""

    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight)
        return torch.nn.functional.linear(x, weight).square()

    @staticmethod
    def backward(ctx, dy):
        x, weight = ctx.saved_tensors
        with torch.enable_grad():
            y = torch.nn.functional.linear(x, weight).square()
        return None, torch.autograd.grad(y, (weight,), dy)[0] * 2 / 2


class Named(torch.autograd.Function):
    """W^T, by a function that calls W what autograd calls a leaf that gets a gradient."""

    @staticmethod
    def forward(ctx, weight):
        ctx.variable = weight
        return weight.t() * 1

    @staticmethod
    def backward(ctx, grad):
        return grad.t() * 1


def hooked(x, weight):
    if not weight._backward_hooks:
        weight.register_hook(lambda grad: grad * 2 / 2)
    return x @ weight.t()


def turned_twice(x, weight):
    turned = weight.t()
    return x @ turned + (x * 2) @ turned


def as_many_tokens_as_outputs(x, weight):
    return torch.nn.functional.linear(torch.nn.functional.linear(x[:, :8], weight[:8]), weight) / 8


READ_BEFORE = {
    "a turned weight used twice": turned_twice,
    "a turned weight used otherwise": lambda x, weight: x @ (turned := weight.t()) + turned.sum(0),
    "a factor": lambda x, weight: torch.addmm(weight.new_zeros(len(weight)), x, weight.t(), alpha=0.5),
    "a backward inside of the backward": Again.apply,
    "something else that is called a variable": lambda x, weight: x @ Named.apply(weight),
    "a hook": hooked,
    "as many tokens as outputs": as_many_tokens_as_outputs,
    "nothing": torch.nn.functional.linear,
}


@pytest.mark.parametrize("name", READ_BEFORE)
def test_gradients_that_something_reads_do_not_wait(randn, relative_error, device, dtypes, monkeypatch, name):
    """`empty`: memory whose sum is not there yet holds NaN."""
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *size, **how: nan(empty(*size, **how)))
    monkeypatch.setattr(tall_matmul, "_on_gpu", lambda one: True)
    tokens = 2048 // SHARE
    shape = (tokens, 8) if name == "as many tokens as outputs" else (24, 16)
    for dtype in dtypes[1:]:
        x, weight = matrix(randn, device, dtype, tokens, 16), matrix(randn, device, dtype, *shape).requires_grad_()

        def loss(x, weight):
            return (READ_BEFORE[name](x, weight) / 64).square().sum(dtype=weight.double().dtype)

        with TallMatmuls():
            found = loss(x, weight)
        with together(found), TallMatmuls():
            (found,) = torch.autograd.grad(found, weight)
        exact = weight.detach().double().requires_grad_()
        assert relative_error(found, torch.autograd.grad(loss(x.double(), exact), exact)[0]) <= 8 * ROUNDED[dtype]


def nan(x: Tensor) -> Tensor:
    return x.fill_(torch.nan) if x.is_floating_point() else x


@pytest.fixture
def launches(monkeypatch) -> list[str]:
    """The kernels of products that have been launched, by name."""
    names: list[str] = []
    for function, kernel in (("tall_matmul", "tall_matmul_kernel"), ("token_sum", "token_sum_kernel")):
        real = getattr(tall_matmul_triton, function)

        def noted(*given, real=real, kernel=kernel):
            names.append(kernel)
            return real(*given)

        monkeypatch.setattr(tall_matmul_triton, function, noted)
    return names
