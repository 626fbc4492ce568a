"""What the kernel tests share: seeded inputs, a relative error, gradients."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor


@pytest.fixture(autouse=True)
def same_numbers_in_any_order() -> None:
    """Tests that draw from PyTorch's own generator draw the same whatever ran before them."""
    torch.manual_seed(0)


@pytest.fixture
def randn() -> Callable[..., Tensor]:
    """Seeded normal float64 tensors."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int, scale: float = 1.0) -> Tensor:
        return scale * torch.randn(shape, generator=generator, dtype=torch.float64)

    return draw


@pytest.fixture
def relative_error() -> Callable[[Tensor, Tensor], float]:
    """Norm of the difference over the norm of the exact value; float64."""

    def error(value: Tensor, exact: Tensor) -> float:
        assert value.shape == exact.shape
        return ((value.double() - exact.double()).norm() / exact.double().norm().clamp_min(1e-300)).item()

    return error


@pytest.fixture
def gradients() -> Callable[..., list[Tensor]]:
    """Gradients of a sum of f's outputs, with random signs, by all its arguments. Signs are exact in every dtype."""

    def compute(f: Callable[..., Tensor | tuple[Tensor, ...]], *arguments: Tensor) -> list[Tensor]:
        leaves = [argument.detach().clone().requires_grad_() for argument in arguments]
        outputs = f(*leaves)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        generator = torch.Generator().manual_seed(1)
        signs = [2 * torch.randint(2, y.shape, generator=generator).to(y.dtype) - 1 for y in outputs]
        return list(torch.autograd.grad(outputs, leaves, signs))

    return compute
