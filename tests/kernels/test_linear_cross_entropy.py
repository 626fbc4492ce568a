"""Projection and cross-entropy in one against a loop over positions, and torch.nn.functional.cross_entropy."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from basedbench.kernels import linear_cross_entropy

# Against float64 on the same (rounded) inputs: absolute error of a loss, relative error of the gradients.
TOLERANCE = {torch.float32: (1e-5, 1e-6), torch.float16: (1e-2, 1e-3), torch.bfloat16: (1e-1, 8e-3)}


def library(x: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(x @ weight.t(), target, reduction="none")


def shapes(randn, positions=17, width=24, vocabulary=101):
    target = torch.randint(vocabulary, (positions,), generator=torch.Generator().manual_seed(0))
    return randn(positions, width), randn(vocabulary, width), target


@pytest.mark.parametrize(("positions", "width", "vocabulary"), [(1, 8, 5), (17, 48, 1000), (1000, 16, 37)])
def test_losses_and_hits(randn, positions, width, vocabulary):
    x, weight, target = shapes(randn, positions, width, vocabulary)
    target[::3] = (x @ weight.t()).argmax(-1)[::3]  # so that there are hits
    loss, hit = linear_cross_entropy(x, weight, target)
    torch.testing.assert_close(loss, library(x, weight, target))
    assert hit.dtype == torch.bool
    for n in range(min(positions, 20)):
        logits = [sum(a * b for a, b in zip(x[n].tolist(), row, strict=True)) for row in weight.tolist()]
        expected = math.log(sum(math.exp(logit) for logit in logits)) - logits[target[n]]
        assert loss[n].item() == pytest.approx(expected)
        assert hit[n].item() == (logits.index(max(logits)) == target[n])


def test_a_tie_is_a_hit_for_one_target_only():
    """All-zero features, as of a collapsed model, must not count as right answers."""
    target = torch.arange(8)
    _, hit = linear_cross_entropy(torch.zeros(8, 4), torch.randn(8, 4), target)
    assert hit.sum() == 1


def test_gradients(randn, gradients):
    x, weight, target = shapes(randn)
    ours = gradients(lambda x, w: linear_cross_entropy(x, w, target)[0], x, weight)
    exact = gradients(lambda x, w: library(x, w, target), x, weight)
    for one, other in zip(ours, exact, strict=True):
        torch.testing.assert_close(one, other)
    inputs = (x[:3].clone().requires_grad_(), weight[:9].clone().requires_grad_())
    assert torch.autograd.gradcheck(lambda x, w: linear_cross_entropy(x, w, target[:3] % 9)[0], inputs)


def test_gradient_of_one_input_alone(randn):
    x, weight, target = shapes(randn)
    x.requires_grad_()
    (grad,) = torch.autograd.grad(linear_cross_entropy(x, weight, target)[0].sum(), x)
    (exact,) = torch.autograd.grad(library(x, weight, target).sum(), x)
    torch.testing.assert_close(grad, exact)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_error_of_each_dtype(randn, gradients, relative_error, dtype):
    x, weight, target = shapes(randn, width=64, vocabulary=512)
    x, weight = x.to(dtype), (0.3 * weight).to(dtype)
    exact = x.double(), weight.double()
    absolute, relative = TOLERANCE[dtype]
    loss, _ = linear_cross_entropy(x, weight, target)
    assert loss.dtype == torch.float32
    assert (loss - library(*exact, target)).abs().max() < absolute
    ours = gradients(lambda x, w: linear_cross_entropy(x, w, target)[0], x, weight)
    for one, other in zip(ours, gradients(lambda x, w: library(x, w, target), *exact), strict=True):
        assert one.dtype == dtype
        assert relative_error(one, other) < relative


def test_large_logits_do_not_overflow(randn):
    x, weight, target = shapes(randn)
    loss, _ = linear_cross_entropy((200 * x).float(), weight.float(), target)
    assert loss.isfinite().all()
    torch.testing.assert_close(loss.double(), library(200 * x, weight, target), rtol=1e-5, atol=1e-2)


def test_the_product_follows_autocast(randn):
    x, weight, target = shapes(randn, width=64, vocabulary=512)
    x, weight = x.float(), weight.float()
    with torch.autocast("cpu", torch.bfloat16):
        loss, hit = linear_cross_entropy(x, weight, target)
    expected, expected_hit = linear_cross_entropy(x.bfloat16(), weight.bfloat16(), target)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, expected)
    assert torch.equal(hit, expected_hit)
