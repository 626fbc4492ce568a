"""Mamba-2 at asked tokens against the rows of its whole forward."""

import pytest
import torch

from basedbench.kernels.asked import ask, questions_at, take_rows
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
    given = ask(x_BLD, questions_at(positions_BK, x_BLD.shape[1]))
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
