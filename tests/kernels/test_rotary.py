"""The reference of the rotary embedding: complex rotations, distances, what passes."""

import pytest
import torch

from basedbench.kernels import rotary, rotary_angles
from basedbench.kernels.rotary import bytes_moved, flops


def angles_of(position, width, **options):
    return rotary_angles(torch.as_tensor(position), width, dtype=torch.float64, **options)


@pytest.mark.parametrize(("width", "turns"), [(16, 16), (8, 8), (7, 8), (1, 2)])
def test_pairs_turn_as_complex_numbers(randn, relative_error, width, turns):
    """An odd width is rounded up to whole pairs, with frequencies of the odd one."""
    q, k = randn(2, 5, 3, 16), randn(2, 5, 1, 16)
    half = turns // 2
    found = rotary(q, k, angles_of(range(5), width, base=50.0))
    for x, y in zip((q, k), found, strict=True):
        frequency = torch.tensor([50.0 ** (-2 * r / width) for r in range(half)], dtype=torch.float64)
        turn = torch.polar(torch.ones(5, half, dtype=torch.float64), torch.arange(5).unsqueeze(-1) * frequency)
        z = torch.complex(x[..., :half], x[..., half:turns]) * turn[:, None]
        assert relative_error(y[..., :half], z.real) < 1e-12
        assert relative_error(y[..., half:turns], z.imag) < 1e-12
        assert torch.equal(y[..., turns:], x[..., turns:])


def test_products_depend_on_the_distance_alone(randn):
    q, k = (x.expand(1, 40, 1, 16) for x in (randn(1, 1, 1, 16), randn(1, 1, 1, 16)))
    q, k = rotary(q, k, angles_of(range(40), 16))
    products = torch.einsum("ik,jk->ij", q[0, :, 0], k[0, :, 0])
    for distance in (0, 1, 13):
        diagonal = products.diagonal(-distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal))


def test_one_token_each_is_the_sequence_at_its_place(randn):
    q, k = randn(3, 30, 2, 16), randn(3, 30, 2, 16)
    whole = rotary(q, k, angles_of(range(30), 16))
    place = torch.tensor([29, 0, 7], dtype=torch.int32)
    rows = torch.arange(3)
    one = rotary(q[rows, place], k[rows, place], angles_of(place, 16))
    for mine, other in zip(one, whole, strict=True):
        torch.testing.assert_close(mine, other[rows, place])


def test_gradients_turn_back(randn, gradients):
    q, k = randn(1, 3, 2, 6), randn(1, 3, 1, 6)
    angles = angles_of(range(3), 4)
    assert torch.autograd.gradcheck(lambda *x: rotary(*x, angles), (q.requires_grad_(), k.requires_grad_()))
    ours = gradients(lambda *x: rotary(*x, angles), q, k)
    turned = rotary(ours[0], ours[1], angles)  # rotations are orthogonal: turned forth again, they are signs
    assert torch.allclose(turned[0].abs(), torch.ones_like(turned[0]))


def test_outputs_have_the_dtype_of_the_inputs(randn, relative_error):
    q, k = randn(1, 9, 2, 64), randn(1, 9, 2, 64)
    exact = rotary(q.bfloat16().double(), k.bfloat16().double(), angles_of(range(9), 64))
    found = rotary(q.bfloat16(), k.bfloat16(), rotary_angles(torch.arange(9), 64))
    for mine, truth in zip(found, exact, strict=True):
        assert mine.dtype == torch.bfloat16
        assert relative_error(mine, truth) < 3e-3


def test_costs():
    shape = {"batch": 2, "length": 3, "heads": 4}
    assert flops(**shape, rotated=8) == 2 * 3 * 2 * 4 * 8 * 3
    assert bytes_moved(**shape, key_dim=16) == 2 * 3 * 4 * 16 * 2 * 2 * 2
    assert bytes_moved(**shape, key_dim=16, backward=True) == 2 * bytes_moved(**shape, key_dim=16)
