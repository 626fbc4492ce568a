"""Draws of a dropout: the published generator, the right share, and nothing shared between steps and seeds."""

import torch

from basedbench.kernels import add_layer_norm
from basedbench.kernels.draws import Draws, philox


def steps(number):
    return torch.tensor(number)


def test_philox_gives_the_published_numbers():
    """Random123's known answer for counter and key 0."""
    zero = torch.zeros(1, dtype=torch.int64)
    assert [int(x) for x in philox(0, zero, zero)] == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]


def test_the_share_that_stays():
    kept = Draws(3, steps(7)).kept(torch.empty(200, 500), 0.9)
    share = kept.double()
    assert abs(share.mean() - 0.9) < 5 * (0.09 / kept.numel()) ** 0.5
    assert (share.mean(0) - 0.9).abs().max() < 6 * (0.09 / 200) ** 0.5
    assert (share.mean(1) - 0.9).abs().max() < 6 * (0.09 / 500) ** 0.5
    neighbours = (share[:, 1:] * share[:, :-1]).mean()
    assert abs(neighbours - 0.81) < 5 * (0.81 * 0.19 / kept.numel()) ** 0.5 * 2


def test_steps_and_seeds_differ_and_repeat():
    x = torch.empty(50, 48)
    first, again, later, other = (
        Draws(*pair).kept(x, 0.5) for pair in [(0, steps(0)), (0, steps(0)), (0, steps(1)), (1, steps(0))]
    )
    assert torch.equal(first, again)
    for different in (later, other):
        assert abs((first == different).double().mean() - 0.5) < 0.05


def test_everything_may_stay():
    assert Draws(5, steps(2)).kept(torch.empty(100, 100), 1.0).all()


def test_a_mask_drawn_by_the_norm_is_the_mask_given(randn):
    h, weight, draws = randn(9, 48), randn(48), Draws(1, steps(4))
    drawn = add_layer_norm(h, None, weight, center=False, kept_xD=draws, keep=0.7)
    given = add_layer_norm(h, None, weight, center=False, kept_xD=draws.kept(h, 0.7), keep=0.7)
    for mine, theirs in zip(drawn, given, strict=True):
        assert torch.equal(mine, theirs)
