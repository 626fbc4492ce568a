"""base_conv's joint backward against the reference in float64: outputs and every gradient."""

import importlib

import pytest
import torch

from basedbench.kernels import base_conv_triton as kernels
from basedbench.kernels.packing import packing_of

module = importlib.import_module("basedbench.kernels.base_conv")


def make_inputs(randn, device, dtype, batch, length, channels, taps):
    u = randn(batch, length, channels).to(dtype)
    shapes = [(channels, channels), (channels,), (channels, taps), (channels,)]
    parameters = [randn(*shape).float() for shape in shapes]
    parameters[0] *= channels**-0.5
    return [x.to(device) for x in (u, *parameters)]


def results(function, inputs, dy):
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    y = function(*leaves)
    gradients = torch.autograd.grad(y, leaves, dy.to(y.dtype))
    assert [x.dtype for x in gradients] == [x.dtype for x in leaves]
    return [y.detach(), *gradients]


def compare(relative_error, device, inputs, dy, autocast, floor):
    exact = results(module.reference, [x.double() for x in inputs], dy)
    with torch.autocast(device.type, inputs[0].dtype if autocast else torch.float16, enabled=autocast):
        theirs, ours = results(module.reference, inputs, dy), results(kernels.base_conv, inputs, dy)
    assert ours[0].dtype == inputs[0].dtype  # that of u and its product; biases do not promote it
    for one, other, truth in zip(ours, theirs, exact, strict=True):
        assert one.shape == other.shape
        assert relative_error(one, truth) <= 2 * relative_error(other, truth) + floor


@pytest.mark.parametrize("size", [(2, 11, 16, 3), (1, 9, 40, 4), (3, 1, 8, 2)])
def test_outputs_and_gradients(randn, relative_error, device, size):
    inputs = make_inputs(randn, device, torch.float32, *size)
    compare(relative_error, device, inputs, randn(*size[:3]).to(device), False, 1e-6)


def test_half_precision_under_autocast(randn, relative_error, device, dtypes):
    """Products in half precision, the parameters' gradients in their own."""
    for dtype in dtypes[1:]:
        inputs = make_inputs(randn, device, dtype, 2, 70, 64, 3)
        compare(relative_error, device, inputs, randn(2, 70, 64).to(device), True, 1e-3)


def test_slices_and_gradients_that_are_not_dense(randn, device):
    u, *parameters = make_inputs(randn, device, torch.float32, 2, 9, 16, 3)
    dy = randn(2, 9, 32).float().to(device)
    expected = results(kernels.base_conv, [u, *parameters], dy[..., :16].contiguous())
    wide = torch.cat([u, u], -1).requires_grad_()
    leaves = [x.requires_grad_() for x in parameters]
    y = kernels.base_conv(wide[..., :16], *leaves)
    found = torch.autograd.grad(y, [wide, *leaves], dy[..., :16])
    assert torch.equal(found[0][..., :16], expected[1])
    for one, other in zip(found[1:], expected[2:], strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("lengths", [[40, 24, 24, 8], [136, 72, 8], [8] * 9], ids=str)
@pytest.mark.parametrize(("channels", "taps"), [(16, 3), (64, 4), (96, 2)])
def test_packed_examples_are_each_alone(randn, relative_error, device, channels, taps, lengths):
    """Segments of several lengths; what stands in front of an example, and behind it, is not its own."""
    packing = packing_of(lengths, device)
    u, *parameters = make_inputs(randn, device, torch.float32, 1, packing.tokens, channels, taps)
    dy = randn(1, packing.tokens, channels).float().to(device)
    ours = results(lambda *x: kernels.base_conv(*x, packing), [u, *parameters], dy)
    pieces = [x.split(lengths, 1) for x in (u.double(), dy.double())]
    alone = [results(module.reference, [x, *(p.double() for p in parameters)], g) for x, g in zip(*pieces, strict=True)]
    y, du, *sums = zip(*alone, strict=True)
    exact = torch.cat(y, 1), torch.cat(du, 1), *(sum(part) for part in sums)
    theirs = results(lambda *x: module.base_conv(*x, packing), [u.double(), *(p.double() for p in parameters)], dy)
    for one, other, truth in zip(ours, theirs, exact, strict=True):
        assert relative_error(one, truth) <= 1e-6
        assert relative_error(other, truth) <= 1e-12


@pytest.mark.parametrize(("channels", "taps"), [(48, 3), (64, 4), (128, 2)])
def test_packed_examples_in_half_precision(randn, relative_error, device, dtypes, channels, taps):
    """As the recall models are trained: each example's rows as the reference has them in the same precision."""
    lengths = [136, 72, 72, 24, *[8] * 9]
    packing = packing_of(lengths, device)
    for dtype in dtypes[1:]:
        u, *parameters = make_inputs(randn, device, dtype, 1, packing.tokens, channels, taps)
        dy = randn(1, packing.tokens, channels).to(dtype).to(device)
        with torch.autocast(device.type, dtype):
            found = results(lambda *x: kernels.base_conv(*x, packing), [u, *parameters], dy)
            theirs = results(lambda *x: module.base_conv(*x, packing), [u, *parameters], dy)
        wide = [x.double() for x in (u, *parameters)]
        exact = results(lambda *x: module.base_conv(*x, packing), wide, dy.double())
        for one, other, truth in zip(found, theirs, exact, strict=True):
            assert relative_error(one, truth) <= 2 * relative_error(other, truth) + 1e-3


def test_nothing_to_do(randn, device):
    u, *parameters = make_inputs(randn, device, torch.float32, 0, 9, 16, 3)
    assert kernels.base_conv(u, *parameters).shape == (0, 9, 16)
