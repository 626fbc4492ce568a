"""The kernel of `row_linear` against float64: whole sums and parts, added up by the last program or by all; edges."""

import pytest
import torch
import torch.nn.functional as F

from basedbench.kernels.row_linear import LEAST_ROWS, batch_of
from basedbench.kernels.row_linear_launch import operator
from tests.kernels.triton.conftest import interpreted

pytestmark = pytest.mark.usefixtures("tensor_maps")

PLANS = {  # tile, width of a stage, parts, stages of both rings, and groups of rows
    "whole": ((64, 64, 1, 2, 3), 1),
    "wide stages": ((64, 128, 1, 2, 2), 1),
    "halves": ((64, 64, 2, 2, 3), 1),
    "quarters": ((128, 64, 4, 3, 2), 1),
    "rows in groups": ((64, 64, 1, 2, 3), 4),
    "halves of groups": ((64, 64, 2, 2, 3), 2),
}


def numbers(plan, meet, rows=32):
    """As the operators take them."""
    rings, groups = PLANS[plan]
    return *rings, meet, min(groups, batch_of(rows) // LEAST_ROWS)


def problem(randn, device, rows, outputs, width, bias):
    dtype = torch.float16 if interpreted else torch.bfloat16
    x, weight = randn(rows, 2 * width).to(device, dtype)[:, :width], randn(outputs, width).to(device, dtype)
    bias = randn(outputs).to(device, dtype) if bias else None
    exact = F.linear(x.double(), weight.double(), None if bias is None else bias.double())
    return x, weight, bias, exact


@pytest.mark.parametrize("meet", [False, pytest.param(True, marks=pytest.mark.skipif(interpreted, reason="waits"))])
@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize(("rows", "outputs", "width", "bias"), [(1, 64, 384, False), (17, 208, 640, True)])
def test_products(randn, relative_error, device, rows, outputs, width, bias, plan, meet):
    x, weight, bias, exact = problem(randn, device, rows, outputs, width, bias)
    rounded = exact.to(x.dtype)
    for early in (False,) if interpreted else (False, True):
        for _ in range(2):  # the second finds the counters as the first one left them
            y = operator(x, weight, bias, *numbers(plan, meet, rows), early)
            assert y.dtype == x.dtype
            assert relative_error(y, exact) <= 2 * relative_error(rounded, exact) + 1e-5


def test_registration(randn, device):
    x, weight, _, _ = problem(randn, device, 3, 64, 128, False)
    torch.library.opcheck(operator, (x, weight, None, *numbers("halves", False), False))


@pytest.mark.skipif(interpreted, reason="programs run one after the other")
@pytest.mark.parametrize(
    ("plan", "meet"),
    [("whole", True), ("quarters", False), ("quarters", True), ("rows in groups", True), ("halves of groups", True)],
)
def test_dependents_wait(randn, device, plan, meet):
    """A chain in a graph, launched as dependents or not: equal to the bit, again and again."""
    weights = [(randn(512, 512) / 512**0.5).to(device, torch.bfloat16) for _ in range(12)]
    x, found = randn(32, 512).to(device, torch.bfloat16), {}

    def chain(early):
        h = x * 1.0
        for weight in weights:
            h = operator(h, weight, None, *numbers(plan, meet), early)
        return h

    for early in (False, True):
        chain(early)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            found[early] = chain(early)
        for _ in range(20):
            graph.replay()
            if early:
                assert torch.equal(found[True], found[False])
