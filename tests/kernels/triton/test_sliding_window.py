"""The kernels of sliding-window attention against the reference in float64: outputs, gradients, the window's edge."""

import importlib

import pytest
import torch
from torch import Tensor

from basedbench.kernels import sliding_window_triton as kernels
from basedbench.kernels.slices import cut

from .conftest import interpreted

reference = importlib.import_module("basedbench.kernels.sliding_window").reference

# Batch, length, heads, width of keys, width of values, window.
SIZES = [(2, 1, 2, 16, 16, 1), (2, 17, 2, 8, 24, 1), (1, 100, 1, 48, 16, 33), (1, 70, 1, 16, 48, 200)]
if not interpreted:
    SIZES += [(2, 1000, 2, 64, 64, 64), (1, 1000, 2, 128, 112, 16), (2, 4097, 1, 64, 64, 100)]
    SIZES += [(1, 1000, 1, 112, 128, 64), (4096, 3, 16, 16, 16, 1)]  # the last: more than 65,535 sequences and heads
FLOOR = 3e-7


@pytest.fixture(params=["highest", "high"])
def precision(request):
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(request.param)
    yield request.param
    torch.set_float32_matmul_precision(before)


def make_inputs(randn, device, dtype, batch, length, heads, key_dim, value_dim) -> list[Tensor]:
    return [randn(batch, length, heads, width).to(device, dtype) for width in (key_dim, key_dim, value_dim)]


def results(function, inputs, window, signs, **options) -> list[Tensor]:
    """The output, then the gradients."""
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    y = function(*leaves, window, **options)
    return [y.detach(), *torch.autograd.grad(y, leaves, signs.to(y.dtype))]


def assert_close_to_float64(randn, relative_error, inputs, window, **options):
    signs = randn(*inputs[2].shape).sign().to(inputs[0].device)
    exact = results(reference, [x.double() for x in inputs], window, signs, **options)
    theirs = results(reference, inputs, window, signs, **options)
    ours = results(kernels.sliding_window, inputs, window, signs, **options)
    again = results(kernels.sliding_window, inputs, window, signs, **options)
    for one, two, other, truth in zip(ours, again, theirs, exact, strict=True):
        assert torch.equal(one, two)
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        if truth.norm() > 1e-9:
            assert relative_error(one, truth) <= 2 * relative_error(other, truth) + FLOOR
        else:  # one key: the weights do not depend on the scores
            assert one.abs().max() < 1e-5


def test_more_sequences_than_an_axis_takes_are_on_the_other(randn, device, monkeypatch):
    q, k, v, signs = randn(2, 100, 3, 16).to(device, torch.float32).expand(4, 2, 100, 3, 16)
    usual = results(kernels.sliding_window, (q, k, v), 33, signs)
    monkeypatch.setattr(kernels, "MOST", 5)
    for one, other in zip(usual, results(kernels.sliding_window, (q, k, v), 33, signs), strict=True):
        assert torch.equal(one, other)
    block = kernels.blocks(16, 33, q.dtype, backward=False)
    assert kernels._grid(block, q) == ((6, -(-100 // block.queries)), 0)


@pytest.mark.parametrize("size", SIZES)
def test_errors_of_outputs_and_gradients(randn, relative_error, device, dtypes, size):
    for dtype in dtypes:
        assert_close_to_float64(randn, relative_error, make_inputs(randn, device, dtype, *size[:5]), size[5])


def test_products_are_as_precise_as_pytorchs(randn, relative_error, device, precision):
    inputs = make_inputs(randn, device, torch.float32, 1, 70, 1, 32, 32)
    assert_close_to_float64(randn, relative_error, inputs, 20, scale=0.3)


@pytest.mark.parametrize("window", [1, 5, 16, 31])
def test_the_window_holds_the_key_at_its_edge_and_none_before(randn, device, window):
    length = 40
    q, k, v = make_inputs(randn, device, torch.float32, 1, length, 1, 8, 1)
    for i in (0, window, window + 1, length - 1):
        leaf = v.clone().requires_grad_()
        kernels.sliding_window(q, k, leaf, window)[0, i, 0, 0].backward()
        read = leaf.grad[0, :, 0, 0].nonzero().flatten().tolist()
        assert read == list(range(max(0, i - window), i + 1))


def test_strided_inputs(randn, device):
    qkv = randn(2, 20, 3, 2, 16).to(device, torch.float32)
    q, k, v = qkv.unbind(2)
    expected = kernels.sliding_window(q.contiguous(), k.contiguous(), v.contiguous(), 6)
    assert torch.equal(kernels.sliding_window(q, k, v, 6), expected)
    turned = v.transpose(1, 3).contiguous().transpose(1, 3)
    assert torch.equal(kernels.sliding_window(q, k, turned, 6), expected)


def test_every_element_is_written(randn, device, monkeypatch):
    """All buffers start as NaN; the sequence ends within a block."""
    poison = torch.Tensor.new_empty

    def new_empty(self, *size, **options):
        return poison(self, *size, **options).fill_(float("nan"))

    inputs = make_inputs(randn, device, torch.float32, 1, 37, 2, 24, 16)
    monkeypatch.setattr(torch.Tensor, "new_empty", new_empty)
    signs = torch.ones(1, 37, 2, 16, device=device)
    assert all(x.isfinite().all() for x in results(kernels.sliding_window, inputs, 9, signs))


def test_scores_beyond_half_precision(randn, relative_error, device):
    inputs = make_inputs(randn, device, torch.float16, 1, 40, 1, 16, 16)
    q, k, v = (500 * x for x in inputs)
    exact = reference(q.double(), k.double(), v.double(), 8)
    assert relative_error(kernels.sliding_window(q, k, v, 8), exact) < 1e-3


def test_operators_are_well_registered(randn, device):
    q, k, v = (x.requires_grad_() for x in make_inputs(randn, device, torch.float32, 1, 5, 1, 4, 4))
    torch.library.opcheck(kernels.forward_operator, (q, k, v, 2, 0.5))
    inputs = [x.detach() for x in (q, k, v)]
    y, sums = kernels.forward_operator(*inputs, 2, 0.5)
    torch.library.opcheck(
        kernels.backward_operator, (*inputs, y, sums, torch.ones_like(y), 2, 0.5, *map(torch.empty_like, inputs))
    )


def test_gradients_of_a_projection_cut_into_heads(randn, device):
    """Written side by side, where the parts lay: autograd puts nothing together."""
    x = randn(2, 37, 3 * 2 * 16).to(device, torch.float32).requires_grad_()
    dy = randn(2, 37, 2, 16).to(device, torch.float32)

    def gradient(function, parts):
        return torch.autograd.grad(function(*(part.unflatten(-1, (2, 16)) for part in parts), 5), x, dy)[0]

    mine, theirs = gradient(kernels.sliding_window, cut(x, [32] * 3)), gradient(reference, x.split(32, -1))
    torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)
