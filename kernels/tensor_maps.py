"""Tensor maps of Hopper, by which tiles come to shared memory whole.

Making one anew takes longer than small kernels: it is made once for a shape, then pointed elsewhere.
"""

from copy import copy
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

LINE = 128  # bytes that a swizzle goes through at most


@lru_cache(maxsize=1024)
def _map_of(sizes: tuple[int, ...], strides: tuple[int, ...], block: tuple[int, ...], dtype: torch.dtype) -> Any:
    """A tensor map for any tensor of this shape, yet without one."""
    from triton.experimental.gluon.language import NVMMASharedLayout
    from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

    layout = NVMMASharedLayout(min(LINE, block[-1] * dtype.itemsize), 8 * dtype.itemsize, len(sizes))
    # The stride of a dimension of one is never used, but has to be a valid one.
    strides = tuple(16 if size == 1 else stride for size, stride in zip(sizes[:-1], strides[:-1], strict=True))
    made = TensorDescriptor(torch.empty(1024, dtype=dtype), list(sizes), [*strides, 1], list(block), layout)
    made.base = None
    return made


def tensor_map(x: Tensor, sizes: tuple[int, ...], strides: tuple[int, ...], block: tuple[int, ...]) -> Any:
    """Blocks of x as a tensor of these sizes, its last dimension dense; what lies beyond it reads as zero."""
    made = copy(_map_of(sizes, strides, block, x.dtype))
    made.base = x
    return made
