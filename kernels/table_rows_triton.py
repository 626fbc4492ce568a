"""Rows of a table that tokens name, for kernels that read an embedding where others would read a tensor."""

# mypy: allow-untyped-defs

import triton
import triton.language as tl

ALIKE = tl.constexpr(4)  # columns of a thread


@triton.jit
def columns(BLOCK_D: tl.constexpr, MASKED: tl.constexpr):
    """The columns of whole rows. MASKED: beside a mask of bytes, of which a thread would load 16 and then have 16 of
    everything; what others load by 4 or 8 would go through shared memory to get there.
    """
    column = tl.arange(0, BLOCK_D)
    if MASKED:
        column = tl.max_contiguous(column, min(ALIKE, BLOCK_D))
    return column


@triton.jit
def table_rows(table, tokens, row, column, inside, rows, vocabulary, D: tl.constexpr):
    """A tile of them in float32, zeros outside; NaN for a token that the table does not have."""
    token = tl.load(tokens + row, mask=row < rows, other=0)
    known = inside & ((token >= 0) & (token < vocabulary))[:, None]
    x = tl.load(table + token[:, None] * D + column[None, :], mask=known, other=float("nan")).to(tl.float32)
    return tl.where(inside, x, 0.0)


@triton.jit
def kept_rows(
    table, tokens, kept, row, at, column, inside, rows, vocabulary, scale, D: tl.constexpr, HAS_KEPT: tl.constexpr
):  # fmt: skip
    """`table_rows` after dropout: `kept` says what stays, `at` where that stands for the tile."""
    x = table_rows(table, tokens, row, column, inside, rows, vocabulary, D)
    if HAS_KEPT:
        x = tl.where(tl.load(kept + at, mask=inside, other=0) != 0, x * scale, 0.0)
    return x
