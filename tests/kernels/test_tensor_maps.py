"""Tensor maps are what the driver takes, whatever strides PyTorch leaves dimensions of one."""

import pytest
import torch

from basedbench.kernels import linear_cross_entropy_pairs as pairs
from basedbench.kernels.tensor_maps import tensor_map

pytest.importorskip("triton.experimental.gluon.nvidia.hopper")


@pytest.mark.parametrize(
    "row",
    [
        torch.zeros(1, 9, 68, dtype=torch.bfloat16)[:, -1, :64],
        torch.zeros(1, 100, dtype=torch.bfloat16)[:, :64],
        torch.zeros(64, 1, dtype=torch.bfloat16).t(),
    ],
    ids=["last of a sequence", "first of a row", "turned"],
)
def test_a_single_position_of_any_stride(row):
    assert row.contiguous().stride(0) == row.stride(0)  # PyTorch calls it contiguous as it is
    found = pairs._rows_map(row.contiguous())
    assert found.base.data_ptr() == row.data_ptr()
    assert found.shape == [1, 64]
    assert all(stride % 8 == 0 for stride in found.strides[:-1])


def test_one_map_for_a_shape_and_its_own_tensor_for_each():
    a, b = torch.zeros(2, 256, 128, dtype=torch.bfloat16)
    first, second = (tensor_map(x, (256, 128), (128, 1), (64, 128)) for x in (a, b))
    assert (first.base is a, second.base is b) == (True, True)
    assert first.layout is second.layout
    assert tensor_map(a, (256, 128), (128, 1), (64, 16)).layout.swizzle_byte_width == 32
    assert first.layout.swizzle_byte_width == 128
