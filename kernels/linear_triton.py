"""The sum of a matrix's rows, for `linear`'s bias gradient: programs leave partial sums, added in a fixed order."""

# mypy: allow-untyped-defs

import torch
import triton
import triton.language as tl
from torch import Tensor

from .partial_sums_triton import sum_parts

ROWS, COLUMNS = 64, 64
PROGRAMS = 128  # over the rows; fixed, so that the order of the sums is the same on every device


@triton.jit
def column_sum_kernel(x, partials, rows, stride, width, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for tile in range(tl.program_id(0), tl.cdiv(rows, ROWS), tl.num_programs(0)):
        row = tile * ROWS + tl.arange(0, ROWS)
        inside = (row < rows)[:, None] & (column < width)[None, :]
        at = row.to(tl.int64)[:, None] * stride + column[None, :]
        total += tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(partials + tl.program_id(0) * width + column, tl.sum(total, axis=0), mask=column < width)


def column_sum(x_ND: Tensor, dtype: torch.dtype, leaf: Tensor | None = None) -> Tensor:
    """Sum (N,D) over N -> (D,) in `dtype`, the gradient of `leaf`."""
    x_ND = x_ND if x_ND.stride(1) == 1 else x_ND.contiguous()
    rows, width = x_ND.shape
    programs = max(1, min(PROGRAMS, triton.cdiv(rows, ROWS)))
    partials = torch.empty((programs, width), dtype=torch.float32, device=x_ND.device)
    column_sum_kernel[(programs, triton.cdiv(width, COLUMNS))](
        x_ND, partials, rows, x_ND.stride(0), width, ROWS=ROWS, COLUMNS=COLUMNS
    )
    return sum_parts(partials, dtype, (leaf,))
