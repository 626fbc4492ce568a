"""The serial form of taylor_attention for Hopper in Gluon: key width 16, tiles of 64 values, bf16.

One program walks a segment of one sequence with the state in its accumulators. A step takes HALVES x 64 tokens:

    state -> bf16 copy in shared memory              the only serial chain, hence once per step
    per half: y = phi(q) state + (causal weights) v, z likewise, store y / z; state += phi(k)^T v

Everything is scaled by 32: with r = q . k the weight is r^2 + 8 r + 32, so no coefficient needs rounding. The
normaliser of earlier tokens is 32 n + 8 q . k1 + q^T M q with k1 = sum k, M = sum k k^T.
"""

# mypy: allow-untyped-defs

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from .taylor_gluon_kernels import (
    BF16,
    KEYS_SHARED,
    KEYS_TILE,
    NARROW,
    OPERAND,
    SQUARE,
    VALUES_SHARED,
    VALUES_TILE,
    T,
    _add_keys,
    _allocate_barriers,
    _fetch,
    _fill_ones,
    _key_features,
    _key_moments,
    _load_state,
    _place,
    _query_features,
    _store_state,
    _zero_state,
    barrier,
)
from .taylor_gluon_states import COUNT, SLOT


@gluon.jit
def _allocate_copies():
    """One allocation per part: between two writes to one allocation Triton would stop all threads."""
    square_0 = gl.allocate_shared_memory(BF16, [64, 64], VALUES_SHARED)
    square_1 = gl.allocate_shared_memory(BF16, [64, 64], VALUES_SHARED)
    square_2 = gl.allocate_shared_memory(BF16, [64, 64], VALUES_SHARED)
    linear = gl.allocate_shared_memory(BF16, [64, 16], KEYS_SHARED)
    constant = gl.allocate_shared_memory(BF16, [64, 16], KEYS_SHARED)
    moments = gl.allocate_shared_memory(BF16, [16, 16], KEYS_SHARED)
    key_sum = gl.allocate_shared_memory(BF16, [16, 16], KEYS_SHARED)
    return square_0, square_1, square_2, linear, constant, moments, key_sum


@gluon.jit
def _copy_state(copies, s_0, s_1, s_2, linear, constant, moments, key_sum):
    """bf16 copies as operands. Factors of the polynomial go in here: they are powers of two, hence exact."""
    copies[0].store(s_0.to(BF16))
    copies[1].store(s_1.to(BF16))
    copies[2].store(s_2.to(BF16))
    copies[3].store((linear * 8.0).to(BF16))
    copies[4].store((constant * 32.0).to(BF16))
    copies[5].store(moments.to(BF16))
    copies[6].store((key_sum * 8.0).to(BF16))


@gluon.jit
def _query_state(q, ones, copies, p_0, p_1, p_2, y, USE: gl.constexpr):
    """Starts y + phi(q) state, or without y."""
    y = warpgroup_mma(q, copies[3].permute((1, 0)), y, use_acc=USE, is_async=True)
    y = warpgroup_mma(ones, copies[4].permute((1, 0)), y, is_async=True)
    y = warpgroup_mma(p_0, copies[0], y, is_async=True)
    y = warpgroup_mma(p_1, copies[1], y, is_async=True)
    return warpgroup_mma(p_2, copies[2], y, is_async=True)


@gluon.jit
def _normaliser(q, w, count):
    """32 n + 8 q . k1 + q^T M q, from w = M q + 8 k1."""
    sums = gl.sum(w * q.load(NARROW).to(gl.float32), 1)
    return gl.convert_layout(sums, gl.SliceLayout(1, SQUARE)) + count


@gluon.jit
def _causal_weights(r):
    row = gl.arange(0, T, layout=gl.SliceLayout(1, SQUARE))
    column = gl.arange(0, T, layout=gl.SliceLayout(0, SQUARE))
    return gl.where(row[:, None] >= column[None, :], (r + 8.0) * r + 32.0, 0.0)


