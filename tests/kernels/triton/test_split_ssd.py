"""The joined backward of split_ssd against float64, beside the reference in the same dtype."""

import importlib

import pytest
import torch

from basedbench.kernels import split_ssd_triton, ssd_plan

# The package may come to have a function of the module's name.
reference = importlib.import_module("basedbench.kernels.split_ssd").reference


def drawn(randn, device, dtype, heads, groups, width, states, more):
    inner, conv = heads * width, heads * width + 2 * groups * states
    p = randn(2, 37, inner + conv + heads + more).to(device, dtype)
    weight, bias, A, D, dt_bias = (randn(*shape).float().to(device) for shape in ((conv, 4), (conv,), *[(heads,)] * 3))
    return [p, weight, bias, -A.abs() - 0.1, D, dt_bias]


@pytest.fixture(autouse=True)
def walks(monkeypatch):
    """As if there were so many sequences that a warp each fills the device."""
    monkeypatch.setattr(ssd_plan, "WALKS", 1)


@pytest.mark.parametrize(
    ("heads", "groups", "width", "states", "more"), [(2, 1, 16, 8, 0), (4, 2, 16, 16, 9), (2, 2, 24, 12, 3)]
)
def test_outputs_and_gradients(randn, relative_error, device, dtypes, poisoned, heads, groups, width, states, more):
    for dtype in dtypes:
        tensors = drawn(randn, device, dtype, heads, groups, width, states, more)
        assert split_ssd_triton.walks(*tensors[:2], *tensors[3:], width, groups)
        signs = randn(2, 37, heads, width).sign().to(device)
        found = []
        for function, parts in (
            (lambda *given: split_ssd_triton.split_ssd(*given, width, groups), tensors),
            (lambda *given: reference(*given, head_dim=width, groups=groups), tensors),
            (lambda *given: reference(*given, head_dim=width, groups=groups), [part.double() for part in tensors]),
        ):
            leaves = [part.detach().requires_grad_() for part in parts]
            y = function(*leaves)
            found.append([y.detach(), *torch.autograd.grad(y, leaves, signs.to(y.dtype))])
        coarse = {torch.float32: 2e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}[dtype]
        for ours, theirs, exact in zip(*found, strict=True):
            assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
            assert relative_error(ours, exact) <= 2 * relative_error(theirs, exact) + coarse


def test_a_bias_that_is_not_there(randn, device):
    p, weight, _, *scan = drawn(randn, device, torch.float32, 2, 1, 16, 8, 0)
    p.requires_grad_()
    found = [
        torch.autograd.grad(y.sum(), p)
        for y in (
            split_ssd_triton.split_ssd(p, weight, None, *scan, 16, 1),
            reference(p, weight, None, *scan, head_dim=16, groups=1),
        )
    ]
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-4)


def test_few_sequences_are_no_walks(randn, device, monkeypatch):
    tensors = drawn(randn, device, torch.float32, 2, 1, 16, 8, 0)
    monkeypatch.setattr(ssd_plan, "WALKS", 256)
    assert not split_ssd_triton.walks(*tensors[:2], *tensors[3:], 16, 1)
    monkeypatch.setattr(ssd_plan, "WALKS", 1)
    assert not split_ssd_triton.walks(*(part.double() for part in (*tensors[:2], *tensors[3:])), 16, 1)


def test_operator_keeps_torchs_rules(randn, device):
    p, weight, bias, A, D, dt_bias = drawn(randn, device, torch.float32, 2, 1, 16, 8, 3)
    convolved, kept, dy = (
        randn(*shape).float().to(device) for shape in ((2, 37, 48), (2, 2, 3, 16, 8), (2, 37, 2, 16))
    )
    torch.library.opcheck(split_ssd_triton.backward, (dy, p, convolved, kept, weight, bias, A, D, dt_bias, 1))
