"""Products of matrices of which one side is tokens, in programs that leave room for others on a multiprocessor.

A library's product takes a whole multiprocessor for each of its programs: all registers, most of shared memory. Alone
that is fastest. Beside other runs such a program begins only where everything else has ended, and nothing else begins
meanwhile. Of these at least three fit on a multiprocessor.

Every matrix has one side whose numbers lie together, and a stride of whole UNITs on the other one.
"""

# mypy: allow-untyped-defs

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import tall_matmul as products
from .partial_sums_triton import FEW, sum_parts

UNIT = tl.constexpr(products.UNIT)
WARPS = 4
ROWS, COLUMNS, INNER = 64, 128, 64  # of a tile; columns and the inner side at most
WIDE = 64  # columns of a tile of a program that goes along whole rows,
NARROW, SHALLOW = 32, 128  # which has all of the inner side at once, longer than that and so long at most
# Of a sum over tokens, the same on every device: so many programs about, with so many tokens at least. Each leaves a
# tile in float32, and up to FEW of them are added up soonest.
PROGRAMS, LEAST_TOKENS = 128, 768
# A width is a multiple of UNIT, whatever else it is: nothing is gained by kernels of their own for other multiples.
NUMBERS = [
    *("row_units", "column_units", "inner_units", "share"),
    *("a_stride", "b_stride", "added_stride", "out_stride"),
]


@triton.jit
def _at(x, row, column, stride, TOGETHER: tl.constexpr):
    """Pointers to a tile; TOGETHER: numbers of a row lie together, else those of a column."""
    if TOGETHER:
        return x + row.to(tl.int64)[:, None] * (stride * UNIT) + column[None, :]
    return x + row[:, None] + column.to(tl.int64)[None, :] * (stride * UNIT)


