"""States of the Gluon form of taylor_attention between its kernels: running sums, and the packed state at the edges.

A slot is one float32 state for key width 16 and a tile of 64 values, in the order of the registers that hold it:

    3 x (64, 64)    sums of x_i x_j v for the halves (a, a), (a, b), (b, b) of the key's dimensions, feature by value
    LINEAR          (64, 16) sums of v x_i, value by key
    CONSTANT        (64) sums of v
    MOMENTS         (16, 16) sums of x_i x_j
    KEY_SUM         (16) sums of x_i
    COUNT           tokens

With turned features (`taylor_gluon_turned`):

    2 x (64, 64)    sums of v x_j x_(j + d mod 16), value by feature 16 d + j, for d = 0 ... 3 and 4 ... 7
    TURNED_REST     (64, 32) sums of v times x, x_j x_(j + 8) for j < 8, 1, seven zeros
    TURNED_MOMENTS  (16, 16) sums of x_i x_j
    TURNED_KEY_SUM  (16) sums of 4 x_i
    COUNT           tokens
"""

# mypy: allow-untyped-defs

import triton
import triton.language as tl

LINEAR = tl.constexpr(3 * 4096)
CONSTANT = tl.constexpr(LINEAR.value + 1024)
MOMENTS = tl.constexpr(CONSTANT.value + 64)
KEY_SUM = tl.constexpr(MOMENTS.value + 256)
COUNT = tl.constexpr(KEY_SUM.value + 16)
SLOT = tl.constexpr(KEY_SUM.value + 32)
TURNED_REST = tl.constexpr(2 * 4096)
TURNED_MOMENTS = tl.constexpr(TURNED_REST.value + 2048)
TURNED_KEY_SUM = tl.constexpr(TURNED_MOMENTS.value + 256)
FEATURES = tl.constexpr(153)


@triton.jit
def _packed_product(i, j):
    """The packed row of x_i x_j."""
    low, high = tl.minimum(i, j), tl.maximum(i, j)
    return 17 + low * 16 - low * (low - 1) // 2 + high - low


