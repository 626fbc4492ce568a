"""What the kernels of taylor_attention with turned features share, and the sums of segments. Hopper, 64 values, bf16.

    phi(x) = (x_j x_(j + d mod 16) for d = 0 ... 7 and all j;  x;  x_j x_(j + 8) for j < 8;  1;  seven zeros)

has every product of two of the 16 dimensions once: 128 + 32 features instead of 192 + 32. Each thread makes those of
one token: to turn its row by an even d is to rename registers. They go to shared memory, as second operands.

A state is S^T, values by features, in three accumulators, for an accumulator rounded to bf16 is a first operand as it
is. Its key sum is counted four times, in every row of a product.
"""

# mypy: allow-untyped-defs

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    mma_v2,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from .taylor_gluon_kernels import (
    BF16,
    KEYS_TILE,
    OPERAND,
    SQUARE,
    VALUES_SHARED,
    VALUES_TILE,
    T,
    _allocate_barriers,
    _fetch,
    _place,
    barrier,
)
from .taylor_gluon_states import COUNT, SLOT, TURNED_KEY_SUM, TURNED_MOMENTS, TURNED_REST

# Rows of which features are made at a time, one a thread.
STEP = gl.constexpr(128)
REST = gl.constexpr(gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 32, 16]))
REST_OPERAND = gl.constexpr(gl.DotOperandLayout(0, REST.value, 2))
REST_SHARED = gl.constexpr(gl.NVMMASharedLayout(64, 16, 2))
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
    """Products of opposite elements, the first pair of constants, zeros."""
    products = "".join(f"mul.rn.bf16x2 ${i}, ${8 + i}, ${12 + i};" for i in range(4))
    return products + "mov.b32 $4, $16;" + "".join(f"mov.b32 ${i}, 0;" for i in (5, 6, 7))


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
def _store_features(x, features, constants):
    """phi of 128 rows."""
    y = _shift(x)
    f_0, f_1, f_2, f_3 = _times_turned(x, x, 0), _times_turned(x, y, 0), _times_turned(x, x, 1), _times_turned(x, y, 1)
    features[0].store(_side_by_side(f_0, f_1, f_2, f_3))
    f_4, f_5, f_6, f_7 = _times_turned(x, x, 2), _times_turned(x, y, 2), _times_turned(x, x, 3), _times_turned(x, y, 3)
    features[1].store(_side_by_side(f_4, f_5, f_6, f_7))
    rest = gl.inline_asm_elementwise(
        _rest_code(), _form(8, 16), [x, constants], dtype=gl.bfloat16, is_pure=True, pack=16
    )
    features[2].store(gl.join(x, rest).permute((0, 2, 1)).reshape([STEP, 32]))


@gluon.jit
def _allocate_features():
    square_0 = gl.allocate_shared_memory(BF16, [STEP, 64], VALUES_SHARED)
    square_1 = gl.allocate_shared_memory(BF16, [STEP, 64], VALUES_SHARED)
    return square_0, square_1, gl.allocate_shared_memory(BF16, [STEP, 32], REST_SHARED)


@gluon.jit
def _constants(of_first, of_last):
    """The constant feature of the first 64 rows and of the last, in the first column."""
    row, column = gl.arange(0, 128, layout=gl.SliceLayout(1, ROWS)), gl.arange(0, 16, layout=gl.SliceLayout(0, ROWS))
    constant = gl.where(row < T, of_first, of_last)
    return gl.where(column[None, :] == 0, constant[:, None], 0.0).to(BF16)


@gluon.jit
def _zero_state():
    square, rest = gl.zeros([64, 64], gl.float32, layout=SQUARE), gl.zeros([64, 32], gl.float32, layout=REST)
    moments, key_sum = gl.zeros([16, 16], gl.float32, layout=SMALL), gl.zeros([T, 16], gl.float32, layout=SMALL)
    return square, square, rest, moments, key_sum


@gluon.jit
def _slot_pointers(slot):
    """Where the parts of a state are: (value, feature) twice 64 x 64 and 64 x 32, moments, sum of keys."""
    row, column = gl.arange(0, 64, layout=gl.SliceLayout(1, SQUARE)), gl.arange(0, 64, layout=gl.SliceLayout(0, SQUARE))
    squares = slot + row[:, None] * 64 + column[None, :]
    row, column = gl.arange(0, 64, layout=gl.SliceLayout(1, REST)), gl.arange(0, 32, layout=gl.SliceLayout(0, REST))
    rest = slot + TURNED_REST + row[:, None] * 32 + column[None, :]
    i, j = gl.arange(0, 16, layout=gl.SliceLayout(1, SMALL)), gl.arange(0, 16, layout=gl.SliceLayout(0, SMALL))
    moments = slot + TURNED_MOMENTS + i[:, None] * 16 + j[None, :]
    row = gl.arange(0, 64, layout=gl.SliceLayout(1, SMALL))
    keys = slot + TURNED_KEY_SUM + row[:, None] * 0 + j[None, :]
    return squares, rest, moments, keys, (row == 0)[:, None]


