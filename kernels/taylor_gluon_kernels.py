"""What the Gluon kernels of taylor_attention share, and the sums of segments. Hopper, key width 16, 64 values, bf16.

phi(x) is kept as the three products of its halves a = x[:8], b = x[8:]: a a, a b (counted twice by the query), b b; 64
features each, formed in the registers of the matrix units' first operand. Linear and constant terms are products with
v^T. No coefficient is stored.

Tiles come and go through tensor maps: what lies beyond the length or the value width reads as zero, which adds nothing
to any sum, and is not written. So tails need no masks.

`slots` (float32, SLOT numbers each) hold states between kernels, laid out as the registers are; `taylor_gluon_states`
has their order. Segment s of a sequence begins with slot s; its own sum goes to slot s + 1.
"""

# mypy: allow-untyped-defs

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    mma_v2,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from .taylor_gluon_states import CONSTANT, COUNT, KEY_SUM, LINEAR, MOMENTS, SLOT

# Triton 3.7 renamed it.
barrier = getattr(gl, "thread_barrier", None) or gl.barrier

T = gl.constexpr(64)
BF16 = gl.constexpr(gl.bfloat16)
SQUARE = gl.constexpr(gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 64, 16]))
NARROW = gl.constexpr(gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 16, 16]))
SMALL = gl.constexpr(gl.NVMMADistributedLayout([2, 0], [1, 4], [16, 8]))
OPERAND = gl.constexpr(gl.DotOperandLayout(0, SQUARE.value, 2))
SMALL_A = gl.constexpr(gl.DotOperandLayout(0, SMALL.value, 2))
SMALL_B = gl.constexpr(gl.DotOperandLayout(1, SMALL.value, 2))
KEYS_SHARED = gl.constexpr(gl.NVMMASharedLayout(32, 16, 2))
VALUES_SHARED = gl.constexpr(gl.NVMMASharedLayout(128, 16, 2))
# The same bytes as a tile (batch, head, token, width) of a tensor map.
KEYS_TILE = gl.constexpr(gl.NVMMASharedLayout(32, 16, 4))
VALUES_TILE = gl.constexpr(gl.NVMMASharedLayout(128, 16, 4))
# Layouts of (token, i, j) and (i, j, token) that become OPERAND when i, j or token are flattened away: products of two
# loads of eight columns are then formed where the matrix units read them.
QUERY_PRODUCTS = gl.constexpr(
    gl.DistributedLinearLayout(
        [[0, 0, 1], [8, 0, 0], [0, 1, 0], [0, 2, 0], [0, 4, 0]],
        [[0, 0, 2], [0, 0, 4], [1, 0, 0], [2, 0, 0], [4, 0, 0]],
        [[16, 0, 0], [32, 0, 0]],
        [],
        [64, 8, 8],
    )
)
KEY_PRODUCTS = gl.constexpr(
    gl.DistributedLinearLayout(
        [[0, 0, 1], [1, 0, 0], [0, 0, 8], [0, 0, 16], [0, 0, 32]],
        [[0, 0, 2], [0, 0, 4], [0, 1, 0], [0, 2, 0], [0, 4, 0]],
        [[2, 0, 0], [4, 0, 0]],
        [],
        [8, 8, 64],
    )
)


@gluon.jit
def _operand(products):
    return gl.convert_layout(products.reshape([64, 64]), OPERAND, assert_trivial=True)


@gluon.jit
def _query_features(q):
    """phi(q) as three operands (token, feature)."""
    a, b = q.slice(0, 8, dim=1), q.slice(8, 8, dim=1)
    a_i = gl.expand_dims(a.load(gl.SliceLayout(2, QUERY_PRODUCTS)), 2)
    a_j = gl.expand_dims(a.load(gl.SliceLayout(1, QUERY_PRODUCTS)), 1)
    b_i = gl.expand_dims(b.load(gl.SliceLayout(2, QUERY_PRODUCTS)), 2)
    b_j = gl.expand_dims(b.load(gl.SliceLayout(1, QUERY_PRODUCTS)), 1)
    return _operand(a_i * a_j), _operand(a_i * (b_j * 2.0).to(BF16)), _operand(b_i * b_j)


@gluon.jit
def _key_features(k):
    """phi(k)^T as three operands (feature, token)."""
    transposed = k.permute((1, 0))
    a, b = transposed.slice(0, 8, dim=0), transposed.slice(8, 8, dim=0)
    a_i = gl.expand_dims(a.load(gl.SliceLayout(1, KEY_PRODUCTS)), 1)
    a_j = gl.expand_dims(a.load(gl.SliceLayout(0, KEY_PRODUCTS)), 0)
    b_i = gl.expand_dims(b.load(gl.SliceLayout(1, KEY_PRODUCTS)), 1)
    b_j = gl.expand_dims(b.load(gl.SliceLayout(0, KEY_PRODUCTS)), 0)
    return _operand(a_i * a_j), _operand(a_i * b_j), _operand(b_i * b_j)


