"""The second half of a deterministic sum over rows: programs left partial sums, this one adds them in a fixed order.

Gradients of gains, biases and convolution weights are sums over every token. Atomic additions would make them depend
on the order in which programs finish.
"""

# mypy: allow-untyped-defs

import torch
import triton
import triton.language as tl
from torch import Tensor

PARTS, COLUMNS = 512, 16  # of one tile: enough elements in flight to hide most of the latency of memory
FEW, ELEMENTS = 32, 2048  # parts whose tiles are no higher than there are parts, and as wide as so many elements make


@triton.jit
def _sum_parts(partials, out, parts, width, PARTS: tl.constexpr, COLUMNS: tl.constexpr):
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros((PARTS, COLUMNS), tl.float32)
    for start in range(0, parts, PARTS):
        part = start + tl.arange(0, PARTS)
        inside = (part < parts)[:, None] & (column < width)[None, :]
        total += tl.load(partials + part[:, None] * width + column[None, :], mask=inside, other=0.0)
    tl.store(out + column, tl.sum(total, axis=0), mask=column < width)


def sum_parts(partials_PW: Tensor, dtype: torch.dtype) -> Tensor:
    """Sum (P, W) float32 over P -> (W,) in `dtype`."""
    parts, width = partials_PW.shape
    out_W = torch.empty(width, dtype=dtype, device=partials_PW.device)
    rows, columns, warps = PARTS, COLUMNS, 8
    if parts <= FEW:
        rows, warps = triton.next_power_of_2(parts), 4
        columns = ELEMENTS // rows
    _sum_parts[(triton.cdiv(width, columns),)](
        partials_PW, out_W, parts, width, PARTS=rows, COLUMNS=columns, num_warps=warps
    )
    return out_W
