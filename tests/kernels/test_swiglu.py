"""The reference of swiglu: the formula, its gradients, which half gates."""

import math

import pytest
import torch

from basedbench.kernels import swiglu
from basedbench.kernels.swiglu import bytes_moved, flops


def test_the_second_half_gates():
    y = swiglu(torch.tensor([[3.0, -1.0, 2.0, -2.0]], dtype=torch.float64))
    silu = [b / (1 + math.exp(-b)) for b in (2.0, -2.0)]
    assert y.tolist() == [pytest.approx([3 * silu[0], -silu[1]])]


@pytest.mark.parametrize("shape", [(1, 2), (2, 3, 10)])
def test_gradients(randn, shape):
    assert torch.autograd.gradcheck(swiglu, (randn(*shape).requires_grad_(),))


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 2e-7), (torch.float16, 4e-4), (torch.bfloat16, 3e-3)])
def test_error_of_each_dtype(randn, relative_error, dtype, bound):
    x = randn(5, 200, scale=3.0).to(dtype)
    assert swiglu(x).dtype == dtype
    assert relative_error(swiglu(x), swiglu(x.double())) < bound


def test_an_odd_width_is_refused():
    with pytest.raises(ValueError, match="halves the last dimension, which is 5"):
        swiglu(torch.zeros(2, 5))


def test_costs():
    assert flops(rows=3, inner=4) == 36
    assert bytes_moved(rows=3, inner=4) == 3 * 12 * 2
    assert bytes_moved(rows=3, inner=4, backward=True) == 3 * (3 * 8 + 2 * 4) * 2
