"""The written-out attention that training with dropout uses."""

import pytest
import torch

from basedbench.kernels import sliding_window
from basedbench.mixers import get_mixer
from basedbench.mixers.attention import causal_attention
from basedbench.mixers.softmax import dropped_attention
from basedbench.models.dropout import Dropout

LENGTH = 19


def qkv(heads=2):
    generator = torch.Generator().manual_seed(0)
    return (torch.randn(3, LENGTH, heads, 4, dtype=torch.float64, generator=generator) for _ in range(3))


def test_without_dropout_it_is_causal_attention():
    q, k, v = qkv()
    torch.testing.assert_close(dropped_attention(q, k, v, Dropout(0)), causal_attention(q, k, v))


@pytest.mark.parametrize("window", [1, 5, LENGTH - 1, LENGTH, 100])
def test_without_dropout_it_is_the_sliding_window(window):
    q, k, v = qkv()
    torch.testing.assert_close(dropped_attention(q, k, v, Dropout(0), window), sliding_window(q, k, v, window))


@pytest.mark.parametrize("window", [None, 5])
def test_dropout_falls_on_the_weights(window):
    q, k, v = qkv(heads=1)
    found = dropped_attention(q, k, v, Dropout(0.3, torch.Generator().manual_seed(5)), window)
    mask = torch.empty(3, LENGTH, LENGTH, dtype=torch.float64)
    mask.bernoulli_(0.7, generator=torch.Generator().manual_seed(5))
    scores = q[:, :, 0] @ k[:, :, 0].mT / 2
    distance = torch.arange(LENGTH)[:, None] - torch.arange(LENGTH)
    allowed = (distance >= 0) & (distance <= (LENGTH if window is None else window))
    weights = scores.masked_fill(~allowed, -torch.inf).softmax(-1) * mask / 0.7
    torch.testing.assert_close(found[:, :, 0], weights @ v[:, :, 0])


@pytest.mark.parametrize(("name", "options"), [("attention", {}), ("sliding_window", {"window": 4, "dropout": 0.1})])
def test_dropout_acts_in_training_only(name, options):
    torch.manual_seed(0)
    mixer = get_mixer(name)(16, **options)
    x_BLD = torch.randn(2, LENGTH, 16)
    evaluated = mixer.eval()(x_BLD)
    assert torch.equal(mixer(x_BLD), evaluated)
    mixer.train()
    first, second = mixer(x_BLD), mixer(x_BLD)
    assert not torch.equal(first, second)
    average = torch.stack([mixer(x_BLD) for _ in range(400)]).mean(0)
    assert (average - evaluated).norm() < 0.05 * evaluated.norm()


def test_the_recipe_drops_attention_weights_but_not_those_of_a_window():
    assert get_mixer("attention")(16).dropout.p == 0.1
    assert get_mixer("sliding_window")(16).dropout.p == 0
