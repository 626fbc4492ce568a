"""The operator behind `row_linear`: tensor maps, and the launch of its kernel."""

# mypy: allow-untyped-defs

from copy import copy
from functools import lru_cache
from types import ModuleType
from typing import Any

import torch
import triton
from torch import Tensor

from .dependent_launch import early_options
from .gluon_modules import gluon_module
from .row_linear import MODULE, WIDTH, _batch

COUNTERS = 256  # tiles of a launch, at most: one program a multiprocessor
_counters: dict[torch.device, Tensor] = {}


@lru_cache(maxsize=1024)
def _map_of(sizes: tuple[int, ...], strides: tuple[int, ...], block: tuple[int, ...], dtype: torch.dtype) -> Any:
    """A tensor map for any tensor of this shape, yet without one."""
    from triton.experimental.gluon.language import NVMMASharedLayout
    from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

    layout = NVMMASharedLayout(2 * WIDTH, 16, len(sizes))
    made = TensorDescriptor(torch.empty(1024, dtype=dtype), list(sizes), list(strides), list(block), layout)
    made.base = None
    return made


def _map(x: Tensor, sizes: tuple[int, ...], strides: tuple[int, ...], block: tuple[int, ...]) -> Any:
    made = copy(_map_of(sizes, strides, block, x.dtype))
    made.base = x
    return made


def x_map(x: Tensor) -> Any:
    """Tiles of all rows; what lies beyond them reads as zero."""
    return _map(x, tuple(x.shape), (x.stride(0), 1), (_batch(len(x)), WIDTH))


def weight_map(weight: Tensor, tile: int, gated: bool) -> Any:
    """Tiles of outputs; gated, 8 values and their 8 gates by turns."""
    E, K = weight.shape
    if not gated:
        return _map(weight, (E, K), (K, 1), (tile, WIDTH))
    return _map(weight, (E // 16, 2, 8, K), (8 * K, E // 2 * K, K, 1), (tile // 16, 2, 8, WIDTH))


def counters(x: Tensor) -> Tensor | None:
    """Zeros that launches leave as they found them; not to be had first in a graph, whose memory is its own."""
    if x.device not in _counters:
        if x.device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            return None
        _counters[x.device] = torch.zeros(COUNTERS, dtype=torch.int32, device=x.device)
    return _counters[x.device]


@torch.library.custom_op("basedbench::row_linear", mutates_args=())
def operator(
    x: Tensor, weight: Tensor, bias: Tensor | None, gated: bool, parts: bool, tile: int, split: int, stages: int
) -> Tensor:
    """y (B,E), gated (B,E/2), or its parts (split,B,E) in float32."""
    kernels = gluon_module(MODULE)
    assert isinstance(kernels, ModuleType)
    y = output(x, weight, bias, gated, parts, tile, split, stages)
    tiles = triton.cdiv(len(weight), tile)
    joined = split > 1 and not parts
    scratch = x.new_empty(tiles * split * tile * _batch(len(x)), dtype=torch.float32) if joined else y
    kernels.product_kernel[(tiles, split)](
        x_map(x), weight_map(weight, tile, gated), bias, y, scratch, counters(x) if joined else y, len(x),
        y.shape[-1], K=weight.shape[1], TILE=tile, BATCH=_batch(len(x)), SPLIT=split, STAGES=stages, GATED=gated,
        PARTS=parts, HAS_BIAS=bias is not None, num_warps=tile // 16, **early_options(x),
    )  # fmt: skip
    return y


@operator.register_fake
def output(x, weight, bias, gated, parts, tile, split, stages):
    """y, not yet written."""
    if parts:
        return x.new_empty((split, len(x), len(weight)), dtype=torch.float32)
    return x.new_empty((len(x), len(weight) // 2 if gated else len(weight)))
