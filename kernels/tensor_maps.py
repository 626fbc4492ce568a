"""Tensor maps of Hopper, by which tiles come to shared memory whole: made once for a shape, then pointed elsewhere."""

from copy import copy
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor


@lru_cache(maxsize=1024)
def _map_of(sizes: tuple[int, ...], strides: tuple[int, ...], block: tuple[int, ...], dtype: torch.dtype) -> Any:
    """A tensor map for any tensor of this shape, yet without one."""
    from triton.experimental.gluon.language import NVMMASharedLayout
    from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

    layout = NVMMASharedLayout(128, 16, len(sizes))
    made = TensorDescriptor(torch.empty(1024, dtype=dtype), list(sizes), list(strides), list(block), layout)
    made.base = None
    return made


def tensor_map(x: Tensor, sizes: tuple[int, ...], strides: tuple[int, ...], block: tuple[int, ...]) -> Any:
    """Blocks of x as a tensor of these sizes; what lies beyond it reads as zero."""
    made = copy(_map_of(sizes, strides, block, x.dtype))
    made.base = x
    return made