@triton.jit
def _product(
    a, b, a_stride, b_stride, row, column, rows, columns, first, last, A_ROWS: tl.constexpr, B_ROWS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """A tile of a b, in float32, summed over the inner side from `first` to `last`."""
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in tl.range(first, last, BLOCK_K, num_stages=STAGES):
        inner = start + tl.arange(0, BLOCK_K)
        inside = inner < last
        a_inside = (row < rows)[:, None] & inside[None, :]
        b_inside = inside[:, None] & (column < columns)[None, :]
        x = tl.load(_at(a, row, inner, a_stride, A_ROWS), mask=a_inside, other=0.0)
        y = tl.load(_at(b, inner, column, b_stride, B_ROWS), mask=b_inside, other=0.0)
        total = tl.dot(x, y, total)
    return total


@triton.jit
def _finish(
    total, added, out, row, column, rows, columns, added_stride, out_stride, OUT_ROWS: tl.constexpr,
    ADDED: tl.constexpr,
):  # fmt: skip
    """Store a tile with what is to be added: nothing, "vector" (N,), or "matrix" (M,N) that lies as `out` does."""
    inside = (row < rows)[:, None] & (column < columns)[None, :]
    if ADDED == "vector":
        total += tl.load(added + column, mask=column < columns, other=0.0).to(tl.float32)[None, :]
    if ADDED == "matrix":
        total += tl.load(_at(added, row, column, added_stride, OUT_ROWS), mask=inside, other=0.0).to(tl.float32)
    tl.store(_at(out, row, column, out_stride, OUT_ROWS), total.to(out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=NUMBERS)
def tall_matmul_kernel(
    a, b, added, out, row_units, column_units, inner_units, a_stride, b_stride, added_stride, out_stride,
    A_ROWS: tl.constexpr, B_ROWS: tl.constexpr, OUT_ROWS: tl.constexpr, ADDED: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """out (M,N) = a (M,K) b (K,N) + added, a tile a program; those of a row of tiles one after the other."""
    rows, columns, inner = row_units * UNIT, column_units * UNIT, inner_units * UNIT
    across = tl.cdiv(columns, BLOCK_N)
    row = tl.program_id(0) // across * BLOCK_M + tl.arange(0, BLOCK_M)
    column = tl.program_id(0) % across * BLOCK_N + tl.arange(0, BLOCK_N)
    total = _product(
        a, b, a_stride, b_stride, row, column, rows, columns, 0, inner, A_ROWS, B_ROWS, BLOCK_M, BLOCK_N, BLOCK_K,
        STAGES,
    )  # fmt: skip
    _finish(total, added, out, row, column, rows, columns, added_stride, out_stride, OUT_ROWS, ADDED)


@triton.jit(do_not_specialize=NUMBERS)
def wide_rows_kernel(
    a, b, added, out, row_units, column_units, inner_units, a_stride, b_stride, added_stride, out_stride,
    A_ROWS: tl.constexpr, B_ROWS: tl.constexpr, OUT_ROWS: tl.constexpr, ADDED: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """The same of a program for whole rows, whose a (BLOCK_M,K), with K up to BLOCK_K, is read once."""
    rows, columns, inner = row_units * UNIT, column_units * UNIT, inner_units * UNIT
    row, k = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_K)
    x = tl.load(_at(a, row, k, a_stride, A_ROWS), mask=(row < rows)[:, None] & (k < inner)[None, :], other=0.0)
    for start in tl.range(0, columns, BLOCK_N, num_stages=STAGES):
        column = start + tl.arange(0, BLOCK_N)
        y_inside = (k < inner)[:, None] & (column < columns)[None, :]
        y = tl.load(_at(b, k, column, b_stride, B_ROWS), mask=y_inside, other=0.0)
        total = tl.dot(x, y)
        _finish(total, added, out, row, column, rows, columns, added_stride, out_stride, OUT_ROWS, ADDED)


@triton.jit(do_not_specialize=NUMBERS)
def token_sum_kernel(
    a, b, partials, row_units, column_units, inner_units, share, a_stride, b_stride, A_ROWS: tl.constexpr,
    B_ROWS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Partial sums (S,M,N) of a (M,T) b (T,N), each over a share of the tokens: so many BLOCK_Ks."""
    rows, columns, tokens = row_units * UNIT, column_units * UNIT, inner_units * UNIT
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    column = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    part = tl.program_id(2)
    first = part * share * BLOCK_K
    last = tl.minimum(first + share * BLOCK_K, tokens)
    total = _product(
        a, b, a_stride, b_stride, row, column, rows, columns, first, last, A_ROWS, B_ROWS, BLOCK_M, BLOCK_N, BLOCK_K,
        STAGES,
    )  # fmt: skip
    inside = (row < rows)[:, None] & (column < columns)[None, :]
    place = part.to(tl.int64) * rows * columns + row[:, None] * columns + column[None, :]
    tl.store(partials + place, total.to(partials.dtype.element_ty), mask=inside)


def tall_matmul(a_MK: Tensor, b_KN: Tensor, out_MN: Tensor, added: Tensor | None = None) -> Tensor:
    """out = a b + added, (N,) or (M,N) as `out` lies; which may be `out` itself. All sides are whole UNITs."""
    (rows, inner), columns = a_MK.shape, b_KN.shape[1]
    (a_rows, a_stride), (b_rows, b_stride), (out_rows, out_stride) = map(_layout, (a_MK, b_KN, out_MN))
    kind, added_stride = "none", 0
    if added is not None:
        kind = "vector" if added.dim() == 1 else "matrix"
        added_stride = 0 if added.dim() == 1 else _layout(added)[1]
    block_k = _block(inner, SHALLOW)
    if columns > WIDE and NARROW < inner <= block_k:
        kernel, block_n, programs, stages = wide_rows_kernel, WIDE, triton.cdiv(rows, ROWS), 2
    else:
        kernel, block_k, block_n = tall_matmul_kernel, _block(inner, INNER), _block(columns, COLUMNS)
        programs = triton.cdiv(rows, ROWS) * triton.cdiv(columns, block_n)
        stages = 2 if inner > block_k else 1
    kernel[(programs,)](
        a_MK, b_KN, out_MN if added is None else added, out_MN, *_units(rows, columns, inner), a_stride, b_stride,
        added_stride, out_stride, A_ROWS=a_rows, B_ROWS=b_rows, OUT_ROWS=out_rows, ADDED=kind, BLOCK_M=ROWS,
        BLOCK_N=block_n, BLOCK_K=block_k, STAGES=stages, num_warps=WARPS,
    )  # fmt: skip
    return out_MN


def token_sum(a_MT: Tensor, b_TN: Tensor, dtype: torch.dtype, leaf: Tensor | None = None) -> Tensor:
    """a b (M,N) in `dtype`, summed over many tokens in an order that depends on the three sides alone.

    As the whole gradient of `leaf` it may be complete only behind `partial_sums.together`.
    """
    (rows, tokens), columns = a_MT.shape, b_TN.shape[1]
    (a_rows, a_stride), (b_rows, b_stride) = _layout(a_MT), _layout(b_TN)
    block_n = _block(columns, COLUMNS)
    across = triton.cdiv(rows, ROWS), triton.cdiv(columns, block_n)
    parts = max(1, min(PROGRAMS // (across[0] * across[1]), FEW.value, tokens // LEAST_TOKENS))
    share = triton.cdiv(triton.cdiv(tokens, parts), INNER)
    parts = triton.cdiv(tokens, share * INNER)
    kept = dtype if parts == 1 else torch.float32
    partials = torch.empty((parts, rows * columns), dtype=kept, device=a_MT.device)
    token_sum_kernel[(*across, parts)](
        a_MT, b_TN, partials, *_units(rows, columns, tokens), share, a_stride, b_stride, A_ROWS=a_rows, B_ROWS=b_rows,
        BLOCK_M=ROWS, BLOCK_N=block_n, BLOCK_K=INNER, STAGES=3, num_warps=WARPS,
    )  # fmt: skip
    return (partials if parts == 1 else sum_parts(partials, dtype, (leaf,))).view(rows, columns)


def _block(side: int, most: int) -> int:
    """Products have blocks of 16 at least."""
    return max(16, min(most, triton.next_power_of_2(side)))


def _layout(x: Tensor) -> tuple[bool, int]:
    found = products.laid_out(x)
    assert found is not None
    return found


def _units(*sides: int) -> tuple[int, ...]:
    return tuple(side // UNIT.value for side in sides)
