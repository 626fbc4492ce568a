"""The joined backward of split_ssd against float64, beside the reference in the same dtype."""

import importlib
from itertools import product

import pytest
import torch

from basedbench.kernels import split_ssd_triton, ssd_plan, ssd_walk
from basedbench.kernels.packing import packing_of
from tests.kernels.triton.conftest import interpreted

# The package may come to have a function of the module's name.
module = importlib.import_module("basedbench.kernels.split_ssd")
reference, split_ssd = module.reference, module.split_ssd


def drawn(randn, device, dtype, heads, groups, width, states, more, tokens=(2, 37)):
    inner, conv = heads * width, heads * width + 2 * groups * states
    p = randn(*tokens, inner + conv + heads + more).to(device, dtype)
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


LENGTHS = [[72, 40, 24, 8], [48, 48, 16], [8, 8]]
SHAPES = [(2, 1, 64, 16, 4), (4, 2, 16, 24, 9), (2, 2, 24, 8, 3)]


@pytest.mark.parametrize(("lengths", "shape"), list((zip if interpreted else product)(LENGTHS, SHAPES)), ids=str)
def test_packed_examples_are_each_alone(randn, relative_error, device, dtypes, poisoned, lengths, shape):
    """Nothing of the example before, or behind, reaches one; sums for parameters are those of all."""
    heads, groups, width, states, more = shape
    packing, sizes = packing_of(lengths, device), {"head_dim": width, "groups": groups}
    for dtype in dtypes:
        tensors = drawn(randn, device, dtype, heads, groups, width, states, more, (1, packing.tokens))
        assert split_ssd_triton.walks(*tensors[:2], *tensors[3:], width, groups, packing)
        signs = randn(1, packing.tokens, heads, width).sign().to(device)

        def alone(p, *parameters):
            return torch.cat([reference(part, *parameters, **sizes) for part in p.split(lengths, 1)], 1)

        found = []
        for function, parts in (
            (lambda *given: split_ssd_triton.split_ssd(*given, width, groups, packing), tensors),
            (lambda *given: split_ssd_triton.split_ssd(*given, width, groups, packing), tensors),
            (alone, tensors),
            (lambda *given: split_ssd(*given, **sizes, packing=packing), [part.double() for part in tensors]),
            (alone, [part.double() for part in tensors]),
        ):
            leaves = [part.detach().requires_grad_() for part in parts]
            y = function(*leaves)
            found.append([y.detach(), *torch.autograd.grad(y, leaves, signs.to(y.dtype))])
        coarse = {torch.float32: 2e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}[dtype]
        for ours, again, theirs, spread, exact in zip(*found, strict=True):
            assert torch.equal(ours, again)
            assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
            assert relative_error(ours, exact) <= 2 * relative_error(theirs, exact) + coarse
            assert relative_error(spread, exact) <= 1e-12


def test_packed_heads_share_the_scales_of_bfloat16(randn, relative_error, device, poisoned, monkeypatch):
    """dB and dC pass through memory as 16 bits there, of a chunk over its own number: 8 tokens of one may be left."""
    monkeypatch.setattr(ssd_walk, "HALVED", ("bf16", "tf32", "tf32x3"))
    packing = packing_of([40, 24, 8], device)
    tensors = drawn(randn, device, torch.float32, 4, 2, 16, 8, 2, (1, packing.tokens))
    tensors[0] *= randn(1, packing.tokens, 1).exp().float().to(device)
    found = []
    for function, parts in (
        (lambda *given: split_ssd_triton.split_ssd(*given, 16, 2, packing), tensors),
        (lambda *given: split_ssd(*given, head_dim=16, groups=2, packing=packing), [part.double() for part in tensors]),
    ):
        p = parts[0].detach().requires_grad_()
        (gradient,) = torch.autograd.grad(function(p, *parts[1:]).square().sum(), p)
        found.append(gradient)
    for mine, exact in zip(*(one.split(8, 1) for one in found), strict=True):
        assert relative_error(mine, exact) < 1e-3


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


def test_few_packed_examples_are_walks(randn, device, monkeypatch):
    monkeypatch.setattr(ssd_plan, "WALKS", 256)
    packing = packing_of([16, 8], device)
    for states, fits in ((16, True), (40, False)):
        tensors = drawn(randn, device, torch.float32, 2, 1, 16, states, 0, (1, packing.tokens))
        assert split_ssd_triton.walks(*tensors[:2], *tensors[3:], 16, 1, packing) == fits


def test_operator_keeps_torchs_rules(randn, device):
    p, weight, bias, A, D, dt_bias = drawn(randn, device, torch.float32, 2, 1, 16, 8, 3)
    convolved, kept, dy = (
        randn(*shape).float().to(device) for shape in ((2, 37, 48), (2, 2, 3, 16, 8), (2, 37, 2, 16))
    )
    given = dy, p, convolved, kept, weight, bias, A, D, dt_bias, 1
    torch.library.opcheck(split_ssd_triton.backward, (*given, None, 0))
    packing = packing_of([32, 8], device)
    one = [randn(1, 40, *part.shape[2:]).float().to(device) for part in (dy, p, convolved)]
    torch.library.opcheck(split_ssd_triton.backward, (*one, *given[3:], *packing[:2]))
