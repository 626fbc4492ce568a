"""The kernel of `row_linear` against float64, in all its forms: parts, sums, gates, ragged edges."""

import pytest
import torch
import torch.nn.functional as F

from basedbench.kernels import row_linear_launch
from basedbench.kernels.dependent_launch import dependent_launches
from basedbench.kernels.row_linear_launch import operator
from tests.kernels import interpreted_gluon
from tests.kernels.triton.conftest import interpreted


@pytest.fixture(autouse=True)
def maps(monkeypatch, device):
    if interpreted:
        stand_in = lambda x, *more: interpreted_gluon.Map(x, *more)  # noqa: E731
        monkeypatch.setattr(row_linear_launch, "_map", stand_in)
    elif torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("written for Hopper")


@pytest.mark.parametrize(("tile", "split", "stages"), [(64, 1, 2), (64, 3, 2), (128, 2, 3), (128, 5, 4)])
@pytest.mark.parametrize("form", ["plain", "bias", "gated", "parts", "parts with bias"])
@pytest.mark.parametrize(("rows", "outputs", "width"), [(1, 64, 320), (17, 208, 704), (3, 144, 448)])
def test_products(randn, relative_error, device, rows, outputs, width, form, tile, split, stages):
    dtype = torch.float16 if interpreted else torch.bfloat16
    x, weight = randn(rows, width).to(device, dtype), (randn(outputs, width) / width**0.5).to(device, dtype)
    bias = randn(outputs).to(device, dtype) if "bias" in form else None
    gated, parts = form == "gated", "parts" in form and split > 1
    exact = F.linear(x.double(), weight.double(), None if bias is None else bias.double())
    if gated:
        value, gate = exact.chunk(2, -1)
        exact = value * F.silu(gate)
    expected = exact.to(dtype)
    for _ in range(2):  # the second finds the counters as the first one left them
        with dependent_launches():
            y = operator(x, weight, bias, gated, parts, tile, split, stages)
        if parts:
            assert y.shape == (split, rows, outputs)
            assert y.dtype == torch.float32
            y = y.sum(0).to(dtype)
        assert y.dtype == dtype
        assert relative_error(y, exact) <= 2 * relative_error(expected, exact) + 1e-5


def test_registration(randn, device):
    dtype = torch.float16 if interpreted else torch.bfloat16
    x, weight = randn(3, 128).to(device, dtype), randn(64, 128).to(device, dtype)
    for gated, parts, split in ((False, False, 1), (True, False, 2), (False, True, 2)):
        torch.library.opcheck(operator, (x, weight, None, gated, parts, 64, split, 2))
