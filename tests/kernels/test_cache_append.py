"""The reference of cache_append: the slots, the angles, what stays."""

import pytest
import torch

from basedbench.kernels import cache_append, rotary, rotary_angles
from basedbench.kernels.cache_append import bytes_moved, flops


@pytest.mark.parametrize("width", [0, 6, 16])
def test_each_sequence_at_its_own_slot(randn, width):
    q, k, v = randn(3, 4, 16), randn(3, 2, 16), randn(3, 2, 5)
    keys, values = randn(3, 9, 2, 16), randn(3, 9, 2, 5)
    expected = keys.clone(), values.clone()
    length = torch.tensor([8, 0, 3], dtype=torch.int32)
    angles = rotary_angles(length, width, dtype=torch.float64) if width else None
    turned = rotary(q, k, angles) if angles else (q, k)
    found = cache_append(q, k, v, keys, values, length, angles=angles)
    assert torch.equal(found, turned[0])
    for row, slot in enumerate([8, 0, 3]):
        expected[0][row, slot], expected[1][row, slot] = turned[1][row], v[row]
    assert torch.equal(keys, expected[0])
    assert torch.equal(values, expected[1])
    assert length.tolist() == [8, 0, 3]


def test_a_cache_may_be_narrower_than_the_token(randn):
    k, cache = randn(1, 1, 4), torch.zeros(1, 2, 1, 4, dtype=torch.bfloat16)
    cache_append(k, k, k, cache, cache.clone(), torch.tensor([1], dtype=torch.int32))
    assert torch.equal(cache[:, 1], k.bfloat16())


def test_costs():
    assert flops(batch=3, heads=2, rotated=8) == 3 * 2 * 2 * 8 * 3
    assert bytes_moved(batch=3, heads=2, key_dim=16, value_dim=5) == 3 * 2 * (2 * 16 + 5) * 2 * 2
