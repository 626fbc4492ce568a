"""The kernels of row_linear against float64, beside PyTorch's products in the same dtype."""

import importlib

import pytest
import torch

from basedbench.kernels import row_linear_triton as kernels

module = importlib.import_module("basedbench.kernels.row_linear")
FLOOR = {torch.float16: 1e-4, torch.bfloat16: 1e-3}
TILES = [{}, {"outputs": 32, "width": 128, "stages": 2}, {"outputs": 128, "split": 3, "warps": 8}]


@pytest.fixture
def halves(dtypes):
    return [dtype for dtype in dtypes if dtype in FLOOR]


@pytest.mark.parametrize("tiles", TILES)
@pytest.mark.parametrize(("rows", "outputs"), [(1, 64), (17, 200), (130, 72)])
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.usefixtures("poisoned")
def test_products(randn, relative_error, device, halves, tiles, rows, outputs, with_bias):
    for dtype in halves:
        wide = randn(rows, 384 + 16).to(device, dtype)
        x, weight = wide[:, 16:], randn(outputs, 384).to(device, dtype)
        bias = randn(outputs).to(device, dtype) if with_bias else None
        assert kernels.unsupported(x, weight, bias, False, tiles) is None
        exact = module.reference(x.double(), weight.double(), None if bias is None else bias.double())
        ours, theirs = kernels.row_linear(x, weight, bias, False, **tiles), module.reference(x, weight, bias)
        assert ours.dtype == dtype
        assert relative_error(ours, exact) <= 2 * relative_error(theirs, exact) + FLOOR[dtype]


@pytest.mark.parametrize("tiles", [*TILES[:2], {"outputs": 32, "split": 2}])
@pytest.mark.parametrize(("rows", "outputs"), [(1, 64), (33, 2 * 112), (5, 2 * 20)])
@pytest.mark.usefixtures("poisoned")
def test_gated_products(randn, relative_error, device, halves, tiles, rows, outputs):
    for dtype in halves:
        x, weight = randn(rows, 256).to(device, dtype), randn(outputs, 256, scale=0.1).to(device, dtype)
        exact = module.reference(x.double(), weight.double(), gated=True)
        ours, theirs = (
            kernels.row_linear(x, weight, None, True, **tiles),
            module.reference(x, weight, gated=True),
        )
        assert relative_error(ours, exact) <= 2 * relative_error(theirs, exact) + FLOOR[dtype]


def test_what_it_does_not_take(device):
    x, weight = torch.zeros(2, 512, device=device).half(), torch.zeros(8, 512, device=device).half()
    assert kernels.unsupported(x, weight, None, True, {}) is None
    assert "multiple" in kernels.unsupported(x[:, :48], weight[:, :48].contiguous(), None, False, {})
    assert "contiguous" in kernels.unsupported(x[:, :256], weight[:, :256], None, False, {})
    assert "bias" in kernels.unsupported(x, weight, weight[:, 0].contiguous(), True, {})
    assert "float16" in kernels.unsupported(x.float(), weight.float(), None, False, {})
    assert "gradient" in kernels.unsupported(x, weight.requires_grad_(), None, False, {})


def test_registration(device):
    x, weight = torch.ones(2, 256, device=device).half(), torch.ones(8, 256, device=device).half()
    torch.library.opcheck(kernels.operator, (x, weight, None, False, 64, 64, 1, 2, 4))
