"""Launches with fewer programs, beside other runs: the same sums from fewer parts."""

import pytest
import torch

from basedbench.kernels import company, partial_sums_triton
from basedbench.kernels.add_layer_norm_triton import add_layer_norm
from basedbench.kernels.block_boundary_triton import block_boundary
from basedbench.kernels.company import in_company
from basedbench.kernels.head_norm_triton import head_norm
from basedbench.kernels.linear_cross_entropy_triton import linear_cross_entropy
from basedbench.kernels.linear_triton import column_sum
from basedbench.kernels.short_conv_triton import short_conv


def norm(x, weight, bias):
    return add_layer_norm(x, None, weight, bias)[0]


def boundary(x, weight, bias):
    return block_boundary(x, x, (weight, bias))[0]


def heads(x, weight, bias):
    return head_norm(x.unflatten(-1, (2, -1)).unsqueeze(0), weight, bias, None, "silu", None, 1e-5, True, torch.float32)


def conv(x, weight, bias):
    return short_conv(x.unsqueeze(0), torch.stack([weight, bias], 1), bias, activation=None)


def losses(x, weight, bias):
    targets = torch.arange(len(x), device=x.device) % 512
    words = torch.outer(torch.linspace(-1, 1, 512, device=x.device), weight) + bias.detach()
    return linear_cross_entropy(x, words, targets)[0]


@pytest.mark.parametrize("operator", [norm, boundary, heads, conv, losses])
def test_gradients(randn, relative_error, device, monkeypatch, operator):
    parts = spied(monkeypatch)
    leaves = [x.float().to(device).requires_grad_() for x in (randn(320, 32), randn(32) + 1, randn(32))]
    given, leaves = leaves, leaves[:2] if operator is losses else leaves
    y = operator(*given)
    sign = randn(*y.shape).sign().float().to(device)
    alone = torch.autograd.grad(y, leaves, sign)
    many = parts.pop()
    monkeypatch.setattr(company, "FEWER", (10**6, 10**6))
    with in_company():
        y_beside = operator(*given)
        beside = torch.autograd.grad(y_beside, leaves, sign)
        again = torch.autograd.grad(operator(*given), leaves, sign)
    assert many > 1
    assert not parts or parts.pop() == 1  # one part of the cross-entropy's needs no sum
    assert relative_error(y_beside, y) < 1e-6
    for one, two, three in zip(alone, beside, again, strict=True):
        assert relative_error(two, one) < 1e-5
        assert torch.equal(two, three)


def test_sums_of_rows(randn, relative_error, device, monkeypatch):
    parts = spied(monkeypatch)
    x = randn(3000, 48).float().to(device)
    alone = column_sum(x, torch.float32)
    monkeypatch.setattr(company, "FEWER", (16, 64))
    with in_company():
        beside = column_sum(x, torch.float32)
    assert parts == [47, 8]
    assert relative_error(beside, alone) < 1e-6


def spied(monkeypatch) -> list[int]:
    """How many parts each sum has had."""
    parts: list[int] = []
    add_up = partial_sums_triton.add_up

    def noted(sums):
        parts.extend(len(partials) for partials, _ in sums)
        add_up(sums)

    monkeypatch.setattr(partial_sums_triton, "add_up", noted)
    return parts
