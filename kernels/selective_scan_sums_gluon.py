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
def gathered_layout(sn, warps):
    """Of (T, 2, LANES, SN, 2 warps): all that is left to sum in one thread."""
    kinds = min(warps, 2)
    return gl.BlockedLayout(
        [1, 2 // kinds, 1, sn, 2 * warps], [8, 1, 4, 1, 1], [warps // kinds, kinds, 1, 1, 1], [4, 3, 2, 1, 0]
    )


@gluon.constexpr_function
def sums_layout(sn, warps):
    """Of (T, 2, LANES SN), the same threads'."""
    kinds = min(warps, 2)
    return gl.BlockedLayout([1, 2 // kinds, sn], [8, 1, 4], [warps // kinds, kinds, 1], [2, 1, 0])


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
def gathered(first, second, SN: gl.constexpr, WARPS: gl.constexpr, EXACT: gl.constexpr):
    """Two kinds of sums -> (T, 2, LANES SN), all that belongs to a state added."""
    OUTER: gl.constexpr = (SN + 1) // 2
    parts = gl.reshape(gl.join(first, second), [OUTER, WARPS, SN // OUTER, LANES, 2, T, 2])
    parts = gl.reshape(gl.permute(parts, (5, 6, 3, 0, 2, 1, 4)), [T, 2, LANES, SN, 2 * WARPS])
    total = gl.sum(gl.convert_layout(parts, gathered_layout(SN, WARPS)), 4)
    if not EXACT:
        total *= CENTRED
    return gl.convert_layout(gl.reshape(total, [T, 2, LANES * SN]), sums_layout(SN, WARPS), assert_trivial=True)


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
