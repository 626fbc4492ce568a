"""split_ssd_asked against rows of split_ssd; the kernels: triton/test_split_ssd_asked.py."""

import importlib

import pytest
import torch

from basedbench.kernels.asked import ask, questions_at
from basedbench.kernels.asked import reference as rows_of

# The package may come to have functions of the modules' names.
module = importlib.import_module("basedbench.kernels.split_ssd_asked")
whole = importlib.import_module("basedbench.kernels.split_ssd").reference

WIDTH, STATES = 8, 3


@pytest.mark.parametrize(("heads", "groups"), [(2, 1), (4, 2)])
@pytest.mark.parametrize(("length", "asked"), [(21, 1), (21, 5), (150, 21), (7, 7)])
@pytest.mark.parametrize("biased", [True, False])
def test_rows_and_gradients_are_those_of_a_whole_scan(randn, heads, groups, length, asked, biased):
    inner, more = heads * WIDTH, 5
    conv = inner + 2 * groups * STATES
    z, rest = randn(2, length, inner), randn(2, length, conv + heads + more)
    weight, bias = randn(conv, 4), randn(conv) if biased else None
    rates = -randn(heads).abs(), randn(heads), randn(heads)
    generator = torch.Generator().manual_seed(0)
    positions_BK = torch.stack([torch.randperm(length, generator=generator)[:asked] for _ in range(2)])
    given, sizes = ask(z, questions_at(positions_BK, length)), {"head_dim": WIDTH, "groups": groups}
    leaves = [one.requires_grad_() for one in (z, rest, weight, bias, *rates) if one is not None]
    expected = whole(torch.cat([z, rest], -1), weight, bias, *rates, **sizes)
    expected = rows_of(expected.flatten(2), positions_BK).unflatten(-1, (heads, WIDTH))
    signs = randn(*expected.shape).sign()
    wanted = torch.autograd.grad(expected, leaves, signs)
    z_BKE = rows_of(z, positions_BK)
    for found in (
        module.reference(z_BKE, rest, positions_BK, weight, bias, *rates, **sizes),
        module.split_ssd_asked(z_BKE, rest, given, weight, bias, *rates, **sizes),
        module.by_whole_scan(z_BKE, rest, given, weight, bias, *rates, **sizes),
    ):
        torch.testing.assert_close(found, expected)
        for gradient, gradient_wanted in zip(
            torch.autograd.grad(found, leaves, signs, retain_graph=True), wanted, strict=True
        ):
            torch.testing.assert_close(gradient, gradient_wanted)
