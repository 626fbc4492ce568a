"""The operator behind `row_linear`: tensor maps, and the launch of its kernel."""

# mypy: allow-untyped-defs

from copy import copy
from functools import lru_cache
from types import ModuleType
from typing import Any

import torch
import triton
from torch import Tensor

from .dependents import take_counters
from .gluon_modules import gluon_module
from .row_linear import MODULE, batch_of

COUNTERS = 256  # tiles of a launch, at most
_counters: dict[tuple[torch.device, int], Tensor] = {}


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


def _rows_map(x: Tensor, rows: int, width: int) -> Any:
    return tensor_map(x, tuple(x.shape), x.stride(), (rows, width))


def counters(x: Tensor, split: int, tiles: int) -> Tensor:
    """Of arrivals at each tile, multiples of `split` between launches: a launch's own in a block of dependents.

    Elsewhere all launches share them, so that only one may run at a time, and a graph must not be what asks first.
    """
    own = take_counters(tiles)
    if own is not None:
        return own
    key = x.device, split
    if key not in _counters:
        if x.device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            raise RuntimeError("row_linear must have run once before it is captured in a graph")
        _counters[key] = torch.zeros(COUNTERS, dtype=torch.int32, device=x.device)
    return _counters[key]


@torch.library.custom_op("basedbench::row_linear", mutates_args=())
def operator(
    x: Tensor, weight: Tensor, bias: Tensor | None, tile: int, width: int, split: int, weight_stages: int,
    x_stages: int, meet: bool, early: bool,
) -> Tensor:  # fmt: skip
    """y (B,E)."""
    kernels = gluon_module(MODULE)
    assert isinstance(kernels, ModuleType)
    outputs = len(weight)
    y, batch, tiles = x.new_empty((len(x), outputs)), batch_of(len(x)), triton.cdiv(outputs, tile)
    joined = split > 1
    parts = x.new_empty(tiles * split * batch * tile, dtype=torch.float32) if joined else y
    kernels.product_kernel[(tiles, split)](
        _rows_map(x, batch, width), _rows_map(weight, tile, width), bias, y, parts,
        counters(x, split, tiles) if joined else y, len(x), outputs, triton.cdiv(x.shape[1], width), TILE=tile,
        WIDTH=width, BATCH=batch, SPLIT=split, WEIGHT_STAGES=weight_stages, X_STAGES=x_stages, MEET=meet,
        HAS_BIAS=bias is not None, EARLY=early, WARPS=tile // 16, num_warps=tile // 16,
        **({"launch_pdl": True} if early else {}),
    )  # fmt: skip
    return y


@operator.register_fake
def _(x, weight, bias, *plan):
    return x.new_empty((len(x), len(weight)))
