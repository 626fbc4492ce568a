"""What the Triton kernels of the gated delta rule share: decays between tokens without overflow, and loads.

A sequence is cut into chunks of T tokens. G is the sum of g, in units of log 2, from the beginning of a chunk. What
links token s to a later one t is decayed by 2^(G_t - G_s), t's own g included (q), or by 2^(G_t-1 - G_s) (b, which
reads the state before it decays). Every exponent here is a sum of g over just the tokens between, formed by a product
with a matrix of -1, 0, 1: no difference of large sums, so that decays of any strength are right.

With one decay a channel, 2^(G_t - G_s) cannot multiply a product of q and k afterwards. It is split at an edge r
between s and t, into 2^(G_t - G_r) on q and 2^(G_r - G_s) on k, both at most 1. At level l a chunk is cut into blocks
of 2^(l+1) tokens with the edge in the middle of each, and the level has the pairs on either side of an edge: every pair
has exactly one level, so log2 T products make all scores. Where a chunk's decays are weaker than 2^-MILD altogether, as
gates in use are, the topmost level takes all pairs: those on one side of the edge have a factor above 1, but not by
more than 2^MILD.

Tokens beyond the end are zero, g too, which leaves the state as it is. Operands and products: `taylor_tiles`.
"""

# mypy: allow-untyped-defs

import triton
import triton.language as tl

from .taylor_tiles import load_tile, operand

LOG2E = tl.constexpr(1.4426950408889634)
MILD = tl.constexpr(60.0)
# Logarithms below this one are this one, -inf too: the decay is zero all the same, and sums remain finite.
LEAST = tl.constexpr(-1e6)


@triton.jit
def halves(x):
    """float32 as a sum: a tf32 number, and what remains, of which the matrix units read 11 bits. NaN: (0, NaN)."""
    high = ((x.to(tl.int32, bitcast=True) + 0x1000) & -0x2000).to(tl.float32, bitcast=True)
    return high, x - high


@triton.jit
def product(x, y, accumulator, PRECISION: tl.constexpr):
    """accumulator + x y for operands of `taylor_tiles.operand`.

    The matrix units cut off what passes float32 when they add to an accumulator. Where a state is carried through
    chunk after chunk without a decay, that is always the same way: "tf32x3" adds in a step of its own, to nearest.
    Triton's own also rounds both halves and searches the result for NaN, many instructions on tiles as small as these.
    """
    if PRECISION == "tf32x3":
        x_high, x_low = halves(x)
        y_high, y_low = halves(y)
        parts = tl.dot(x_low, y_high, input_precision="tf32")
        parts = tl.dot(x_high, y_low, parts, input_precision="tf32")
        return accumulator + tl.dot(x_high, y_high, parts, input_precision="tf32")
    return tl.dot(x, y, accumulator, input_precision="tf32")


@triton.jit
def float_halves(x):
    """float32 as a number of bfloat16, rounded by its bits, and the rest, both in float32."""
    high = ((x.to(tl.int32, bitcast=True) + 0x8000) & -0x10000).to(tl.float32, bitcast=True)
    return high, x - high


@triton.jit
def two_halves(x):
    """float32 as a sum of two bfloat16 numbers: 16 bits of it.

    By bits, for conversions there and back are instructions of a single number each.
    """
    high, rest = float_halves(x)
    return high.to(tl.bfloat16), rest.to(tl.bfloat16)


@triton.jit
def fine_product(x, y, accumulator, PRECISION: tl.constexpr):
    """accumulator + x y for a float32 x and an operand y. "bf16" takes x as two numbers, 16 bits of it."""
    if PRECISION == "bf16":
        high, low = two_halves(x)
        return tl.dot(high, y, tl.dot(low, y, accumulator))
    return product(operand(x, PRECISION), y, accumulator, PRECISION)


@triton.jit
def store_parts(pointer, low_pointer, x, place, inside, PRECISION: tl.constexpr):
    """u or p for the backward: float32, with "bf16" the two numbers that `fine_product` takes."""
    if PRECISION == "bf16":
        x, low = two_halves(x)
        tl.store(low_pointer + place, low, mask=inside)
    tl.store(pointer + place, x.to(pointer.dtype.element_ty), mask=inside)


