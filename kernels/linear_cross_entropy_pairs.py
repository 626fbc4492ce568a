"""Launches of the Gluon kernels of `linear_cross_entropy`: bfloat16 on Hopper, widths 64 and 128.

The vocabulary is a multiple of 128, the operands start at multiples of 16 bytes. Others have the Triton kernels.
"""

# mypy: allow-untyped-defs

from types import ModuleType
from typing import Any, cast

import torch
import triton
from torch import Tensor

from .gluon_modules import gluon_module, is_hopper
from .tensor_maps import tensor_map

MODULE = "linear_cross_entropy_gluon"
WIDTHS = (64, 128)
BLOCK = 64  # positions and words of a block
PAIR = 2 * BLOCK  # what a share is a multiple of
WARPS = 4  # one warpgroup
TOGETHER = 2  # programs of a multiprocessor
ROWS = 16  # of grad_x, written at once


def taken(x: Tensor, weight: Tensor) -> bool:
    """Whether the kernels take these contiguous operands here; on a CPU, where they are interpreted, if they could."""
    if x.dtype != torch.bfloat16 or x.shape[1] not in WIDTHS or len(weight) % PAIR:
        return False
    if any(one.data_ptr() % 16 for one in (x, weight)):
        return False
    return (not x.is_cuda or is_hopper(x.device)) and isinstance(gluon_module(MODULE), ModuleType)


def _kernels() -> Any:
    return cast(ModuleType, gluon_module(MODULE))


def _rows_map(x: Tensor) -> Any:
    return tensor_map(x, tuple(x.shape), x.stride(), (BLOCK, x.shape[1]))


def launch_forward(
    x: Tensor, weight: Tensor, target: Tensor, rows: Tensor, expected: Tensor, words: int, *, differentiable: bool
) -> None:
    """Partial results of shares of `words`: rows (S,4,N), expected (S,N,D)."""
    (N, D), V = x.shape, len(weight)
    _kernels().lce_pairs_kernel[(triton.cdiv(N, BLOCK), len(rows))](
        x, weight, _rows_map(weight), target, rows, expected, N, V, words, D=D, EXPECTED=differentiable, num_warps=WARPS
    )


def launch_weight_gradient(
    x: Tensor, weight: Tensor, target: Tensor, saved: Tensor, slope: Tensor, grad_loss: Tensor, grad_x: Tensor,
    parts: Tensor, splits: int, share: int,
) -> None:  # fmt: skip
    """Partial gradients (S,V,D) of `splits` shares of positions; and `grad_x`."""
    (N, D), V = x.shape, len(weight)
    _kernels().lce_slope_pairs_kernel[(V // BLOCK, splits)](
        _rows_map(x), weight, target, saved, grad_loss, parts, slope, grad_x, N, V, share,
        D=D, GRAD_X=slope.numel() > 0, ROWS=ROWS, num_warps=WARPS,
    )  # fmt: skip
