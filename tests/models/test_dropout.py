"""Dropout with a generator of its own."""

import pytest
import torch

from basedbench.errors import UserError
from basedbench.models import Dropout


def test_same_seed_same_mask_whatever_else_is_drawn():
    x = torch.ones(50, 40)
    first = Dropout(0.3, torch.Generator().manual_seed(7))
    masks = [first(x), first(x)]
    second = Dropout(0.3, torch.Generator().manual_seed(7))
    torch.rand(123)
    assert torch.equal(second(x), masks[0])
    torch.manual_seed(0)
    assert torch.equal(second(x), masks[1])
    assert not torch.equal(masks[0], masks[1])


def test_rate_scale_and_gradient():
    x = torch.full((400, 400), 2.0, requires_grad=True)
    y = Dropout(0.25, torch.Generator().manual_seed(0))(x)
    assert y.unique().tolist() == pytest.approx([0, 2 / 0.75])
    assert (y == 0).float().mean().item() == pytest.approx(0.25, abs=0.006)  # five standard deviations
    y.sum().backward()
    torch.testing.assert_close(x.grad, y.detach() / 2)


def test_nothing_happens_in_evaluation_or_at_rate_zero():
    x = torch.randn(5)
    assert Dropout(0.5).eval()(x) is x
    assert Dropout(0.0)(x) is x


@pytest.mark.parametrize("p", [-0.1, 1.0, float("nan")])
def test_rate_outside_zero_to_one(p):
    with pytest.raises(UserError, match="outside"):
        Dropout(p)