@triton.jit
def parts_product(
    pointer, low_pointer, stride, t, columns, left, y, accumulator, V: tl.constexpr, VP: tl.constexpr,
    EVEN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """accumulator + x y for what `store_parts` has stored, and an operand y."""
    x = load_tile(pointer, stride, t, columns, left, V, VP, EVEN)
    if PRECISION == "bf16":
        low = load_tile(low_pointer, stride, t, columns, left, V, VP, EVEN)
        accumulator = tl.dot(x, y, tl.dot(low, y, accumulator))
    else:
        accumulator = fine_product(x, y, accumulator, PRECISION)
    return accumulator


@triton.jit
def sums(choice, x):
    """choice x, for a matrix of -1, 0 and 1: to float32's accuracy."""
    choice = choice.to(tl.float32)
    high, low = halves(x)
    return tl.dot(choice, high, tl.dot(choice, low, input_precision="tf32"), input_precision="tf32")


@triton.jit
def chunk_place(program, length, heads, T: tl.constexpr):
    """Of the chunk with this number of all sequences' chunks: its sequence, the tokens from its first one on, the first
    one, and the place of that one's head in (B,L,H).
    """
    chunks = tl.cdiv(length, T)
    sequence, start = program // chunks, program % chunks * T
    token = ((sequence // heads).to(tl.int64) * length + start) * heads + sequence % heads
    return sequence, length - start, tl.cast(start, tl.int64), token


@triton.jit
def load_gate(
    pointer, stride, t, keys, left, K: tl.constexpr, BK: tl.constexpr, EVEN: tl.constexpr, GATE: tl.constexpr
):  # fmt: skip
    """g in units of log 2: (T,1) for one a head, (T,BK) for one a channel."""
    if GATE == "head":
        g = tl.load(pointer + t * stride, mask=t < left, other=0.0)[:, None]
    else:
        g = load_tile(pointer, stride, t, keys, left, K, BK, EVEN)
    return tl.maximum(g.to(tl.float32) * LOG2E, LEAST)


@triton.jit
def store_rows(pointer, x, offset, heads, t, keys, left, K: tl.constexpr):
    """Rows of a dense (B,L,H,K)."""
    place = pointer + offset * K + t[:, None] * (heads * K) + keys[None, :]
    tl.store(place, x.to(pointer.dtype.element_ty), mask=(t < left)[:, None] & (keys < K)[None, :])


@triton.jit
def sums_before(g, GATE: tl.constexpr):
    """Sums of g over the tokens of the chunk before each one: shape as g."""
    t = tl.arange(0, g.shape[0])
    if GATE == "head":
        row = tl.reshape(g, [1, g.shape[0]])
        return tl.sum(tl.where(t[:, None] > t[None, :], row, 0.0), 1)[:, None]
    return sums(t[:, None] > t[None, :], g)


@triton.jit
def sums_after(g, GATE: tl.constexpr):
    """Sums of g over the tokens of the chunk after each one: shape as g."""
    t = tl.arange(0, g.shape[0])
    if GATE == "head":
        row = tl.reshape(g, [1, g.shape[0]])
        return tl.sum(tl.where(t[:, None] < t[None, :], row, 0.0), 1)[:, None]
    return sums(t[:, None] < t[None, :], g)


@triton.jit
def decayed(x, exponent, GATE: tl.constexpr):
    """x 2^exponent in float32; without decays x."""
    x = x.to(tl.float32)
    if GATE != "none":
        x *= tl.exp2(exponent)
    return x


@triton.jit
def head_decays(g, GATE: tl.constexpr, T: tl.constexpr):
    """Decays (T,T) of the pairs t, s for q (t >= s) and for b (t > s), 0 for others; g (T,1), or none."""
    t = tl.arange(0, T)
    if GATE == "none":
        into_q = (t[:, None] >= t[None, :]).to(tl.float32)
        into_b = (t[:, None] > t[None, :]).to(tl.float32)
    else:
        between = sums(t[:, None] > t[None, :], tl.where(t[:, None] > t[None, :], g, 0.0))
        into_q = tl.exp2(tl.where(t[:, None] > t[None, :], between + g, float("-inf")))
        into_q = tl.where(t[:, None] == t[None, :], 1.0, into_q)
        into_b = tl.exp2(tl.where(t[:, None] > t[None, :], between, float("-inf")))
    return into_q, into_b


@triton.jit
def first_level(g, LEVELS: tl.constexpr):
    """(the first level to take, the token from which on it takes all pairs: the first one or none)."""
    mild = tl.min(tl.sum(g, 0), 0) + MILD > 0.0
    return tl.where(mild, LEVELS - 1, 0), tl.where(mild, 0, g.shape[0])


@triton.jit
def is_mild(ends, BK: tl.constexpr):
    """Whether no channel of the chunk with these decays over all of it has less than 2^(-2 MILD) left."""
    return tl.min(tl.load(ends + tl.arange(0, BK)), 0) > tl.exp2(-2.0 * MILD)


@triton.jit
def takes(ends, BK: tl.constexpr, STRONG: tl.constexpr):
    """Whether a kernel of any decays has a chunk to take: with STRONG, only if it is not mild."""
    if STRONG:
        return not is_mild(ends, BK)
    return True


@triton.jit
def level_decays(g, level, whole):
    """Of one level: which tokens are above their edge (T,), as a column; the matrix (T,T) behind the exponents;

    the pairs (T,T) that the level has; and the factors (T,BK) of q, of b, and of k and a.
    """
    t = tl.arange(0, g.shape[0])
    half = 1 << level
    block = t // (2 * half)
    edge = (block * (2 * half) + half - 1)[:, None]
    above, other = t[:, None] > edge, t[None, :]
    # Tokens above: the sum over edge < j < t, those below: less the sum over t < j <= edge. Neither is a difference.
    ahead = above & (other > edge) & (other < t[:, None])
    behind = (other > t[:, None]) & (other <= edge)
    signs = tl.where(ahead, 1.0, tl.where(behind, -1.0, 0.0))
    from_edge = sums(signs, g)
    of_q = from_edge + tl.where(above, g, 0.0)
    of_b = from_edge - tl.where(above, 0.0, g)
    all_pairs = (t >= whole)[:, None]
    pairs = (block[:, None] == block[None, :]) & above & (t % (2 * half) < half)[None, :]
    pairs = pairs | ((t[:, None] > other) & all_pairs)
    into_q = tl.exp2(tl.where(above | all_pairs, of_q, float("-inf")))
    into_b = tl.exp2(tl.where(above | all_pairs, of_b, float("-inf")))
    into_k = tl.exp2(tl.where((t[:, None] <= edge) | all_pairs, -of_q, float("-inf")))
    return above, signs, pairs, into_q, into_b, into_k
