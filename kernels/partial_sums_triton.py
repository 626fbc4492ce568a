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
    _sum_parts[(triton.cdiv(width, COLUMNS),)](
        partials_PW, out_W, parts, width, PARTS=PARTS, COLUMNS=COLUMNS, num_warps=8
    )
    return out_W