@gluon.jit
def _attend(q, k, v, ones, copies, count):
    """(y, z) of 64 queries: their own keys and the state. The weights are formed while the state is read."""
    nothing = gl.zeros([T, 64], gl.float32, layout=SQUARE)
    r = warpgroup_mma(q, k.permute((1, 0)), nothing, use_acc=False, is_async=True)
    w = warpgroup_mma(q, copies[5], gl.zeros([T, 16], gl.float32, layout=NARROW), use_acc=False, is_async=True)
    w = warpgroup_mma(ones, copies[6], w, is_async=True)
    p_0, p_1, p_2 = _query_features(q)
    r, w = warpgroup_mma_wait(0, [r, w])
    y = _query_state(q, ones, copies, p_0, p_1, p_2, nothing, False)
    weights = _causal_weights(r)
    z = gl.sum(weights, 1) + _normaliser(q, w, count)
    weights = gl.convert_layout(weights.to(BF16), OPERAND)
    y = warpgroup_mma(weights, v, y, is_async=True)
    y, p_0, p_1, p_2, weights = warpgroup_mma_wait(0, [y, p_0, p_1, p_2, weights])
    return y, z


@gluon.jit
def _attend_before(q, k_0, v_0, k, v, ones, copies, count):
    """The same with 64 keys between the state and their own. Weights first, for there are no registers to spare."""
    nothing = gl.zeros([T, 64], gl.float32, layout=SQUARE)
    w = warpgroup_mma(q, copies[5], gl.zeros([T, 16], gl.float32, layout=NARROW), use_acc=False, is_async=True)
    w = warpgroup_mma(ones, copies[6], w, is_async=True)
    r = warpgroup_mma(q, k_0.permute((1, 0)), nothing, use_acc=False, is_async=True)
    r, w = warpgroup_mma_wait(0, [r, w])
    z = _normaliser(q, w, count)
    weights = (r + 8.0) * r + 32.0
    z += gl.sum(weights, 1)
    weights = gl.convert_layout(weights.to(BF16), OPERAND)
    r = warpgroup_mma(q, k.permute((1, 0)), nothing, use_acc=False, is_async=True)
    y = warpgroup_mma(weights, v_0, nothing, use_acc=False, is_async=True)
    r, y, weights = warpgroup_mma_wait(0, [r, y, weights])
    own = _causal_weights(r)
    z += gl.sum(own, 1)
    own = gl.convert_layout(own.to(BF16), OPERAND)
    y = warpgroup_mma(own, v, y, is_async=True)
    p_0, p_1, p_2 = _query_features(q)
    y = _query_state(q, ones, copies, p_0, p_1, p_2, y, True)
    y, p_0, p_1, p_2, own = warpgroup_mma_wait(0, [y, p_0, p_1, p_2, own])
    return y, z


