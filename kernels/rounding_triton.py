"""`rounding` inside kernels."""

# mypy: allow-untyped-defs

import triton
import triton.language as tl


@triton.jit
def counted(count, batch, HAS_COUNT: tl.constexpr):
    """The tokens of a sequence so far, int32 (B,)."""
    if HAS_COUNT:
        return tl.load(count + batch)
    return 0


@triton.jit
def below_carry(x):
    """The bits of x. NaN, all ones as a GPU's sums have it, would be carried into another number: fewer ones."""
    return tl.minimum(x.to(tl.int32, bitcast=True), 0x7FC00000).to(tl.uint32, bitcast=True)


@triton.jit
def stored(x_RC, row_R, first, count, COLUMNS: tl.constexpr, dtype: tl.constexpr):
    """x, float32 rows of an even number of columns, as a state of `dtype` keeps them.

    `row_R` are their numbers among a sequence's rows of COLUMNS, `first` the pair of columns that x begins with (behind
    the last it may have more), `count` the tokens before.
    """
    if dtype == tl.bfloat16:
        ROWS: tl.constexpr = x_RC.shape[0]
        PAIRS: tl.constexpr = x_RC.shape[1] // 2
        pair_RP = (
            row_R.to(tl.uint32)[:, None] * ((COLUMNS + 1) // 2) + (first + tl.arange(0, PAIRS)).to(tl.uint32)[None, :]
        )
        even_RP, odd_RP = tl.split(tl.reshape(x_RC, [ROWS, PAIRS, 2]))
        even, odd = even_RP.to(tl.uint32, bitcast=True), odd_RP.to(tl.uint32, bitcast=True)
        mixed = odd * 0x27D4EB2F + even + (pair_RP * 0x9E3779B1 + tl.cast(count, tl.uint32) * 0x85EBCA77)
        mixed = mixed * 0x85EBCA6B
        mixed = (mixed ^ (mixed >> 13)) * 0xC2B2AE35
        even = below_carry(even_RP) + (mixed >> 16)
        odd = below_carry(odd_RP) + (mixed & 0xFFFF)
        upper = tl.reshape(tl.join((even >> 16).to(tl.uint16), (odd >> 16).to(tl.uint16)), [ROWS, 2 * PAIRS])
        kept = upper.to(tl.bfloat16, bitcast=True)
    else:
        kept = x_RC.to(dtype)
    return kept
