"""Operators whose gradients cannot be differentiated say so, and never give a wrong second derivative."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from basedbench.kernels.differentiated import once_differentiable
from basedbench.mixers import get_mixer, mixer_names

OPTIONS = {"mamba2": {"head_dim": 8}, "rwkv7": {"head_dim": 8}}
REFUSING = ("attention", "based", "delta_net", "gated_delta_net", "kda", "linear_attention", "mamba", "rwkv7")
STEP = 1e-5


class Cube(torch.autograd.Function):
    """x^3 y, whose backward is no graph."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, _: str) -> Tensor:
        ctx.save_for_backward(x, y)
        return x**3 * y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, y = ctx.saved_tensors
        return 3 * x**2 * y * grad, x**3 * grad if ctx.needs_input_grad[1] else None, None


def test_first_derivatives_pass_and_second_ones_are_refused() -> None:
    x, y = torch.tensor(2.0, requires_grad=True), torch.tensor(5.0, requires_grad=True)
    assert [g.item() for g in torch.autograd.grad(Cube.apply(x, y, ""), (x, y))] == [60, 8]
    first = torch.autograd.grad(Cube.apply(x, y, ""), (x, y), create_graph=True)
    assert [g.item() for g in first] == [60, 8]
    for index in (0, 1):
        for by in (x, y):
            with pytest.raises(RuntimeError, match="first derivatives only"):
                torch.autograd.grad(first[index], by, retain_graph=True)
    (alone,) = torch.autograd.grad(Cube.apply(x, y.detach(), ""), x, create_graph=True)
    with pytest.raises(RuntimeError, match="first derivatives only"):
        torch.autograd.grad(alone, x)


def test_a_gradient_that_depends_on_another_is_refused_too() -> None:
    """d/dx of w times the gradient by way of the incoming gradient alone."""
    x, w = torch.tensor(2.0, requires_grad=True), torch.tensor(3.0, requires_grad=True)
    (first,) = torch.autograd.grad(w * Cube.apply(x, torch.tensor(5.0), ""), x, create_graph=True)
    with pytest.raises(RuntimeError, match="first derivatives only"):
        torch.autograd.grad(first, w)


@pytest.mark.parametrize("name", mixer_names())
def test_a_second_derivative_of_a_mixer_is_right_or_refused(name: str) -> None:
    torch.manual_seed(0)
    mixer = get_mixer(name)(16, **OPTIONS.get(name, {})).double().eval()
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    x, v = torch.randn(2, 1, 5, 16, dtype=torch.float64)

    def gradient(x: Tensor, create_graph: bool = False) -> Tensor:
        return torch.autograd.grad(mixer(x).sum(), x, create_graph=create_graph)[0]

    x.requires_grad_()
    first = gradient(x, create_graph=True)
    torch.testing.assert_close(first, gradient(x))
    if name in REFUSING:
        with pytest.raises(RuntimeError, match=r"first derivatives only|is not implemented"):
            torch.autograd.grad((first * v).sum(), x)
        return
    (second,) = torch.autograd.grad((first * v).sum(), x)
    above, below = (gradient((x.detach() + sign * STEP * v).requires_grad_()) for sign in (1, -1))
    torch.testing.assert_close(second, (above - below) / (2 * STEP), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize("name", mixer_names())
def test_a_mixer_may_be_computed_again_for_its_gradients(name: str, create_graph: bool) -> None:
    """Checkpoints give each saved tensor out once."""
    torch.manual_seed(0)
    mixer, x = get_mixer(name)(16, **OPTIONS.get(name, {})).double(), torch.randn(2, 6, 16, dtype=torch.float64)
    x.requires_grad_()
    found = []
    for call in (mixer, lambda x: checkpoint(mixer, x, use_reentrant=False)):
        torch.manual_seed(1)  # of dropout
        leaves = x, *mixer.parameters()
        found.append(torch.autograd.grad(call(x).square().sum(), leaves, create_graph=create_graph, allow_unused=True))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)
