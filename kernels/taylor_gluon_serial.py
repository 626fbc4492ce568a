"""The serial form of taylor_attention for Hopper in Gluon: key width 16, tiles of 64 values, bf16.

One program walks a segment of one sequence with the state in its accumulators. A step takes 64 tokens:

    y = phi(q) state + (causal weights) v, z likewise, store y / z
    state += phi(k)^T v; state -> bf16 copy in shared memory, part by part as the products end

Everything is scaled by 32: with r = q . k the weight is r^2 + 8 r + 32, so no coefficient needs rounding. The
normaliser of earlier tokens is 32 n + 8 q . k1 + q^T M q with k1 = sum k, M = sum k k^T.

State, features, weights and y fill the 255 registers that a thread has: what else lives through the loop spills. Hence
one running pointer, rows that the compiler cannot trace (`_unseen`), and a final state whose place is found anew.
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
    _copy_rest(copies, linear, constant, moments, key_sum)


@gluon.jit
def _copy_rest(copies, linear, constant, moments, key_sum):
    copies[3].store((linear.to(BF16) * 8.0).to(BF16))
    copies[4].store((constant.to(BF16) * 32.0).to(BF16))
    copies[5].store(moments.to(BF16))
    copies[6].store((key_sum.to(BF16) * 8.0).to(BF16))


@gluon.jit
def _finish_update(copies, s_0, s_1, s_2, linear, constant, moments, key_sum, f_0, f_1, f_2):
    """Waits for what `_add_keys` started; each part is copied while the products of the next are under way."""
    linear, constant, s_0, f_0 = warpgroup_mma_wait(2, [linear, constant, s_0, f_0])
    copies[0].store(s_0.to(BF16))
    _copy_rest(copies, linear, constant, moments, key_sum)
    s_1, f_1 = warpgroup_mma_wait(1, [s_1, f_1])
    copies[1].store(s_1.to(BF16))
    s_2, f_2 = warpgroup_mma_wait(0, [s_2, f_2])
    copies[2].store(s_2.to(BF16))
    return s_0, s_1, s_2, linear, constant


@gluon.jit
def _query_state(q, ones, copies, p_0, p_1, p_2):
    """Starts phi(q) state."""
    nothing = gl.zeros([T, 64], gl.float32, layout=SQUARE)
    y = warpgroup_mma(q, copies[3].permute((1, 0)), nothing, use_acc=False, is_async=True)
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
def _unseen(x):
    """x, as something new: what follows from it is not computed early and kept in registers."""
    return gl.inline_asm_elementwise("mov.b32 $0, $1;", "=r,r", [x], dtype=gl.int32, is_pure=False, pack=1)


@gluon.jit
def _causal(weights):
    """Weights of later tokens become zero."""
    row = _unseen(gl.arange(0, T, layout=gl.SliceLayout(1, SQUARE)))
    column = gl.arange(0, T, layout=gl.SliceLayout(0, SQUARE))
    # Bits 1 and 2 of the column are the thread's, the others constants.
    beyond = row[:, None] - (column & 6)[None, :]
    return gl.where(beyond >= (column & 57)[None, :], weights, 0.0)


@gluon.jit
def _attend(q, k, v, ones, copies, count):
    """(y, z) of 64 queries: their own keys and the state. The weights are formed while the state is read."""
    nothing = gl.zeros([T, 64], gl.float32, layout=SQUARE)
    r = warpgroup_mma(q, k.permute((1, 0)), nothing, use_acc=False, is_async=True)
    w = warpgroup_mma(q, copies[5], gl.zeros([T, 16], gl.float32, layout=NARROW), use_acc=False, is_async=True)
    w = warpgroup_mma(ones, copies[6], w, is_async=True)
    p_0, p_1, p_2 = _query_features(q)
    r, w = warpgroup_mma_wait(0, [r, w])
    y = _query_state(q, ones, copies, p_0, p_1, p_2)
    weights = _causal((r + 8.0) * r + 32.0)
    z = gl.sum(weights, 1) + _normaliser(q, w, count)
    weights = gl.convert_layout(weights.to(BF16), OPERAND)
    y = warpgroup_mma(weights, v, y, is_async=True)
    y, p_0, p_1, p_2, weights = warpgroup_mma_wait(0, [y, p_0, p_1, p_2, weights])
    return y, z


@gluon.jit
def _allocate_tiles(STAGES: gl.constexpr):
    """Buffers of q, k, v, and the barriers that announce each of them."""
    qs = gl.allocate_shared_memory(BF16, [STAGES, 1, 1, T, 16], KEYS_TILE)
    ks = gl.allocate_shared_memory(BF16, [STAGES, 1, 1, T, 16], KEYS_TILE)
    vs = gl.allocate_shared_memory(BF16, [STAGES, 1, 1, T, 64], VALUES_TILE)
    return qs, ks, vs, _allocate_barriers(STAGES), _allocate_barriers(STAGES), _allocate_barriers(STAGES)


@gluon.jit
def _expect(tiles, stage, pred):
    mbarrier.expect(tiles[3].index(stage), T * 32, pred=pred)
    mbarrier.expect(tiles[4].index(stage), T * 32, pred=pred)
    mbarrier.expect(tiles[5].index(stage), T * 128, pred=pred)


@gluon.jit
def _fetch_step(q_map, k_map, v_map, tiles, stage, batch, head, row, column, pred):
    _fetch(q_map, tiles[0].index(stage), tiles[3].index(stage), batch, head, row, 0, pred)
    _fetch(k_map, tiles[1].index(stage), tiles[4].index(stage), batch, head, row, 0, pred)
    _fetch(v_map, tiles[2].index(stage), tiles[5].index(stage), batch, head, row, column, pred)


@gluon.jit
def _await(tiles, stage, phase):
    mbarrier.wait(tiles[3].index(stage), phase)
    mbarrier.wait(tiles[4].index(stage), phase)
    mbarrier.wait(tiles[5].index(stage), phase)
    q, k = tiles[0].index(stage).reshape([T, 16]), tiles[1].index(stage).reshape([T, 16])
    return q, k, tiles[2].index(stage).reshape([T, 64])


@gluon.jit(do_not_specialize=["length", "heads", "segment", "segments", "value_tiles"])
def serial_kernel(
    q_map, k_map, v_map, y_map, inverse_pointer, slots, length, heads, segment, segments, value_tiles,
    BEGIN: gl.constexpr, FINAL: gl.constexpr, EVEN: gl.constexpr, STAGES: gl.constexpr, EARLY: gl.constexpr,
    INVERSE: gl.constexpr,
):  # fmt: skip
    """y (B,L,H,V) and, INVERSE, 1 / z (B,H,L).

    BEGIN: from the segment's slot; FINAL: the last one's state, to the slot after. EVEN: the length is a multiple of
    64. EARLY: the tiles of STAGES - 1 steps later are fetched before the products of this step instead of after them,
    for two barriers more.
    """
    batch, head, place, number = _place(heads, segment, segments, value_tiles)
    begin, column = number * segment, place % value_tiles * 64
    end = gl.minimum(begin + segment, length)
    tiles = _allocate_tiles(STAGES)
    y_tile = gl.allocate_shared_memory(BF16, [1, 1, T, 64], VALUES_TILE)
    copies = _allocate_copies()
    ones = gl.allocate_shared_memory(BF16, [T, 16], KEYS_SHARED)
    _fill_ones(ones)
    for i in gl.static_range(STAGES - 1):
        _expect(tiles, i, begin + i * T < end)
    fence_async_shared()
    barrier()
    for i in gl.static_range(STAGES - 1):
        row = begin + i * T
        _fetch_step(q_map, k_map, v_map, tiles, i, batch, head, row, column, row < end)
    slot = slots + (place * (segments + 1) + number).to(gl.int64) * SLOT
    s_0, s_1, s_2, linear, constant, moments, key_sum = _zero_state()
    count = gl.to_tensor(0.0)
    if BEGIN:
        s_0, s_1, s_2, linear, constant, moments, key_sum = _load_state(slot)
        count = 32.0 * gl.load(slot + COUNT)
    _copy_state(copies, s_0, s_1, s_2, linear, constant, moments, key_sum)
    rows = gl.arange(0, T, layout=gl.SliceLayout(1, SQUARE))
    if INVERSE:
        inverse_pointer += (place // value_tiles).to(gl.int64) * length + begin
    stage = 0
    phase = 0
    for first in range(begin, end, T):
        ahead = gl.where(stage == 0, STAGES - 1, stage - 1)
        later = first + (STAGES - 1) * T
        _expect(tiles, ahead, later < end)
        fence_async_shared()
        tma.store_wait(0)
        barrier()
        q, k, v = _await(tiles, stage, phase)
        if EARLY:
            _fetch_step(q_map, k_map, v_map, tiles, ahead, batch, head, later, column, later < end)
        y, z = _attend(q, k, v, ones, copies, count)
        inverse = 1.0 / z
        y = (y * inverse[:, None]).to(BF16)
        # mma.sync between open wgmma groups would make the assembler wait after each of them.
        moments, key_sum = _key_moments(k, moments, key_sum)
        f_0, f_1, f_2 = _key_features(k)
        s_0, s_1, s_2, linear, constant = _add_keys(k, v, ones, f_0, f_1, f_2, s_0, s_1, s_2, linear, constant)
        if INVERSE:
            inside = column == 0 if EVEN else (first + rows < end) & (column == 0)
            gl.store(inverse_pointer + rows, inverse * 32.0, mask=inside)
            inverse_pointer += T
        y_tile.reshape([T, 64]).store(y)
        fence_async_shared()
        barrier()
        tma.async_copy_shared_to_global(y_map, [batch, head, first, column], y_tile)
        # Here, right after a barrier: elsewhere the copies would cost barriers of their own.
        if not EARLY:
            _fetch_step(q_map, k_map, v_map, tiles, ahead, batch, head, later, column, later < end)
        s_0, s_1, s_2, linear, constant = _finish_update(
            copies, s_0, s_1, s_2, linear, constant, moments, key_sum, f_0, f_1, f_2
        )
        count += 32.0 * T
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
            _store_state(slot + SLOT, s_0, s_1, s_2, linear, constant, moments, key_sum, tokens)
    tma.store_wait(0)