@gluon.jit
def _load_state(slot):
    squares, rest, moments, keys, _ = _slot_pointers(slot)
    return gl.load(squares), gl.load(squares + 4096), gl.load(rest), gl.load(moments), gl.load(keys)


@gluon.jit
def _store_state(slot, s_0, s_1, s_2, moment_sum, key_sum, count):
    squares, rest, moments, keys, row_0 = _slot_pointers(slot)
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
    values = gl.convert_layout(values, REST_OPERAND, assert_trivial=True)
    return s_0, s_1, warpgroup_mma(values, f_2, s_2, is_async=True), values


@gluon.jit
def _key_moments(k, moments, key_sum):
    """Sums of k k^T; four times the sum of k, in every row."""
    k_rows = k.load(SMALL_B)
    # Both operands are the same registers.
    k_transposed = gl.convert_layout(k_rows.permute((1, 0)), SMALL_A, assert_trivial=True)
    fours = gl.full([T, k.shape[0]], 4.0, BF16, layout=SMALL_A)
    return mma_v2(k_transposed, k_rows, moments), mma_v2(fours, k_rows, key_sum)


@gluon.jit(do_not_specialize=["length", "heads", "segment", "segments", "value_tiles"])
def turned_sums_kernel(
    k_map, v_map, slots, length, heads, segment, segments, value_tiles, STAGES: gl.constexpr
):  # fmt: skip
    """The sum of each segment but the last, (segments - 1) programs per sequence and value tile, to the slot after."""
    batch, head, place, number = _place(heads, segment, segments - 1, value_tiles)
    begin, column = number * segment, place % value_tiles * 64
    steps = segment // STEP
    ks = gl.allocate_shared_memory(BF16, [STAGES, 1, 1, STEP, 16], KEYS_TILE)
    vs = gl.allocate_shared_memory(BF16, [STAGES, 1, 1, STEP, 64], VALUES_TILE)
    k_bars, v_bars = _allocate_barriers(STAGES), _allocate_barriers(STAGES)
    features = _allocate_features()
    fence_async_shared()
    barrier()
    for i in gl.static_range(STAGES - 1):
        mbarrier.expect(k_bars.index(i), STEP * 32, pred=i < steps)
        mbarrier.expect(v_bars.index(i), STEP * 128, pred=i < steps)
        _fetch(k_map, ks.index(i), k_bars.index(i), batch, head, begin + i * STEP, 0, i < steps)
        _fetch(v_map, vs.index(i), v_bars.index(i), batch, head, begin + i * STEP, column, i < steps)
    barrier()
    s_0, s_1, s_2, moments, key_sum = _zero_state()
    constants = _constants(1.0, 1.0)
    stage = 0
    phase = 0
    for step in range(steps):
        mbarrier.wait(k_bars.index(stage), phase)
        mbarrier.wait(v_bars.index(stage), phase)
        k, v = ks.index(stage).reshape([STEP, 16]), vs.index(stage).reshape([STEP, 64])
        # mma.sync between open wgmma groups would make the assembler wait after each of them.
        moments, key_sum = _key_moments(k, moments, key_sum)
        _store_features(k.load(ROWS), features, constants)
        values = v.permute((1, 0)).load(OPERAND)
        fence_async_shared()
        barrier()
        ahead = gl.where(stage == 0, STAGES - 1, stage - 1)
        more = step + (STAGES - 1) < steps
        later = begin + (step + STAGES - 1) * STEP
        mbarrier.expect(k_bars.index(ahead), STEP * 32, pred=more)
        mbarrier.expect(v_bars.index(ahead), STEP * 128, pred=more)
        s_0, s_1, s_2, last = _add_keys(values, features[0], features[1], features[2], s_0, s_1, s_2)
        _fetch(k_map, ks.index(ahead), k_bars.index(ahead), batch, head, later, 0, more)
        _fetch(v_map, vs.index(ahead), v_bars.index(ahead), batch, head, later, column, more)
        s_0, s_1, s_2, values, last = warpgroup_mma_wait(0, [s_0, s_1, s_2, values, last])
        barrier()
        wrap = stage + 1 == STAGES
        phase = gl.where(wrap, phase ^ 1, phase)
        stage = gl.where(wrap, 0, stage + 1)
    slot = slots + (place * (segments + 1) + number + 1).to(gl.int64) * SLOT
    _store_state(slot, s_0, s_1, s_2, moments, key_sum, segment.to(gl.float32))