@gluon.jit
def _zero_state():
    square = gl.zeros([64, 64], gl.float32, layout=SQUARE)
    narrow = gl.zeros([64, 16], gl.float32, layout=NARROW)
    small = gl.zeros([16, 16], gl.float32, layout=SMALL)
    return square, square, square, narrow, narrow, small, small


@gluon.jit
def _slot_pointers(slot):
    """Where the parts of a state are: 64 x 64 features, linear (value, key), constant, moments, sum of keys."""
    row, column = gl.arange(0, 64, layout=gl.SliceLayout(1, SQUARE)), gl.arange(0, 64, layout=gl.SliceLayout(0, SQUARE))
    value, key = gl.arange(0, 64, layout=gl.SliceLayout(1, NARROW)), gl.arange(0, 16, layout=gl.SliceLayout(0, NARROW))
    i, j = gl.arange(0, 16, layout=gl.SliceLayout(1, SMALL)), gl.arange(0, 16, layout=gl.SliceLayout(0, SMALL))
    squares = slot + row[:, None] * 64 + column[None, :]
    linear = slot + LINEAR + value[:, None] * 16 + key[None, :]
    constant = slot + CONSTANT + value[:, None] + key[None, :] * 0
    moments = slot + MOMENTS + i[:, None] * 16 + j[None, :]
    keys = slot + KEY_SUM + i[:, None] * 0 + j[None, :]
    return squares, linear, constant, moments, keys, (key == 0)[None, :], (i == 0)[:, None]


@gluon.jit
def _load_state(slot):
    squares, linear, constant, moments, keys, first, _ = _slot_pointers(slot)
    s_0, s_1, s_2 = gl.load(squares), gl.load(squares + 4096), gl.load(squares + 8192)
    return s_0, s_1, s_2, gl.load(linear), gl.load(constant, mask=first, other=0.0), gl.load(moments), gl.load(keys)


@gluon.jit
def _store_state(slot, s_0, s_1, s_2, linear_sum, constant_sum, moment_sum, key_sum, count):
    squares, linear, constant, moments, keys, first, row_0 = _slot_pointers(slot)
    gl.store(squares, s_0)
    gl.store(squares + 4096, s_1)
    gl.store(squares + 8192, s_2)
    gl.store(linear, linear_sum)
    gl.store(constant, constant_sum, mask=first)
    gl.store(moments, moment_sum)
    gl.store(keys, key_sum, mask=row_0)
    gl.store(slot + COUNT, count)


@gluon.jit
def _fill_ones(tile):
    """Ones in the first of 16 columns: a factor that picks or sums, where nothing but matrix units will do."""
    layout: gl.constexpr = gl.BlockedLayout([1, 8], [16, 2], [4, 1], [1, 0])
    column = gl.arange(0, 16, layout=gl.SliceLayout(0, layout))
    zeros = gl.zeros([T, 16], gl.float32, layout=layout)
    tile.store((zeros + gl.where(column == 0, 1.0, 0.0)[None, :]).to(BF16))


@gluon.jit
def _place(heads, segment, segments, value_tiles):
    """(batch, head, sequence x value tile, number of the segment) of this program."""
    program = gl.program_id(0)
    number, place = program % segments, program // segments
    sequence = place // value_tiles
    return sequence // heads, sequence % heads, place, number


@gluon.jit
def _fetch(tiles, shared, bar, batch, head, row, column, pred):
    """Starts a copy to shared memory, announced before by `mbarrier.expect`.

    Each tensor has barriers of its own: between two writes to one allocation Triton would stop all threads.
    """
    tma.async_copy_global_to_shared(tiles, [batch, head, row, column], bar, shared, pred=pred)


@gluon.jit
def _allocate_barriers(STAGES: gl.constexpr):
    bars = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(STAGES):
        mbarrier.init(bars.index(i), count=1)
    return bars


@gluon.jit
def _add_keys(k, v, ones, f_0, f_1, f_2, s_0, s_1, s_2, linear, constant):
    """Starts state += phi(k)^T v."""
    v_transposed = v.permute((1, 0))
    linear = warpgroup_mma(v_transposed, k, linear, is_async=True)
    constant = warpgroup_mma(v_transposed, ones, constant, is_async=True)
    s_0 = warpgroup_mma(f_0, v, s_0, is_async=True)
    s_1 = warpgroup_mma(f_1, v, s_1, is_async=True)
    s_2 = warpgroup_mma(f_2, v, s_2, is_async=True)
    return s_0, s_1, s_2, linear, constant


