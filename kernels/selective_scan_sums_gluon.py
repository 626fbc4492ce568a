"""Sums in the selective scan's backward. Over channels by matrix units: products with zeros and ones.

Of m16n8k8 products' left operand, lanes 0 to 3 hold different columns. With channels there and states in the rows, a
product with a matrix that has ones in one column adds the channels, for a step's values, in that column of its result:
eight steps share an accumulator, and nothing passes through shared memory until the tile is done. The operands are
TF32: for gradients in bfloat16 that is precise enough; for others values are split into two that sum to all
but their last two bits.
"""

# mypy: allow-untyped-defs, disable-error-code="assignment,misc"

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import mma_v2

from .selective_scan_tiles_gluon import LANES, QUAD, T

# Of a product's 16 columns, four steps have four lanes of channels each.
TAIL = gl.constexpr(0x1FFF)  # the bits of a float32 that TF32 leaves out
CENTRED = gl.constexpr(1 + 0.72 * 2**-11)  # without them a number is smaller, on average by that


@gluon.constexpr_function
def product_layout(warps):
    """Of the sums (8 SN warps, T): rows are states, pairs of channel lanes, and warps."""
    return gl.NVMMADistributedLayout([2, 0], [warps, 1], [16, 8])


@gluon.constexpr_function
def gathered_places(sn, warps):
    """Of (2, OUTER, WARPS, SN / OUTER, LANES, 2, T / 2, 2) in shared memory.

    Four sums of a product lie together, where neither those who write nor those who read meet in a bank.
    """
    outer = (sn + 1) // 2
    sizes = [2, outer, warps, sn // outer, LANES, 2, T // 2, 2]

    def toggled(*bits):
        return [sum(1 << place for dim, place in bits if dim == i) for i in range(8)]

    bases = [toggled((7, 0))] + ([toggled((3, 0))] if sizes[3] == 2 else [])
    bases += [toggled((6, 0)), toggled((6, 1)), toggled((5, 0))]
    bases += [toggled((1, 0), (6, 0))] if outer == 2 else []
    bases += [toggled((4, 0), (6, 1)), toggled((4, 1), (5, 0))]
    bases += [toggled((2, place)) for place in range(warps.bit_length() - 1)] + [toggled((0, 0))]
    return gl.SharedLinearLayout(bases)


@gluon.constexpr_function
def gathered_layout(sn, warps):
    """Of the same: all that is left to sum in one thread."""
    kinds, outer = min(warps, 2), (sn + 1) // 2
    pair = 2 if sn == 4 else 1
    return gl.BlockedLayout(
        [2 // kinds, 1, warps, pair, 1, 2, 1, 2],
        [1, outer, 1, sn // outer // pair, 4, 1, 4, 1],
        [kinds, 1, warps // kinds, 1, 1, 1, 1, 1],
        [7, 3, 1, 4, 6, 2, 5, 0],
    )


@gluon.constexpr_function
def sums_layout(sn, warps):
    """Of (T, 2, LANES SN), the same threads'."""
    kinds = min(warps, 2)
    return gl.BlockedLayout([2, 2 // kinds, sn // 2], [4, 1, 8], [1, kinds, 1], [2, 1, 0])


@gluon.jit
def no_sums(SN: gl.constexpr, WARPS: gl.constexpr):
    return gl.zeros([8 * SN * WARPS, T], gl.float32, product_layout(WARPS))


@gluon.jit
def _operand(values, SN: gl.constexpr, WARPS: gl.constexpr):
    """Four steps' (LANES, SN, 8 warps) -> (8 SN warps, 4 QUAD), a product's left operand, all in registers."""
    joined = gl.join(gl.join(values[0], values[2]), gl.join(values[1], values[3]))
    OUTER: gl.constexpr = (SN + 1) // 2
    split = gl.reshape(joined, [LANES, OUTER, SN // OUTER, WARPS, 2, 4, QUAD])
    rows = gl.reshape(gl.permute(split, (1, 3, 2, 0, 4, 6, 5)), [8 * SN * WARPS, 4 * QUAD])
    return gl.convert_layout(rows, gl.DotOperandLayout(0, product_layout(WARPS), 1), assert_trivial=True)


@gluon.jit
def add_sums(sums, values, quad: gl.constexpr, SN: gl.constexpr, WARPS: gl.constexpr, EXACT: gl.constexpr):
    """The sums over channels of four steps' values, added to the columns of steps 4 quad and on."""
    OPERAND: gl.constexpr = gl.DotOperandLayout(1, product_layout(WARPS), 1)
    step = quad * QUAD + gl.arange(0, 4 * QUAD, gl.SliceLayout(1, OPERAND)) // 4
    column = gl.arange(0, T, gl.SliceLayout(0, OPERAND))
    ones = gl.where(step[:, None] == column[None, :], 1.0, 0.0)
    rows = _operand(values, SN, WARPS)
    if EXACT:
        high = (rows.to(gl.int32, bitcast=True) & ~TAIL).to(gl.float32, bitcast=True)
        sums = mma_v2(rows - high, ones, sums, input_precision="tf32")
        rows = high
    return mma_v2(rows, ones, sums, input_precision="tf32")


@gluon.jit
def room_for_sums(SN: gl.constexpr, WARPS: gl.constexpr):
    OUTER: gl.constexpr = (SN + 1) // 2
    SIZES: gl.constexpr = [2, OUTER, WARPS, SN // OUTER, LANES, 2, T // 2, 2]
    return gl.allocate_shared_memory(gl.float32, SIZES, gathered_places(SN, WARPS))


@gluon.jit
def store_sums(shared, first, second, SN: gl.constexpr, WARPS: gl.constexpr):
    """Two kinds of sums, as products leave them."""
    OUTER: gl.constexpr = (SN + 1) // 2
    parts = gl.reshape(gl.join(first, second), [OUTER, WARPS, SN // OUTER, LANES, 2, T // 2, 2, 2])
    shared.store(gl.permute(parts, (7, 0, 1, 2, 3, 4, 5, 6)))


@gluon.jit
def gathered(shared, SN: gl.constexpr, WARPS: gl.constexpr, EXACT: gl.constexpr):
    """Two kinds of sums -> (T, 2, LANES SN), all that belongs to a state added."""
    total = gl.sum(gl.sum(shared.load(gathered_layout(SN, WARPS)), 5), 2)
    if not EXACT:
        total *= CENTRED
    total = gl.reshape(gl.permute(total, (4, 5, 0, 3, 1, 2)), [T, 2, LANES * SN])
    return gl.convert_layout(total, sums_layout(SN, WARPS), assert_trivial=True)


@gluon.jit
def last_first(rows, which: gl.constexpr, each: gl.constexpr):
    """The `which`-th of `each` rows, the last one first."""
    turned = ()
    for i in gl.static_range(len(rows) - each + which, -1, -each):
        turned += (rows[i],)
    return turned


@gluon.jit
def sum_of(parts):
    total = parts[0]
    for i in gl.static_range(1, len(parts)):
        total += parts[i]
    return total


@gluon.jit
def sums_places(WIDTH: gl.constexpr, SN: gl.constexpr, SUMS: gl.constexpr):
    """Of (T, 2, LANES SN) in a tile's (T, 2, WIDTH)."""
    t = gl.arange(0, T, gl.SliceLayout(1, gl.SliceLayout(2, SUMS)))
    kind = gl.arange(0, 2, gl.SliceLayout(0, gl.SliceLayout(2, SUMS)))
    n = gl.arange(0, LANES * SN, gl.SliceLayout(0, gl.SliceLayout(0, SUMS)))
    row = gl.expand_dims(t, 1) * 2 + gl.expand_dims(kind, 0)
    return gl.expand_dims(row, 2) * WIDTH + gl.expand_dims(gl.expand_dims(n, 0), 0)
