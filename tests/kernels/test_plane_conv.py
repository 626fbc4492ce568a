"""The reference of `plane_conv`, and the projection in front of it."""

from importlib import import_module

import torch

from basedbench.kernels import linear, plane_conv, plane_linear, short_conv

planes_of = import_module("basedbench.kernels.plane_linear").planes_of


def test_it_is_a_short_convolution_of_the_biased_input(randn, gradients):
    tensors = randn(2, 9, 6), randn(6), randn(6, 3), randn(6)
    expected = [lambda x, own, weight, bias: short_conv(x + own, weight, bias), *tensors]
    torch.testing.assert_close(plane_conv(*tensors), expected[0](*tensors))
    torch.testing.assert_close(gradients(plane_conv, *tensors), gradients(*expected))


def test_the_output_has_the_inputs_dtype(randn):
    parameters = [randn(*shape).float() for shape in [(6,), (6, 3), (6,)]]
    assert plane_conv(randn(2, 9, 6).bfloat16(), *parameters).dtype == torch.bfloat16


def test_planes_are_a_projection_without_bias_in_another_order(randn, gradients):
    x, weight = randn(2, 5, 4), randn(7, 4)
    y = planes_of(x, weight)
    torch.testing.assert_close(y, x @ weight.t())
    assert y.permute(2, 0, 1).is_contiguous()
    torch.testing.assert_close(gradients(planes_of, x, weight), gradients(lambda x, w: x @ w.t(), x, weight))


def test_elsewhere_the_projection_has_its_bias(randn):
    x, weight, bias = randn(2, 5, 4), randn(7, 4), randn(7)
    y, rest = plane_linear(x, weight, bias)
    assert rest is None
    torch.testing.assert_close(y, linear(x, weight, bias))
