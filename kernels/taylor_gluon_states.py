"""States of the Gluon form of taylor_attention between its kernels: running sums, and the packed state at the edges.

A slot is one float32 state for key width 16 and a tile of 64 values, feature by value:

             (128, 64) sums of v x_j x_(j + d mod 16), feature 16 d + j
    REST     (32, 64) sums of v times x, x_j x_(j + 8) for j < 8, 1, seven zeros
    MOMENTS  (16, 16) sums of x_i x_j
    KEY_SUM  (16) sums of 4 x_i
    COUNT    tokens

Values lie side by side: registers that hold values by features take eight of them at a time, whole sectors, and those
that gather features in another order do so too.
"""

# mypy: allow-untyped-defs

import triton
import triton.language as tl

REST = tl.constexpr(2 * 4096)
MOMENTS = tl.constexpr(REST.value + 2048)
KEY_SUM = tl.constexpr(MOMENTS.value + 256)
COUNT = tl.constexpr(KEY_SUM.value + 16)
SLOT = tl.constexpr(KEY_SUM.value + 32)
FEATURES = tl.constexpr(153)


@triton.jit
def _packed_product(i, j):
    """The packed row of x_i x_j."""
    low, high = tl.minimum(i, j), tl.maximum(i, j)
    return 17 + low * 16 - low * (low - 1) // 2 + high - low


@triton.jit
def _packed_place(entry, tile, V: tl.constexpr):
    """(offset in the packed (153, V + 1), coefficient, exists, is its canonical place) of an entry of a slot.

    The packed state keeps x_i x_j once, for i <= j, times 1/4 or, i = j, 1 / sqrt(32); x_i / 2; 1; and the normaliser
    in its last column.
    """
    of_values = entry < MOMENTS
    is_moment = (entry >= MOMENTS) & (entry < KEY_SUM)
    is_sum = (entry >= KEY_SUM) & (entry < KEY_SUM + 16)
    # Features by number: 128 products, 16 of x, 8 products of opposites, 1.
    feature = entry // 64
    opposite = feature >= 144
    j = tl.where(opposite, feature - 144, feature % 16)
    i = tl.where(opposite, j + 8, (j + feature // 16) % 16)
    moment = entry - MOMENTS
    i, j = tl.where(is_moment, moment // 16, i), tl.where(is_moment, moment % 16, j)
    is_product = is_moment | (of_values & ((feature < 128) | (opposite & (feature < 152))))
    is_key = is_sum | (of_values & (feature >= 128) & ~opposite)
    key = tl.where(is_sum, entry - KEY_SUM, feature - 128)
    row = tl.where(is_product, _packed_product(i, j), tl.where(is_key, 1 + key, 0))
    factor = tl.where(is_product, tl.where(i == j, 0.03125**0.5, 0.25), tl.where(is_key, 0.5, 1.0))
    factor = tl.where(is_sum, 0.125, factor)
    column = tl.where(of_values, tile * 64 + entry % 64, V)
    exists = tl.where(of_values, (feature < 153) & (column < V), is_moment | is_sum | (entry == COUNT))
    canonical = exists & (of_values | (tile == 0)) & (~is_moment | (i <= j))
    return row * (V + 1) + column, factor, exists, canonical


@triton.jit(do_not_specialize=["segments", "value_tiles"])
def running_sums_kernel(
    slots, initial, segments, value_tiles,
    V: tl.constexpr, INITIAL: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """slots[0] = initial, slots[s] += slots[s - 1] for s < segments, in place: every element has one thread.

    What nobody reads is zero, the last slot too: equal inputs give equal slots, as torch asks of an operator's outputs.
    """
    place = tl.program_id(0).to(tl.int64)
    entries = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    if INITIAL:
        offset, factor, exists, _ = _packed_place(entries, (place % value_tiles).to(tl.int32), V)
        initial += place // value_tiles * (FEATURES * (V + 1))
        carry = tl.load(initial + offset, mask=exists, other=0.0) / factor
    else:
        carry = tl.zeros([BLOCK], tl.float32)
    inside, known = entries < SLOT, entries <= COUNT
    slots += place * (segments + 1) * SLOT + entries
    tl.store(slots, carry, mask=inside)
    # Four segments at a time, so that their loads are in flight together.
    for first in tl.range(1, segments, 4):
        own = slots + first * SLOT
        sum_0 = tl.load(own, mask=inside, other=0.0) + carry
        sum_1 = tl.load(own + SLOT, mask=inside & (first + 1 < segments), other=0.0)
        sum_2 = tl.load(own + 2 * SLOT, mask=inside & (first + 2 < segments), other=0.0)
        sum_3 = tl.load(own + 3 * SLOT, mask=inside & (first + 3 < segments), other=0.0)
        sum_0 = tl.where(known, sum_0, 0.0)
        sum_1 = tl.where(known, sum_1 + sum_0, 0.0)
        sum_2 = tl.where(known, sum_2 + sum_1, 0.0)
        sum_3 = tl.where(known, sum_3 + sum_2, 0.0)
        tl.store(own, sum_0, mask=inside)
        tl.store(own + SLOT, sum_1, mask=inside & (first + 1 < segments))
        tl.store(own + 2 * SLOT, sum_2, mask=inside & (first + 2 < segments))
        tl.store(own + 3 * SLOT, sum_3, mask=inside & (first + 3 < segments))
        carry = sum_3
    tl.store(slots + segments * SLOT, tl.zeros([BLOCK], tl.float32), mask=inside)


@triton.jit(do_not_specialize=["segments", "value_tiles"])
def final_state_kernel(
    slots, final, segments, value_tiles, V: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """The last slot of each sequence, packed."""
    place = tl.program_id(0).to(tl.int64)
    entries = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    offset, factor, _, canonical = _packed_place(entries, (place % value_tiles).to(tl.int32), V)
    slots += (place * (segments + 1) + segments) * SLOT
    value = tl.load(slots + entries, mask=canonical, other=0.0) * factor
    tl.store(final + place // value_tiles * (FEATURES * (V + 1)) + offset, value, mask=canonical)
