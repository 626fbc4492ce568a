"""Features and states of the Gluon kernels of taylor_attention. Hopper, key width 16, 64 values, bf16.

    phi(x) = (x_j x_(j + d mod 16) for d = 0 ... 7 and all j;  x;  x_j x_(j + 8) for j < 8;  1;  seven zeros)

has every product of two of the 16 dimensions once, as turns of the row: 128 + 32 features. Each thread makes those of
one token: to turn its row by an even d is to rename registers. They go to shared memory, as second operands.

A state is S^T, values by features, in three accumulators, for an accumulator rounded to bf16 is a first operand as it
is. Its key sum is counted four times, in every row of a product.

`slots` (float32, SLOT numbers each) hold states between kernels; `taylor_gluon_states` has their order. Segment s of a
sequence begins with slot s; its own sum goes to slot s + 1.
"""

# mypy: allow-untyped-defs

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mma_v2, warpgroup_mma

from .taylor_gluon_states import COUNT, KEY_SUM, MOMENTS, REST
from .taylor_gluon_tiles import BF16, SQUARE, VALUES_SHARED, T

# Rows of which features are made at a time, one a thread.
STEP = gl.constexpr(128)
THIRTY_TWO = gl.constexpr(gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 32, 16]))
THIRTY_TWO_OPERAND = gl.constexpr(gl.DotOperandLayout(0, THIRTY_TWO.value, 2))
THIRTY_TWO_SHARED = gl.constexpr(gl.NVMMASharedLayout(64, 16, 2))
SMALL = gl.constexpr(gl.NVMMADistributedLayout([2, 0], [4, 1], [16, 8]))
SMALL_A = gl.constexpr(gl.DotOperandLayout(0, SMALL.value, 2))
SMALL_B = gl.constexpr(gl.DotOperandLayout(1, SMALL.value, 2))
ROWS = gl.constexpr(
    gl.DistributedLinearLayout(
        [[0, 1], [0, 2], [0, 4], [0, 8]],
        [[1, 0], [2, 0], [4, 0], [8, 0], [16, 0]],
        [[32, 0], [64, 0]],
        [],
        [128, 16],
    )
)


@gluon.constexpr_function
def _form(outputs, inputs):
    return ",".join(["=&r"] * outputs + ["r"] * inputs)


@gluon.constexpr_function
def _shift_code():
    """A row, eight pairs, turned by one element."""
    return "".join(f"prmt.b32 ${i}, ${8 + i}, ${8 + (i + 1) % 8}, 0x5432;" for i in range(8))


@gluon.constexpr_function
def _product_code(pairs):
    """A row times another turned by so many pairs."""
    return "".join(f"mul.rn.bf16x2 ${i}, ${8 + i}, ${16 + (i + pairs) % 8};" for i in range(8))


@gluon.constexpr_function
def _rest_code():
    """Products of opposite elements of two rows, the first pair of constants, zeros."""
    products = "".join(f"mul.rn.bf16x2 ${i}, ${8 + i}, ${20 + i};" for i in range(4))
    return products + "mov.b32 $4, $24;" + "".join(f"mov.b32 ${i}, 0;" for i in (5, 6, 7))


@gluon.jit
def _shift(x):
    return gl.inline_asm_elementwise(_shift_code(), _form(8, 8), [x], dtype=gl.bfloat16, is_pure=True, pack=16)


@gluon.jit
def _times_turned(x, y, pairs: gl.constexpr):
    code: gl.constexpr = _product_code(pairs)
    return gl.inline_asm_elementwise(code, _form(8, 16), [x, y], dtype=gl.bfloat16, is_pure=True, pack=16)


@gluon.jit
def _side_by_side(f_0, f_1, f_2, f_3):
    """(128, 16) four times -> (128, 64)."""
    pairs = gl.join(gl.join(f_0, f_1), gl.join(f_2, f_3))
    return pairs.permute((0, 3, 2, 1)).reshape([STEP, 64])


@gluon.jit
def _store_features(x, scaled, features, constants):
    """phi of 128 rows, times a scale of each row: `scaled` is x times it, the constants have it."""
    y = _shift(x)
    f_0, f_1 = _times_turned(scaled, x, 0), _times_turned(scaled, y, 0)
    f_2, f_3 = _times_turned(scaled, x, 1), _times_turned(scaled, y, 1)
    features[0].store(_side_by_side(f_0, f_1, f_2, f_3))
    f_4, f_5 = _times_turned(scaled, x, 2), _times_turned(scaled, y, 2)
    f_6, f_7 = _times_turned(scaled, x, 3), _times_turned(scaled, y, 3)
    features[1].store(_side_by_side(f_4, f_5, f_6, f_7))
    rest = gl.inline_asm_elementwise(
        _rest_code(), _form(8, 24), [scaled, x, constants], dtype=gl.bfloat16, is_pure=True, pack=16
    )
    features[2].store(gl.join(scaled, rest).permute((0, 2, 1)).reshape([STEP, 32]))


