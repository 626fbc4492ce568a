"""The serial form of taylor_attention: the state is an operand in registers. Hopper, key width 16, 64 values, bf16.

One program walks a segment of one sequence with S^T (values by features, `taylor_gluon_features`) in its accumulators.
A step takes 64 tokens:

    y^T = S^T phi(q)^T + v^T (causal weights)^T, z likewise, store y / z
    S^T += v^T phi(k)

S^T becomes an operand where it is, rounded to bf16: no copy of it goes to shared memory and no thread waits for another
between an update and its use. What shared memory takes instead, phi(q) and phi(k), depends on no sum.

Everything is scaled by 16: with r = q . k the weight is r^2 / 2 + 4 r + 16, so the squares (d = 0) count half. The
normaliser of earlier tokens is 16 n + 4 q . k1 + q^T M q / 2 with k1 = sum k, M = sum k k^T.
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

from .taylor_gluon_features import (
    ROWS,
    SMALL,
    SMALL_A,
    SMALL_B,
    STEP,
    THIRTY_TWO,
    _add_keys,
    _allocate_features,
    _constants,
    _key_moments,
    _load_state,
    _store_features,
    _store_state,
    _zero_state,
)
from .taylor_gluon_states import COUNT, SLOT
from .taylor_gluon_sums import segment_sums_kernel
from .taylor_gluon_tiles import (
    BF16,
    KEYS_SHARED,
    KEYS_TILE,
    NUMBERS,
    OPERAND,
    SQUARE,
    VALUES_SHARED,
    VALUES_TILE,
    T,
    _allocate_barriers,
    _fetch,
    _not_before,
    _place,
    _unseen,
    barrier,
)

__all__ = ["segment_sums_kernel", "serial_kernel"]


@gluon.jit
def _state_operands(s_0, s_1, s_2):
    """S^T in bf16, with the factors of the squares and of x: powers of two, hence exact."""
    column = gl.arange(0, 64, layout=gl.SliceLayout(0, SQUARE))
    s_0 = (s_0.to(BF16) * gl.where(column < 16, 0.5, 1.0).to(BF16)[None, :]).to(BF16)
    column = gl.arange(0, 32, layout=gl.SliceLayout(0, THIRTY_TWO))
    s_2 = (s_2.to(BF16) * gl.where(column < 16, 4.0, 1.0).to(BF16)[None, :]).to(BF16)
    return (
        gl.convert_layout(s_0, OPERAND, assert_trivial=True),
        gl.convert_layout(s_1.to(BF16), OPERAND, assert_trivial=True),
        gl.convert_layout(s_2, OPERAND, assert_trivial=True),
    )


@gluon.jit
def _normaliser(q, moments, key_sum):
    """q^T M q / 2 + 4 q . k1 of 64 queries."""
    q = q.load(SMALL_A)
    # M is symmetric, and its transposed accumulator lies as a second operand does.
    m = gl.convert_layout((moments.to(BF16) * 0.5).to(BF16).permute((1, 0)), SMALL_B, assert_trivial=True)
    w = mma_v2(q, m, key_sum)
    sums = gl.sum(w * gl.convert_layout(q, SMALL, assert_trivial=True).to(gl.float32), 1)
    return gl.convert_layout(sums, gl.SliceLayout(1, SQUARE), assert_trivial=True)


@gluon.jit
def _query_state(values, weights, features, p_0, p_1, p_2):
    """Starts v^T (weights)^T + S^T phi(q)^T."""
    nothing = gl.zeros([64, T], gl.float32, layout=SQUARE)
    y = warpgroup_mma(values, weights.permute((1, 0)), nothing, use_acc=False, is_async=True)
    y = warpgroup_mma(p_0, features[0].slice(0, T).permute((1, 0)), y, is_async=True)
    y = warpgroup_mma(p_1, features[1].slice(0, T).permute((1, 0)), y, is_async=True)
    return warpgroup_mma(p_2, features[2].slice(0, T).permute((1, 0)), y, is_async=True)


@gluon.jit
def _allocate_tiles(STAGES: gl.constexpr):
    """Buffers of q and k in turn, the same in pairs, buffers of v, and the barriers that announce each of them."""
    queries_keys = gl.allocate_shared_memory(BF16, [2 * STAGES, 1, 1, T, 16], KEYS_TILE)
    pairs = queries_keys._reinterpret(BF16, [STAGES, STEP, 16], KEYS_SHARED)
    vs = gl.allocate_shared_memory(BF16, [STAGES, 1, 1, T, 64], VALUES_TILE)
    return queries_keys, pairs, vs, _allocate_barriers(STAGES), _allocate_barriers(STAGES), _allocate_barriers(STAGES)


@gluon.jit
def _expect(tiles, stage, pred):
    mbarrier.expect(tiles[3].index(stage), T * 32, pred=pred)
    mbarrier.expect(tiles[4].index(stage), T * 32, pred=pred)
    mbarrier.expect(tiles[5].index(stage), T * 128, pred=pred)


@gluon.jit
def _fetch_step(q_map, k_map, v_map, tiles, stage, batch, head, row, column, pred):
    _fetch(q_map, tiles[0].index(2 * stage), tiles[3].index(stage), batch, head, row, 0, pred)
    _fetch(v_map, tiles[2].index(stage), tiles[5].index(stage), batch, head, row, column, pred)
    _fetch(k_map, tiles[0].index(2 * stage + 1), tiles[4].index(stage), batch, head, row, 0, pred)


@gluon.jit
def _await(tiles, stage, phase):
    mbarrier.wait(tiles[3].index(stage), phase)
    mbarrier.wait(tiles[4].index(stage), phase)
    mbarrier.wait(tiles[5].index(stage), phase)
    return tiles[1].index(stage), tiles[2].index(stage).reshape([T, 64])


@gluon.jit(do_not_specialize=["length", "heads", "segment", "segments", "value_tiles"])
def serial_kernel(
    q_map, k_map, v_map, y_map, inverse_pointer, slots, length, heads, segment, segments, value_tiles,
    BEGIN: gl.constexpr, FINAL: gl.constexpr, EVEN: gl.constexpr, STAGES: gl.constexpr, INVERSE: gl.constexpr,
):  # fmt: skip
    """y (B,L,H,V) and, INVERSE, 1 / z (B,H,L). BEGIN: from the segment's slot; FINAL: the last one's state, to the slot
    after. EVEN: the length is a multiple of 64."""
    batch, head, place, number = _place(heads, segment, segments, value_tiles)
    begin, column = number * segment, place % value_tiles * 64
    end = gl.minimum(begin + segment, length)
    tiles = _allocate_tiles(STAGES)
    y_tile = gl.allocate_shared_memory(BF16, [1, 1, T, 64], VALUES_TILE)
    weights_tile = gl.allocate_shared_memory(BF16, [T, 64], VALUES_SHARED)
    inverses = gl.allocate_shared_memory(gl.float32, [T], NUMBERS)
    features = _allocate_features()
    constants = _constants(16.0, 1.0)
    for i in gl.static_range(STAGES - 1):
        _expect(tiles, i, begin + i * T < end)
    fence_async_shared()
    barrier()
    for i in gl.static_range(STAGES - 1):
        row = begin + i * T
        _fetch_step(q_map, k_map, v_map, tiles, i, batch, head, row, column, row < end)
    barrier()
    slot = slots + (place * (segments + 1) + number).to(gl.int64) * SLOT
    s_0, s_1, s_2, moments, key_sum = _zero_state()
    count = gl.to_tensor(0.0)
    if BEGIN:
        s_0, s_1, s_2, moments, key_sum = _load_state(slot)
        count = 16.0 * gl.load(slot + COUNT)
    rows = gl.arange(0, T, layout=gl.SliceLayout(1, SQUARE))
    if INVERSE:
        inverse_pointer += (place // value_tiles).to(gl.int64) * length + begin
    stage = 0
    phase = 0
    for first in range(begin, end, T):
        pair, v = _await(tiles, stage, phase)
        q, k = pair.slice(0, T), pair.slice(T, T)
        # mma.sync between open wgmma groups would make the assembler wait after each of them.
        z = _normaliser(q, moments, key_sum)
        moments, key_sum = _key_moments(k, moments, key_sum)
        nothing = gl.zeros([T, T], gl.float32, layout=SQUARE)
        r = warpgroup_mma(q, k.permute((1, 0)), nothing, use_acc=False, is_async=True)
        x = pair.load(ROWS)
        _store_features(x, x, features, constants)
        values = v.permute((1, 0)).load(OPERAND)
        r = warpgroup_mma_wait(0, [r])
        weights = _not_before((r * 0.5 + 4.0) * r + 16.0)
        inverse = 1.0 / (gl.sum(weights, 1) + z + count)
        weights_tile.store(weights.to(BF16))
        inverses.store(inverse)
        if INVERSE:
            inside = column == 0 if EVEN else (first + rows < end) & (column == 0)
            gl.store(inverse_pointer + rows, inverse * 16.0, mask=inside)
            inverse_pointer += T
        p_0, p_1, p_2 = _state_operands(s_0, s_1, s_2)
        ahead = gl.where(stage == 0, STAGES - 1, stage - 1)
        later = first + (STAGES - 1) * T
        fence_async_shared()
        tma.store_wait(0)
        barrier()
        _expect(tiles, ahead, later < end)
        y = _query_state(values, weights_tile, features, p_0, p_1, p_2)
        f_0, f_1, f_2 = features[0].slice(T, T), features[1].slice(T, T), features[2].slice(T, T)
        s_0, s_1, s_2, last = _add_keys(values, f_0, f_1, f_2, s_0, s_1, s_2)
        # The tiles of the step before: all threads have passed a barrier since they were read.
        _fetch_step(q_map, k_map, v_map, tiles, ahead, batch, head, later, column, later < end)
        scale = inverses.load(gl.SliceLayout(0, SQUARE))
        y, p_0, p_1, p_2 = warpgroup_mma_wait(3, [y, p_0, p_1, p_2])
        y_tile.reshape([T, 64]).permute((1, 0)).store((y * scale[None, :]).to(BF16))
        s_0, s_1, s_2, values, last = warpgroup_mma_wait(0, [s_0, s_1, s_2, values, last])
        fence_async_shared()
        barrier()
        tma.async_copy_shared_to_global(y_map, [batch, head, first, column], y_tile)
        count += 16.0 * T
        wrap = stage + 1 == STAGES
        phase = gl.where(wrap, phase ^ 1, phase)
        stage = gl.where(wrap, 0, stage + 1)
    if FINAL:
        program = _unseen(gl.program_id(0))
        number = program % segments
        if number == segments - 1:
            slot = slots + (program // segments * (segments + 1) + number).to(gl.int64) * SLOT
            tokens = (length - number * segment).to(gl.float32)
            if BEGIN:
                tokens += gl.load(slot + COUNT)
            _store_state(slot + SLOT, s_0, s_1, s_2, moments, key_sum, tokens)
    tma.store_wait(0)
