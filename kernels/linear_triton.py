"""Sums of a matrix's rows, for gradients of biases: programs leave partial sums, added in a fixed order."""

# mypy: allow-untyped-defs

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from .company import most_programs
from .partial_sums_triton import sum_parts

ROWS, COLUMNS = 64, 64
PROGRAMS = 128  # over the rows; fixed, so that the order of the sums is the same on every device


@triton.jit
def column_sum_kernel(x, partials, rows, stride, width, apart, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """`apart`: numbers from one program's sums to the next one's."""
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for tile in range(tl.program_id(0), tl.cdiv(rows, ROWS), tl.num_programs(0)):
        row = tile * ROWS + tl.arange(0, ROWS)
        inside = (row < rows)[:, None] & (column < width)[None, :]
        at = row.to(tl.int64)[:, None] * stride + column[None, :]
        total += tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(partials + tl.program_id(0) * apart + column, tl.sum(total, axis=0), mask=column < width)


def column_sum(x_ND: Tensor, dtype: torch.dtype, leaf: Tensor | None = None) -> Tensor:
    """Sum (N,D) over N -> (D,) in `dtype`, the gradient of `leaf`."""
    return column_sums([(x_ND, slice(0, x_ND.shape[1]))], dtype, leaf)


def column_sums(given: Sequence[tuple[Tensor, slice]], dtype: torch.dtype, leaf: Tensor | None = None) -> Tensor:
    """Sums over N of matrices (N,D), each with any N, side by side where their slices say -> (E,), the gradient of
    `leaf`; the slices cover it.
    """
    total = sum(x_ND.shape[1] for x_ND, _ in given)
    tokens = max(len(x_ND) for x_ND, _ in given)
    programs = max(1, min(most_programs(PROGRAMS, tokens), triton.cdiv(tokens, ROWS)))
    partials = torch.empty((programs, total), dtype=torch.float32, device=given[0][0].device)
    for x_ND, columns in given:
        x_ND = x_ND if x_ND.stride(1) == 1 else x_ND.contiguous()
        rows, width = x_ND.shape
        column_sum_kernel[(programs, triton.cdiv(width, COLUMNS))](
            x_ND, partials[:, columns], rows, x_ND.stride(0), width, total, ROWS=ROWS, COLUMNS=COLUMNS
        )
    return sum_parts(partials, dtype, (leaf,))
