"""The kernel of cache_append against the reference: bit for bit where nothing turns."""

import importlib

import pytest
import torch

from basedbench.kernels import cache_append_triton as kernels
from basedbench.kernels import rotary_angles

from .test_attention_decode import copies, drawn

reference = importlib.import_module("basedbench.kernels.cache_append").reference
# Batch, query heads, key heads, width of keys, width of values, slots, lengths; turned numbers.
SIZES = [
    ((1, 2, 2, 48, 48, 9, [1]), 48),
    ((3, 3, 3, 70, 70, 20, [0, 17, 19]), 35),
    ((2, 20, 5, 64, 24, 6, [5, 2]), 0),
    ((1, 17, 1, 112, 128, 4, [3]), 1),
]


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize(("size", "rotated"), SIZES)
def test_the_slot_is_written_and_nothing_else(randn, relative_error, device, dtypes, size, rotated):
    for dtype in dtypes:
        inputs = drawn(randn, device, dtype, *size)
        angles = rotary_angles(inputs[5], rotated) if rotated else None
        one, two = copies(inputs), copies(inputs)
        q, expected = kernels.cache_append(*one, angles), reference(*two, angles=angles)
        tolerance = {"rtol": 2e-3 if rotated else 0, "atol": 1e-3 if rotated and dtype != torch.float32 else 1e-6}
        torch.testing.assert_close(q, expected, **tolerance)
        for mine, other, before in zip(one[3:5], two[3:5], inputs[3:5], strict=True):
            torch.testing.assert_close(mine, other, equal_nan=True, **tolerance)
            others = torch.arange(size[5], device=device) != inputs[5].unsqueeze(-1)
            assert torch.equal(mine[others].nan_to_num(7), before[others].nan_to_num(7))


def test_a_full_cache_is_left_as_it_is(randn, device):
    inputs = drawn(randn, device, torch.float32, 1, 2, 2, 16, 16, 8, [8])
    wide = randn(1, 10, 2, 16).to(device, torch.float32)
    inputs[3], inputs[4] = wide[:, :8], wide[:, 1:9].clone()
    before = wide.clone()
    kernels.cache_append(*inputs, None)
    assert torch.equal(wide, before)


def test_registration(randn, device):
    inputs = drawn(randn, device, torch.float32, 2, 2, 1, 16, 16, 20, [5, 6])
    torch.library.opcheck(kernels.operator, (*inputs, *rotary_angles(inputs[5], 8)))
