"""`row_argmax` in Triton: a program a row, all of whose loads are under way before the first comparison."""

# mypy: allow-untyped-defs

import torch
import triton
import triton.language as tl
from torch import Tensor

from .dependents import dependent
from .dependents_triton import follow

BLOCK, WARPS = 8192, 16


@triton.jit
def argmax_kernel(
    x, chosen, row_x, V: tl.constexpr, BLOCK: tl.constexpr, CHUNKS: tl.constexpr, EARLY: tl.constexpr = False
):
    follow(EARLY)
    x += tl.program_id(0).to(tl.int64) * row_x
    column = tl.arange(0, BLOCK)
    best = tl.full([BLOCK], float("-inf"), tl.float32)
    place = column
    for chunk in tl.static_range(CHUNKS):
        at = chunk * BLOCK + column
        value = tl.load(x + at, mask=at < V, other=float("-inf")).to(tl.float32)
        value = tl.where(value != value, float("inf"), value)
        place = tl.where(value > best, at, place)
        best = tl.maximum(value, best)
    largest = tl.max(best, 0)
    tl.store(chosen + tl.program_id(0), tl.min(tl.where((best == largest) & (place < V), place, V - 1), 0).to(tl.int64))


@torch.library.custom_op("basedbench::row_argmax", mutates_args=("chosen",))
def operator(x: Tensor, chosen: Tensor) -> None:
    """Into `chosen` (B,), int64 and contiguous."""
    x = x if x.stride(-1) == 1 else x.contiguous()
    block = min(BLOCK, triton.next_power_of_2(x.shape[1]))
    argmax_kernel[(len(x),)](
        x, chosen, x.stride(0), V=x.shape[1], BLOCK=block, CHUNKS=triton.cdiv(x.shape[1], block),
        num_warps=max(1, min(WARPS, block // 256)), **dependent(),
    )  # fmt: skip


@operator.register_fake
def _(x, chosen):
    return None