@triton.jit
def _packed_place_turned(entry, tile, V: tl.constexpr):
    """`_packed_place` for turned features."""
    of_values = entry < TURNED_MOMENTS
    in_rest = (entry >= TURNED_REST) & of_values
    is_moment = (entry >= TURNED_MOMENTS) & (entry < TURNED_KEY_SUM)
    is_sum = (entry >= TURNED_KEY_SUM) & (entry < TURNED_KEY_SUM + 16)
    # Features by number: 128 products, 16 of x, 8 products of opposites, 1.
    feature = tl.where(in_rest, 128 + entry % 32, entry // 4096 * 64 + entry % 64)
    opposite = feature >= 144
    j = tl.where(opposite, feature - 144, feature % 16)
    i = tl.where(opposite, j + 8, (j + feature // 16) % 16)
    moment = entry - TURNED_MOMENTS
    i, j = tl.where(is_moment, moment // 16, i), tl.where(is_moment, moment % 16, j)
    is_product = is_moment | (of_values & ((feature < 128) | (opposite & (feature < 152))))
    is_key = is_sum | (of_values & (feature >= 128) & ~opposite)
    key = tl.where(is_sum, entry - TURNED_KEY_SUM, feature - 128)
    row = tl.where(is_product, _packed_product(i, j), tl.where(is_key, 1 + key, 0))
    factor = tl.where(is_product, tl.where(i == j, 0.03125**0.5, 0.25), tl.where(is_key, 0.5, 1.0))
    factor = tl.where(is_sum, 0.125, factor)
    value = tl.where(in_rest, (entry - TURNED_REST) // 32, entry % 4096 // 64)
    column = tl.where(of_values, tile * 64 + value, V)
    exists = tl.where(of_values, (feature < 153) & (column < V), is_moment | is_sum | (entry == COUNT))
    canonical = exists & (of_values | (tile == 0)) & (~is_moment | (i <= j))
    return row * (V + 1) + column, factor, exists, canonical


@triton.jit
def _packed_place(entry, tile, V: tl.constexpr):
    """(offset in the packed (153, V + 1), coefficient, exists, is its canonical place) of an entry of a slot.

    The packed state keeps x_i x_j once, for i <= j, times 1/4 or, i = j, 1 / sqrt(32); x_i / 2; 1; and the normaliser
    in its last column.
    """
    kind_square = entry < LINEAR
    kind_linear = (entry >= LINEAR) & (entry < CONSTANT)
    kind_constant = (entry >= CONSTANT) & (entry < MOMENTS)
    kind_moment = (entry >= MOMENTS) & (entry < KEY_SUM)
    kind_keys = (entry >= KEY_SUM) & (entry < COUNT)
    feature = entry // 64
    square_i = feature // 128 * 8 + feature % 64 // 8
    square_j = tl.where(feature >= 64, 8, 0) + feature % 8
    moment = entry - MOMENTS
    i = tl.where(kind_square, square_i, moment // 16)
    j = tl.where(kind_square, square_j, moment % 16)
    product = _packed_product(i, j)
    linear = entry - tl.where(kind_linear, LINEAR, KEY_SUM)
    is_product, is_key = kind_square | kind_moment, kind_linear | kind_keys
    key = tl.where(kind_linear, linear % 16, linear)
    row = tl.where(is_product, product, tl.where(is_key, 1 + key, 0))
    factor = tl.where(is_product, tl.where(i == j, 0.03125**0.5, 0.25), tl.where(is_key, 0.5, 1.0))
    value = tl.where(kind_square, entry % 64, tl.where(kind_linear, linear // 16, entry - CONSTANT))
    of_values = kind_square | kind_linear | kind_constant
    column = tl.where(of_values, tile * 64 + value, V)
    exists = (entry <= COUNT) & (~of_values | (column < V))
    canonical = exists & (~is_product | (i <= j)) & (of_values | (tile == 0))
    return row * (V + 1) + column, factor, exists, canonical


@triton.jit
def _place_in_state(entry, tile, V: tl.constexpr, TURNED: tl.constexpr):
    if TURNED:
        return _packed_place_turned(entry, tile, V)
    return _packed_place(entry, tile, V)


@triton.jit(do_not_specialize=["segments", "value_tiles"])
def running_sums_kernel(
    slots, initial, segments, value_tiles,
    V: tl.constexpr, INITIAL: tl.constexpr, TURNED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """slots[0] = initial, slots[s] += slots[s - 1] for s < segments, in place: every element has one thread."""
    place = tl.program_id(0).to(tl.int64)
    entries = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    if INITIAL:
        offset, factor, exists, _ = _place_in_state(entries, (place % value_tiles).to(tl.int32), V, TURNED)
        initial += place // value_tiles * (FEATURES * (V + 1))
        carry = tl.load(initial + offset, mask=exists, other=0.0) / factor
    else:
        carry = tl.zeros([BLOCK], tl.float32)
    inside = entries < SLOT
    slots += place * (segments + 1) * SLOT + entries
    tl.store(slots, carry, mask=inside)
    # Four segments at a time, so that their loads are in flight together.
    for first in tl.range(1, segments, 4):
        own = slots + first * SLOT
        sum_0 = tl.load(own, mask=inside, other=0.0) + carry
        sum_1 = tl.load(own + SLOT, mask=inside & (first + 1 < segments), other=0.0)
        sum_2 = tl.load(own + 2 * SLOT, mask=inside & (first + 2 < segments), other=0.0)
        sum_3 = tl.load(own + 3 * SLOT, mask=inside & (first + 3 < segments), other=0.0)
        sum_1 += sum_0
        sum_2 += sum_1
        sum_3 += sum_2
        tl.store(own, sum_0, mask=inside)
        tl.store(own + SLOT, sum_1, mask=inside & (first + 1 < segments))
        tl.store(own + 2 * SLOT, sum_2, mask=inside & (first + 2 < segments))
        tl.store(own + 3 * SLOT, sum_3, mask=inside & (first + 3 < segments))
        carry = sum_3


@triton.jit(do_not_specialize=["segments", "value_tiles"])
def final_state_kernel(
    slots, final, segments, value_tiles, V: tl.constexpr, TURNED: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """The last slot of each sequence, packed."""
    place = tl.program_id(0).to(tl.int64)
    entries = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    offset, factor, _, canonical = _place_in_state(entries, (place % value_tiles).to(tl.int32), V, TURNED)
    slots += (place * (segments + 1) + segments) * SLOT
    value = tl.load(slots + entries, mask=canonical, other=0.0) * factor
    tl.store(final + place // value_tiles * (FEATURES * (V + 1)) + offset, value, mask=canonical)
