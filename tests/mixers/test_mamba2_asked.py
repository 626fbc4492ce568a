"""Mamba-2 at asked tokens against the rows of its whole forward."""

import pytest
import torch

from basedbench.kernels.asked import Questions, ask, questions_at, slots_of, take_rows
from basedbench.kernels.packing import packing_of
from basedbench.mixers.mamba2 import Mamba2

CASES = [
    (24, {"head_dim": 16, "d_state": 4}),
    (16, {"head_dim": 8, "d_state": 8, "groups": 2, "d_conv": 3}),
    (12, {"head_dim": 12, "d_state": 3, "expand": 1}),
    (32, {"head_dim": 64, "d_state": 16}),
]


@pytest.mark.parametrize(("d_model", "options"), CASES, ids=str)
@pytest.mark.parametrize(("length", "asked"), [(19, 4), (100, 16), (5, 5), (1, 1)])
def test_outputs_and_gradients_are_those_of_rows_of_the_whole(d_model, options, length, asked):
    torch.manual_seed(0)
    mixer = Mamba2(d_model, **options).double()
    x_BLD = torch.randn(3, length, d_model, dtype=torch.float64, requires_grad=True)
    positions_BK = torch.stack([torch.randperm(length)[:asked] for _ in range(3)])
    given = ask(x_BLD, questions_at(positions_BK, length))
    found = mixer.forward_asked(x_BLD, given)
    expected = take_rows(mixer(x_BLD), positions_BK, given.slots_BL)
    torch.testing.assert_close(found, expected)
    leaves, weights = [x_BLD, *mixer.parameters()], torch.randn_like(expected)
    for gradient, wanted in zip(
        torch.autograd.grad((found * weights).sum(), leaves),
        torch.autograd.grad((expected * weights).sum(), leaves),
        strict=True,
    ):
        torch.testing.assert_close(gradient, wanted)


@pytest.mark.parametrize("asked", [3, 40])
def test_packed_examples_are_each_alone(asked):
    """Both ways of `forward_asked`, and the whole; gradients too."""
    torch.manual_seed(0)
    mixer, lengths = Mamba2(16, head_dim=16, d_state=8).double(), [64, 48, 40]
    packing = packing_of(lengths, "cpu")
    x_xTD = torch.randn(1, packing.tokens, 16, dtype=torch.float64, requires_grad=True)
    positions_BK = torch.stack([torch.randperm(length)[:asked] for length in lengths])
    slots = slots_of((positions_BK + packing.starts_B[:-1, None]).view(1, -1), packing.tokens)
    alone = [mixer(x_LD[None])[0] for x_LD in x_xTD[0].split(lengths)]
    expected = torch.cat([*alone, *(y[at] for y, at in zip(alone, positions_BK, strict=True))])
    rows = mixer.forward_asked(x_xTD, ask(x_xTD, Questions(positions_BK, slots, packing)))
    found = torch.cat([mixer(x_xTD, packing)[0], *rows])
    torch.testing.assert_close(found, expected)
    leaves, weights = [x_xTD, *mixer.parameters()], torch.randn_like(expected)
    gradients = (torch.autograd.grad((one * weights).sum(), leaves) for one in (found, expected))
    for gradient, wanted in zip(*gradients, strict=True):
        torch.testing.assert_close(gradient, wanted)


@pytest.mark.parametrize("options", [{"d_state": 33}, {"head_dim": 128}, {"d_conv": 5}], ids=str)
def test_what_is_not_packed(options):
    for asked in (False, True):
        assert Mamba2.packs(Mamba2.resolve(64, {}), asked=asked)
        assert not Mamba2.packs(Mamba2.resolve(64, options), asked=asked)


def test_under_autocast():
    torch.manual_seed(0)
    mixer = Mamba2(32, head_dim=16, d_state=8)
    x_BLD = torch.randn(2, 40, 32, requires_grad=True)
    given = ask(x_BLD, questions_at(torch.stack([torch.randperm(40)[:6] for _ in range(2)]), 40))
    with torch.autocast("cpu", torch.bfloat16):
        found = mixer.forward_asked(x_BLD, given)
        expected = take_rows(mixer(x_BLD), given.positions_BK, given.slots_BL)
    assert found.dtype == expected.dtype
    torch.testing.assert_close(found, expected, rtol=0.1, atol=0.02)
    found.float().sum().backward()
    assert all(leaf.grad.dtype == leaf.dtype for leaf in [x_BLD, *mixer.parameters()])
