"""The reference of row_linear, and which shapes leave PyTorch's product."""

import importlib

import pytest
import torch
import torch.nn.functional as F

from basedbench.kernels import row_linear

module = importlib.import_module("basedbench.kernels.row_linear")


def test_products_and_gates(randn):
    x, weight, bias = randn(3, 12), randn(10, 12), randn(10)
    torch.testing.assert_close(row_linear(x, weight, bias), x @ weight.T + bias)
    value, gate = x @ weight[:5].T, x @ weight[5:].T
    torch.testing.assert_close(row_linear(x, weight, gated=True), value * F.silu(gate))


def test_tiles_are_those_for_the_fewest_rows_that_suffice(monkeypatch):
    few, many = {"outputs": 32}, {"outputs": 64}
    monkeypatch.setattr(module, "TABLE", {(64, 32, True): {128: many, 16: few}})
    assert [module.chosen(rows, 64, 32, True) for rows in (1, 16, 17, 128, 129)] == [few, few, many, many, None]
    assert module.chosen(1, 64, 32, False) is None


@pytest.mark.parametrize("gated", [False, True])
def test_costs(gated):
    shape = {"rows": 3, "width": 8, "outputs": 10, "gated": gated}
    written = 15 if gated else 30
    assert module.flops(**shape) == 2 * 3 * 8 * 10 + 3 * 15 * gated
    assert module.bytes_moved(**shape) == 2 * (3 * 8 + 80 + written)