@gluon.jit
def _key_moments(k, moments, key_sum):
    k_transposed, k_rows = k.permute((1, 0)).load(SMALL_A), k.load(SMALL_B)
    ones = gl.full([16, k.shape[0]], 1.0, BF16, layout=SMALL_A)
    return mma_v2(k_transposed, k_rows, moments), mma_v2(ones, k_rows, key_sum)


@gluon.jit(do_not_specialize=["length", "heads", "segment", "segments", "value_tiles"])
def segment_sums_kernel(
    k_map, v_map, slots, length, heads, segment, segments, value_tiles,
    HALVES: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """The sum of each segment but the last, (segments - 1) programs per sequence and value tile, to the slot after."""
    STEP: gl.constexpr = HALVES * T
    batch, head, place, number = _place(heads, segment, segments - 1, value_tiles)
    begin, column = number * segment, place % value_tiles * 64
    steps = segment // STEP
    ks = gl.allocate_shared_memory(BF16, [STAGES, 1, 1, STEP, 16], KEYS_TILE)
    vs = gl.allocate_shared_memory(BF16, [STAGES, 1, 1, STEP, 64], VALUES_TILE)
    ones = gl.allocate_shared_memory(BF16, [T, 16], KEYS_SHARED)
    k_bars, v_bars = _allocate_barriers(STAGES), _allocate_barriers(STAGES)
    _fill_ones(ones)
    fence_async_shared()
    barrier()
    for i in gl.static_range(STAGES - 1):
        mbarrier.expect(k_bars.index(i), STEP * 32, pred=i < steps)
        mbarrier.expect(v_bars.index(i), STEP * 128, pred=i < steps)
        _fetch(k_map, ks.index(i), k_bars.index(i), batch, head, begin + i * STEP, 0, i < steps)
        _fetch(v_map, vs.index(i), v_bars.index(i), batch, head, begin + i * STEP, column, i < steps)
    s_0, s_1, s_2, linear, constant, moments, key_sum = _zero_state()
    stage = 0
    phase = 0
    for step in range(steps):
        ahead = stage + (STAGES - 1)
        ahead = gl.where(ahead >= STAGES, ahead - STAGES, ahead)
        more = step + (STAGES - 1) < steps
        later = begin + (step + STAGES - 1) * STEP
        mbarrier.expect(k_bars.index(ahead), STEP * 32, pred=more)
        mbarrier.expect(v_bars.index(ahead), STEP * 128, pred=more)
        mbarrier.wait(k_bars.index(stage), phase)
        mbarrier.wait(v_bars.index(stage), phase)
        barrier()
        _fetch(k_map, ks.index(ahead), k_bars.index(ahead), batch, head, later, 0, more)
        _fetch(v_map, vs.index(ahead), v_bars.index(ahead), batch, head, later, column, more)
        k_step = ks.index(stage).reshape([STEP, 16])
        v_step = vs.index(stage).reshape([STEP, 64])
        k, v = k_step.slice(0, T), v_step.slice(0, T)
        f_0, f_1, f_2 = _key_features(k)
        s_0, s_1, s_2, linear, constant = _add_keys(k, v, ones, f_0, f_1, f_2, s_0, s_1, s_2, linear, constant)
        if HALVES == 2:
            k, v = k_step.slice(T, T), v_step.slice(T, T)
            g_0, g_1, g_2 = _key_features(k)
            s_0, s_1, s_2, linear, constant = _add_keys(k, v, ones, g_0, g_1, g_2, s_0, s_1, s_2, linear, constant)
        else:
            g_0, g_1, g_2 = f_0, f_1, f_2
        # The features stay listed, for their registers must not be taken while the products read them.
        s_0, s_1, s_2, linear, constant, f_0, f_1, f_2, g_0, g_1, g_2 = warpgroup_mma_wait(
            0, [s_0, s_1, s_2, linear, constant, f_0, f_1, f_2, g_0, g_1, g_2]
        )
        # mma.sync between open wgmma groups would make the assembler wait after each of them.
        moments, key_sum = _key_moments(k_step, moments, key_sum)
        wrap = stage + 1 == STAGES
        phase = gl.where(wrap, phase ^ 1, phase)
        stage = gl.where(wrap, 0, stage + 1)
    slot = slots + (place * (segments + 1) + number + 1).to(gl.int64) * SLOT
    _store_state(slot, s_0, s_1, s_2, linear, constant, moments, key_sum, segment.to(gl.float32))