@gluon.jit
def _allocate_features():
    square_0 = gl.allocate_shared_memory(BF16, [STEP, 64], VALUES_SHARED)
    square_1 = gl.allocate_shared_memory(BF16, [STEP, 64], VALUES_SHARED)
    return square_0, square_1, gl.allocate_shared_memory(BF16, [STEP, 32], THIRTY_TWO_SHARED)


@gluon.jit
def _constants(of_first, of_last):
    """The constant feature of the first 64 rows and of the last, in the first column."""
    row, column = gl.arange(0, 128, layout=gl.SliceLayout(1, ROWS)), gl.arange(0, 16, layout=gl.SliceLayout(0, ROWS))
    constant = gl.where(row < T, of_first, of_last)
    return gl.where(column[None, :] == 0, constant[:, None], 0.0).to(BF16)


@gluon.jit
def _zero_state():
    square, rest = gl.zeros([64, 64], gl.float32, layout=SQUARE), gl.zeros([64, 32], gl.float32, layout=THIRTY_TWO)
    moments, key_sum = gl.zeros([16, 16], gl.float32, layout=SMALL), gl.zeros([T, 16], gl.float32, layout=SMALL)
    return square, square, rest, moments, key_sum


@gluon.jit
def _slot_pointers(slot):
    """Where the parts of a state are, in the layouts of registers: (value, feature) 64 x 64 and 64 x 32, moments."""
    row, column = gl.arange(0, 64, layout=gl.SliceLayout(1, SQUARE)), gl.arange(0, 64, layout=gl.SliceLayout(0, SQUARE))
    squares = slot + row[:, None] + column[None, :] * 64
    row, column = (
        gl.arange(0, 64, layout=gl.SliceLayout(1, THIRTY_TWO)),
        gl.arange(0, 32, layout=gl.SliceLayout(0, THIRTY_TWO)),
    )
    rest = slot + REST + row[:, None] + column[None, :] * 64
    i, j = gl.arange(0, 16, layout=gl.SliceLayout(1, SMALL)), gl.arange(0, 16, layout=gl.SliceLayout(0, SMALL))
    return squares, rest, slot + MOMENTS + i[:, None] * 16 + j[None, :]


@gluon.jit
def _key_sum_pointers(slot, rows: gl.constexpr):
    row, j = gl.arange(0, rows, layout=gl.SliceLayout(1, SMALL)), gl.arange(0, 16, layout=gl.SliceLayout(0, SMALL))
    return slot + KEY_SUM + row[:, None] * 0 + j[None, :], (row == 0)[:, None]


@gluon.jit
def _load_state(slot):
    squares, rest, moments = _slot_pointers(slot)
    keys, _ = _key_sum_pointers(slot, T)
    return gl.load(squares), gl.load(squares + 4096), gl.load(rest), gl.load(moments), gl.load(keys)


@gluon.jit
def _store_state(slot, s_0, s_1, s_2, moment_sum, key_sum, count):
    """Of the key sum the first row."""
    squares, rest, moments = _slot_pointers(slot)
    keys, row_0 = _key_sum_pointers(slot, key_sum.shape[0])
    gl.store(squares, s_0)
    gl.store(squares + 4096, s_1)
    gl.store(rest, s_2)
    gl.store(moments, moment_sum)
    gl.store(keys, key_sum, mask=row_0)
    gl.store(slot + COUNT, count)


@gluon.jit
def _add_keys(values, f_0, f_1, f_2, s_0, s_1, s_2):
    """Starts state += v^T phi(k). The last of the results must live until the products have read it."""
    s_0 = warpgroup_mma(values, f_0, s_0, is_async=True)
    s_1 = warpgroup_mma(values, f_1, s_1, is_async=True)
    values = gl.convert_layout(values, THIRTY_TWO_OPERAND, assert_trivial=True)
    return s_0, s_1, warpgroup_mma(values, f_2, s_2, is_async=True), values


@gluon.jit
def _key_moments(k, moments, key_sum):
    """Sums of k k^T; four times the sum of k, in every row."""
    k_rows = k.load(SMALL_B)
    # Both operands are the same registers.
    k_transposed = gl.convert_layout(k_rows.permute((1, 0)), SMALL_A, assert_trivial=True)
    fours = gl.full([T, k.shape[0]], 4.0, BF16, layout=SMALL_A)
    return mma_v2(k_transposed, k_rows, moments), mma_v2(fours, k_rows, key_sum)
