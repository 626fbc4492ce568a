"""The reference of `base_conv` against torch.nn.functional.conv1d; the kernels: triton/test_base_conv.py."""

import importlib

import torch
import torch.nn.functional as F

from basedbench.kernels import base_conv

module = importlib.import_module("basedbench.kernels.base_conv")


def formula(u, gate_weight, gate_bias, weight, bias):
    padded = F.pad(u.transpose(1, 2), (weight.shape[1] - 1, 0))
    convolved = F.conv1d(padded, weight.unsqueeze(1), bias, groups=u.shape[2]).transpose(1, 2)
    return convolved * (u @ gate_weight.t() + gate_bias) + u


def test_formula_and_gradients(randn, gradients):
    inputs = randn(2, 9, 6), randn(6, 6), randn(6), randn(6, 3), randn(6)
    for function in (module.reference, base_conv):
        torch.testing.assert_close(function(*inputs), formula(*inputs))
        torch.testing.assert_close(gradients(function, *inputs), gradients(formula, *inputs))