@gluon.jit(do_not_specialize=["length", "heads", "segment", "segments", "value_tiles"])
def serial_kernel(
    q_map, k_map, v_map, y_map, inverse_pointer, slots, length, heads, segment, segments, value_tiles,
    BEGIN: gl.constexpr, FINAL: gl.constexpr, HALVES: gl.constexpr, STAGES: gl.constexpr, OUTPUTS: gl.constexpr,
):  # fmt: skip
    """y (B,L,H,V) and 1 / z (B,H,L). BEGIN: from the segment's slot; FINAL: the last one's state, to the slot after."""
    STEP: gl.constexpr = HALVES * T
    # Steps whose outputs have tiles of their own; 0: one tile for all.
    ROUNDS: gl.constexpr = OUTPUTS // HALVES
    batch, head, place, number = _place(heads, segment, segments, value_tiles)
    begin, column = number * segment, place % value_tiles * 64
    end = gl.minimum(begin + segment, length)
    steps = (end - begin + STEP - 1) // STEP
    inverse_pointer += (place // value_tiles).to(gl.int64) * length
    qs = gl.allocate_shared_memory(BF16, [STAGES, 1, 1, STEP, 16], KEYS_TILE)
    ks = gl.allocate_shared_memory(BF16, [STAGES, 1, 1, STEP, 16], KEYS_TILE)
    vs = gl.allocate_shared_memory(BF16, [STAGES, 1, 1, STEP, 64], VALUES_TILE)
    ys = gl.allocate_shared_memory(BF16, [OUTPUTS, 1, 1, T, 64], VALUES_TILE)
    copies = _allocate_copies()
    ones = gl.allocate_shared_memory(BF16, [T, 16], KEYS_SHARED)
    q_bars, k_bars, v_bars = _allocate_barriers(STAGES), _allocate_barriers(STAGES), _allocate_barriers(STAGES)
    _fill_ones(ones)
    fence_async_shared()
    barrier()
    for i in gl.static_range(STAGES - 1):
        mbarrier.expect(q_bars.index(i), STEP * 32, pred=i < steps)
        mbarrier.expect(k_bars.index(i), STEP * 32, pred=i < steps)
        mbarrier.expect(v_bars.index(i), STEP * 128, pred=i < steps)
        _fetch(q_map, qs.index(i), q_bars.index(i), batch, head, begin + i * STEP, 0, i < steps)
        _fetch(k_map, ks.index(i), k_bars.index(i), batch, head, begin + i * STEP, 0, i < steps)
        _fetch(v_map, vs.index(i), v_bars.index(i), batch, head, begin + i * STEP, column, i < steps)
    slot = slots + (place * (segments + 1) + number).to(gl.int64) * SLOT
    s_0, s_1, s_2, linear, constant, moments, key_sum = _zero_state()
    before = gl.to_tensor(0.0)
    if BEGIN:
        s_0, s_1, s_2, linear, constant, moments, key_sum = _load_state(slot)
        before = gl.load(slot + COUNT)
    rows = gl.arange(0, T, layout=gl.SliceLayout(1, SQUARE))
    stage = 0
    phase = 0
    for step in range(steps):
        _copy_state(copies, s_0, s_1, s_2, linear, constant, moments, key_sum)
        ahead = stage + (STAGES - 1)
        ahead = gl.where(ahead >= STAGES, ahead - STAGES, ahead)
        more = step + (STAGES - 1) < steps
        later = begin + (step + STAGES - 1) * STEP
        first = begin + step * STEP
        count = 32.0 * (before + (step * STEP).to(gl.float32))
        if ROUNDS > 0:
            tma.store_wait((ROUNDS - 1) * HALVES)
        # Here, and the copies after the last barrier: elsewhere they would cost barriers of their own.
        mbarrier.expect(q_bars.index(ahead), STEP * 32, pred=more)
        mbarrier.expect(k_bars.index(ahead), STEP * 32, pred=more)
        mbarrier.expect(v_bars.index(ahead), STEP * 128, pred=more)
        fence_async_shared()
        barrier()
        mbarrier.wait(q_bars.index(stage), phase)
        mbarrier.wait(k_bars.index(stage), phase)
        mbarrier.wait(v_bars.index(stage), phase)
        q_step, k_step = qs.index(stage).reshape([STEP, 16]), ks.index(stage).reshape([STEP, 16])
        v_step = vs.index(stage).reshape([STEP, 64])
        for half in gl.static_range(HALVES):
            q, k, v = q_step.slice(half * T, T), k_step.slice(half * T, T), v_step.slice(half * T, T)
            if half == 0:
                y, z = _attend(q, k, v, ones, copies, count)
            else:
                k_0, v_0 = k_step.slice(0, T), v_step.slice(0, T)
                y, z = _attend_before(q, k_0, v_0, k, v, ones, copies, count)
            inverse = 1.0 / z
            y = (y * inverse[:, None]).to(BF16)
            if half == HALVES - 1:
                moments, key_sum = _key_moments(k_step, moments, key_sum)
            f_0, f_1, f_2 = _key_features(k)
            s_0, s_1, s_2, linear, constant = _add_keys(k, v, ones, f_0, f_1, f_2, s_0, s_1, s_2, linear, constant)
            positions = first + half * T + rows
            gl.store(inverse_pointer + positions, inverse * 32.0, mask=(positions < end) & (column == 0))
            if ROUNDS == 0:
                tma.store_wait(0)
                barrier()
                y_tile = ys.index(0)
            else:
                y_tile = ys.index(step % ROUNDS * HALVES + half)
            y_tile.reshape([T, 64]).store(y)
            fence_async_shared()
            barrier()
            tma.async_copy_shared_to_global(y_map, [batch, head, first + half * T, column], y_tile)
            if half == HALVES - 1:
                _fetch(q_map, qs.index(ahead), q_bars.index(ahead), batch, head, later, 0, more)
                _fetch(k_map, ks.index(ahead), k_bars.index(ahead), batch, head, later, 0, more)
                _fetch(v_map, vs.index(ahead), v_bars.index(ahead), batch, head, later, column, more)
            s_0, s_1, s_2, linear, constant, f_0, f_1, f_2 = warpgroup_mma_wait(
                0, [s_0, s_1, s_2, linear, constant, f_0, f_1, f_2]
            )
        wrap = stage + 1 == STAGES
        phase = gl.where(wrap, phase ^ 1, phase)
        stage = gl.where(wrap, 0, stage + 1)
    if FINAL:  # noqa: SIM102 (decided by the compiler)
        if number == segments - 1:
            tokens = before + (end - begin).to(gl.float32)
            _store_state(slot + SLOT, s_0, s_1, s_2, linear, constant, moments, key_sum, tokens)
    tma.store_wait(0)
