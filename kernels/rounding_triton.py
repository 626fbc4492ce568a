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
def stored(x, place, count, dtype: tl.constexpr):
    """x, float32, as a state of `dtype` keeps it: `place` is its number in a sequence's, `count` the tokens before."""
    if dtype == tl.bfloat16:
        bits = x.to(tl.uint32, bitcast=True)
        count = tl.cast(count, tl.uint32)
        mixed = (bits ^ (place.to(tl.uint32) * 0x9E3779B1 + count * 0x85EBCA77)) * 0x85EBCA6B
        mixed = (mixed ^ (mixed >> 13)) * 0xC2B2AE35
        upper = ((bits + (mixed >> 16)) >> 16).to(tl.uint16).to(tl.bfloat16, bitcast=True)
        rounded = tl.where(x == x, upper, x.to(tl.bfloat16))
    else:
        rounded = x.to(dtype)
    return rounded
