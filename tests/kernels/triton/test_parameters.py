"""Vectors of parameters that lie as columns of a matrix: read where they are, not what is beside them."""

from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from basedbench.checking.operators import FORMS, arguments_of
from basedbench.checking.problems import problems_of
from tests.kernels.interpreted_bfloat16 import repaired
from tests.kernels.triton.conftest import interpreted
from tests.kernels.triton.test_trainer import chooses_kernels

OPERATORS = (
    *(("add_layer_norm", "fp32"), ("block_boundary", "fp32"), ("split_conv", "fp32"), ("base_conv", "fp32")),
    *(("plane_conv", "fp32"), ("long_conv", "fp32"), ("gated_long_conv", "fp32"), ("gated_long_conv", "bf16")),
)


def is_vector(x: Any) -> bool:
    return torch.is_tensor(x) and x.dim() == 1


def column(x: Tensor) -> Tensor:
    """The same numbers with NaN between them."""
    return torch.stack([x, torch.full_like(x, torch.nan)], -1)[:, 0]


def results(operator: str, given: dict[str, Any]) -> list[Tensor]:
    """Outputs and the gradients of all that is given."""
    floats = {name: x for name, x in given.items() if torch.is_tensor(x) and x.is_floating_point()}
    leaves = {name: x.detach().requires_grad_() for name, x in floats.items()}
    first, *others = (given | leaves).items()
    outputs = FORMS[operator].public(first[1], **dict(others))
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    return [*outputs, *torch.autograd.grad(sum(y.square().sum() for y in outputs), list(leaves.values()))]


@pytest.mark.parametrize(("operator", "dtype"), OPERATORS)
def test_vectors_with_a_stride(operator, dtype, device, monkeypatch):
    usual = [one for one in problems_of(operator) if (one.mode, one.dtype, one.length) == ("gradients", dtype, 1000)]
    problem = max(usual, key=lambda one: len(one.options))
    problem = replace(problem, length=3, sizes=tuple((name, min(size, 8)) for name, size in problem.sizes))
    dense = arguments_of(problem, str(device))
    columns = {name: column(x) if is_vector(x) else x for name, x in dense.items()}
    assert sum(map(is_vector, columns.values())) > 0
    if interpreted:
        monkeypatch.setattr(torch.Tensor, "is_cuda", property(chooses_kernels))
    with repaired() if interpreted else nullcontext():
        for found, right in zip(results(operator, columns), results(operator, dense), strict=True):
            assert torch.equal(found, right)


def test_the_bias_of_a_step_with_a_stride(device, randn, monkeypatch):
    x, weight, bias, state = (randn(*shape).float().to(device) for shape in ((2, 5), (5, 4), (5,), (2, 5, 3)))
    if interpreted:
        monkeypatch.setattr(torch.Tensor, "is_cuda", property(chooses_kernels))
    step = FORMS["short_conv"].step
    assert torch.equal(step(x, weight, column(bias), state.clone()), step(x, weight, bias, state.clone()))
