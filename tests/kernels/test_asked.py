"""Rows of asked tokens and projections at them, against indexing and against whole projections in float64."""

import pytest
import torch

from basedbench.kernels import asked, linear_asked
from basedbench.kernels.packing import packing_of

B, L, K, D, E = 3, 17, 4, 8, 12


def draw(*shape, dtype=torch.float64):
    return torch.randn(*shape, dtype=dtype, requires_grad=True)


@pytest.fixture
def positions_BK():  # noqa: N802
    torch.manual_seed(0)
    return torch.stack([torch.randperm(L)[:K] for _ in range(B)])


def test_slots_point_back_to_the_rows(positions_BK):
    slots_BL = asked.slots_of(positions_BK, L)
    for b in range(B):
        for position in range(L):
            expected = [b * K + k for k in range(K) if positions_BK[b, k] == position]
            assert slots_BL[b, position] == (expected[0] if expected else -1)


def test_rows_are_those_of_their_example(positions_BK):
    x_BLD = draw(B, L, D)
    x_BKD = asked.ask(x_BLD, asked.questions_at(positions_BK, x_BLD.shape[1])).x_BKD
    for b in range(B):
        assert torch.equal(x_BKD[b], x_BLD[b, positions_BK[b]])


@pytest.mark.parametrize("part", [slice(0, 4), slice(4, None)])
@pytest.mark.parametrize("biased", [True, False])
def test_asked_outputs_and_gradients_are_those_of_the_whole_projection(positions_BK, part, biased):
    x_BLD, weight_ED, bias_E = draw(B, L, D), draw(E, D), draw(E) if biased else None
    leaves = [leaf for leaf in (x_BLD, weight_ED, bias_E) if leaf is not None]
    rest_E = [index for index in range(E) if index not in range(E)[part]]
    whole_BLE = torch.nn.functional.linear(x_BLD, weight_ED, bias_E)
    expected = whole_BLE[..., rest_E], asked.reference(whole_BLE[..., part], positions_BK)
    found = linear_asked.linear_asked(
        x_BLD, asked.ask(x_BLD, asked.questions_at(positions_BK, x_BLD.shape[1])).x_BKD, weight_ED, bias_E, part
    )
    weights = [torch.randn_like(y) for y in expected]
    for y, y_expected in zip(found, expected, strict=True):
        torch.testing.assert_close(y, y_expected)
    gradients = torch.autograd.grad(sum((y * w).sum() for y, w in zip(found, weights, strict=True)), leaves)
    wanted = torch.autograd.grad(sum((y * w).sum() for y, w in zip(expected, weights, strict=True)), leaves)
    for gradient, gradient_wanted in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(gradient, gradient_wanted)


def test_a_part_in_the_middle_is_refused(positions_BK):
    x_BLD = draw(B, L, D)
    with pytest.raises(ValueError, match="neither the beginning nor the end of 12 outputs"):
        linear_asked.linear_asked(
            x_BLD,
            asked.ask(x_BLD, asked.questions_at(positions_BK, x_BLD.shape[1])).x_BKD,
            draw(E, D),
            None,
            slice(2, 5),
        )


def test_rows_of_packed_examples_are_those_of_each():
    packing = packing_of([24, 16, 8], "cpu")
    positions_BK = torch.tensor([[23, 0, 5], [2, 15, 7], [7, 1, 0]])
    x_BLD = draw(3, 24, D)
    flat = (positions_BK + packing.starts_B[:-1, None]).view(1, -1)
    questions = asked.Questions(positions_BK, asked.slots_of(flat, packing.tokens), packing)
    found = asked.ask(packing.gather(x_BLD), questions)
    assert torch.equal(found.x_BKD, asked.reference(x_BLD, positions_BK))
    assert torch.equal(found.rows(packing.gather(x_BLD * 2)), 2 * found.x_BKD)
    assert torch.equal(packing.spread(packing.gather(x_BLD))[1, :16], x_BLD[1, :16])
    assert not packing.spread(packing.gather(x_BLD))[1, 16:].any()


@pytest.mark.parametrize("lengths", [[], [8, 16], [12, 8], [8, 0]])
def test_lengths_that_are_no_packing(lengths):
    with pytest.raises(ValueError, match=r"multiples of 8|longest first"):
        packing_of(lengths, "cpu")
