"""The sweep for dq, forwards, and what it shares with the others; see `taylor_backward_gluon_kernels`."""

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

from .taylor_backward_gluon_blocks import (
    NARROW,
    QUERY_PRODUCTS,
    _fill_ones,
    _key_features,
    _key_moments,
    _load_state,
    _operand,
    _zero_state,
)
from .taylor_gluon_states import SLOT
from .taylor_gluon_tiles import (
    BF16,
    KEYS_SHARED,
    KEYS_TILE,
    OPERAND,
    SQUARE,
    VALUES_SHARED,
    VALUES_TILE,
    T,
    _place,
    barrier,
)

SIXTEEN = gl.constexpr(gl.BlockedLayout([1, 8], [16, 2], [4, 1], [1, 0]))


@gluon.jit
def _by_rows(x):
    """a and b as (token, i), every lane of a row holding all eight; b also as (token, j), spread over four lanes."""
    a, b = x.slice(0, 8, dim=1), x.slice(8, 8, dim=1)
    a_i, b_i = a.load(gl.SliceLayout(2, QUERY_PRODUCTS)), b.load(gl.SliceLayout(2, QUERY_PRODUCTS))
    return gl.expand_dims(a_i, 2), gl.expand_dims(b_i, 2), gl.expand_dims(b.load(gl.SliceLayout(1, QUERY_PRODUCTS)), 1)


@gluon.jit
def _sum_over_first(gradient, x_i):
    """sum_i G_ij x_i: (token, j)."""
    gradient = gl.convert_layout(gradient.reshape([64, 8, 8]), QUERY_PRODUCTS, assert_trivial=True)
    return gl.sum(gradient * x_i.to(gl.float32), 1)


@gluon.jit
def _times_second(gradient, x_j):
    """G_ij x_j as an operand; `_fill_pick` adds over j."""
    gradient = gl.convert_layout(gradient.reshape([64, 8, 8]), QUERY_PRODUCTS, assert_trivial=True)
    return _operand((gradient * x_j.to(gl.float32)).to(BF16))


@gluon.jit
def _side_by_side(low, high):
    """(64,8) twice -> (64,16)."""
    both = gl.join(low, high).permute((0, 2, 1)).reshape([64, 16])
    return gl.convert_layout(both, NARROW, assert_trivial=True)


@gluon.jit
def _fill_pick(tile):
    """(64,16): feature (i, j) counts for column i."""
    row = gl.arange(0, 64, layout=gl.SliceLayout(1, SIXTEEN))
    column = gl.arange(0, 16, layout=gl.SliceLayout(0, SIXTEEN))
    tile.store(gl.where((row // 8)[:, None] == column[None, :], 1.0, 0.0).to(BF16))


@gluon.jit
def _fill_two(tile):
    """Ones in the first two of 16 columns: adds what was rounded and the rest."""
    column = gl.arange(0, 16, layout=gl.SliceLayout(0, SIXTEEN))
    zeros = gl.zeros([T, 16], gl.float32, layout=SIXTEEN)
    tile.store((zeros + gl.where(column < 2, 1.0, 0.0)[None, :]).to(BF16))


@gluon.jit
def _copy_squares(square_0, square_1, square_2, s_0, s_1, s_2):
    square_0.store(s_0.to(BF16))
    square_1.store(s_1.to(BF16))
    square_2.store(s_2.to(BF16))


@gluon.jit
def _start_gradient(w, square):
    nothing = gl.zeros([64, 64], gl.float32, layout=SQUARE)
    return warpgroup_mma(w, square.permute((1, 0)), nothing, use_acc=False, is_async=True)


@gluon.jit
def _ring(bars, STAGES: gl.constexpr):
    for i in gl.static_range(STAGES):
        mbarrier.init(bars.index(i), count=1)


@gluon.jit
def _fetch_query_step(q_map, k_map, v_map, dy_map, y_map, qs, ks, vs, dys, ys, bar, batch, head, row, pred):
    """All tiles of 64 tokens into one stage."""
    tma.async_copy_global_to_shared(q_map, [batch, head, row, 0], bar, qs, pred=pred)
    tma.async_copy_global_to_shared(k_map, [batch, head, row, 0], bar, ks, pred=pred)
    tma.async_copy_global_to_shared(dy_map, [batch, head, row, 0], bar, dys, pred=pred)
    tma.async_copy_global_to_shared(v_map, [batch, head, row, 0], bar, vs, pred=pred)
    tma.async_copy_global_to_shared(y_map, [batch, head, row, 0], bar, ys, pred=pred)


@gluon.jit(do_not_specialize=["length", "heads", "segment", "segments"])
def query_sweep_kernel(
    q_map, k_map, v_map, dy_map, y_map, inverse_pointer, delta_pointer, dq_pointer, slots,
    length, heads, segment, segments, BEGIN: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """dq (B,L,H,16) and u . y (B,H,L), one program per segment, forwards.

    u . y = delta / z for the very u, rounded, that the other sweep will use: a token attends to itself above all, where
    y is near v, and their difference is what is left of u . v - u . y.
    """
    BYTES: gl.constexpr = T * 448
    batch, head, place, number = _place(heads, segment, segments, 1)
    begin = number * segment
    end = gl.minimum(begin + segment, length)
    steps = (end - begin + T - 1) // T
    inverse_pointer += place.to(gl.int64) * length
    delta_pointer += place.to(gl.int64) * length
    dq_pointer += (batch.to(gl.int64) * length * heads + head) * 16
    qs = gl.allocate_shared_memory(BF16, [STAGES, 1, 1, T, 16], KEYS_TILE)
    ks = gl.allocate_shared_memory(BF16, [STAGES, 1, 1, T, 16], KEYS_TILE)
    vs = gl.allocate_shared_memory(BF16, [STAGES, 1, 1, T, 64], VALUES_TILE)
    dys = gl.allocate_shared_memory(BF16, [STAGES, 1, 1, T, 64], VALUES_TILE)
    ys = gl.allocate_shared_memory(BF16, [STAGES, 1, 1, T, 64], VALUES_TILE)
    square_0 = gl.allocate_shared_memory(BF16, [64, 64], VALUES_SHARED)
    square_1 = gl.allocate_shared_memory(BF16, [64, 64], VALUES_SHARED)
    square_2 = gl.allocate_shared_memory(BF16, [64, 64], VALUES_SHARED)
    vector = gl.allocate_shared_memory(BF16, [64, 16], KEYS_SHARED)
    smalls = gl.allocate_shared_memory(BF16, [2, 16, 16], KEYS_SHARED)
    ones = gl.allocate_shared_memory(BF16, [T, 16], KEYS_SHARED)
    pick = gl.allocate_shared_memory(BF16, [64, 16], KEYS_SHARED)
    bars = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    _ring(bars, STAGES)
    _fill_ones(ones)
    _fill_pick(pick)
    fence_async_shared()
    barrier()
    for i in gl.static_range(STAGES - 1):
        mbarrier.expect(bars.index(i), BYTES, pred=i < steps)
        _fetch_query_step(
            q_map, k_map, v_map, dy_map, y_map, qs.index(i), ks.index(i), vs.index(i), dys.index(i), ys.index(i),
            bars.index(i), batch, head, begin + i * T, i < steps,
        )  # fmt: skip
    s_0, s_1, s_2, linear, _, moments, key_sum = _zero_state()
    if BEGIN:
        s_0, s_1, s_2, linear, _, moments, key_sum = _load_state(
            slots + (place * (segments + 1) + number).to(gl.int64) * SLOT
        )
    row = gl.arange(0, T, layout=gl.SliceLayout(1, SQUARE))
    column = gl.arange(0, T, layout=gl.SliceLayout(0, SQUARE))
    token = gl.arange(0, T, layout=gl.SliceLayout(1, NARROW))
    key = gl.arange(0, 16, layout=gl.SliceLayout(0, NARROW))
    nothing = gl.zeros([T, 64], gl.float32, layout=SQUARE)
    nothing_narrow = gl.zeros([T, 16], gl.float32, layout=NARROW)
    inverse = gl.load(inverse_pointer + begin + token, mask=begin + token < end, other=0.0)
    stage = 0
    phase = 0
    for step in range(steps):
        ahead = stage + (STAGES - 1)
        ahead = gl.where(ahead >= STAGES, ahead - STAGES, ahead)
        more = step + (STAGES - 1) < steps
        first = begin + step * T
        _copy_squares(square_0, square_1, square_2, s_0, s_1, s_2)
        vector.store((linear * 4.0).to(BF16))
        smalls.index(0).store(moments.to(BF16))
        smalls.index(1).store((key_sum * 4.0).to(BF16))
        mbarrier.expect(bars.index(ahead), BYTES, pred=more)
        mbarrier.wait(bars.index(stage), phase)
        q, k = qs.index(stage).reshape([T, 16]), ks.index(stage).reshape([T, 16])
        v, dy = vs.index(stage).reshape([T, 64]), dys.index(stage).reshape([T, 64])
        fence_async_shared()
        barrier()
        r = warpgroup_mma(q, k.permute((1, 0)), nothing, use_acc=False, is_async=True)
        da = warpgroup_mma(dy, v.permute((1, 0)), nothing, use_acc=False, is_async=True)
        w = warpgroup_mma(q, smalls.index(0), nothing_narrow, use_acc=False, is_async=True)
        w = warpgroup_mma(ones, smalls.index(1), w, is_async=True)
        _fetch_query_step(
            q_map, k_map, v_map, dy_map, y_map, qs.index(ahead), ks.index(ahead), vs.index(ahead), dys.index(ahead),
            ys.index(ahead), bars.index(ahead), batch, head, first + (STAGES - 1) * T, more,
        )  # fmt: skip
        y = ys.index(stage).reshape([T, 64]).load(SQUARE)
        dy_rows = dy.load(SQUARE).to(gl.float32)
        y = y.to(gl.float32)
        delta = gl.sum(dy_rows * y, 1)
        u = (dy_rows * gl.convert_layout(inverse, gl.SliceLayout(1, SQUARE))[:, None]).to(BF16)
        gl.store(delta_pointer + first + row, gl.sum(u.to(gl.float32) * y, 1), mask=first + row < end)
        r, da, w = warpgroup_mma_wait(0, [r, da, w])
        gradient = _start_gradient(dy, square_1)
        dq = gl.convert_layout(-delta, gl.SliceLayout(1, NARROW))[:, None] * w
        dq = warpgroup_mma(dy, vector, dq, is_async=True)
        ds = gl.where(row[:, None] >= column[None, :], (da - delta[:, None]) * (r + 4.0), 0.0)
        ds = gl.convert_layout(ds.to(BF16), OPERAND, assert_trivial=True)
        dq = warpgroup_mma(ds, k, dq, is_async=True)
        a_i, b_i, b_j = _by_rows(q)
        gradient, dq, ds = warpgroup_mma_wait(0, [gradient, dq, ds])
        following = _start_gradient(dy, square_0)
        picked = _times_second(gradient, b_j)
        dq = warpgroup_mma(picked, pick, dq, is_async=True)
        high = _sum_over_first(gradient, a_i)
        following, dq, picked = warpgroup_mma_wait(0, [following, dq, picked])
        gradient = _start_gradient(dy, square_2)
        low = _sum_over_first(following, a_i)
        gradient = warpgroup_mma_wait(0, [gradient])
        moments, key_sum = _key_moments(k, moments, key_sum)
        f_0, f_1, f_2 = _key_features(k)
        linear = warpgroup_mma(v.permute((1, 0)), k, linear, is_async=True)
        s_0 = warpgroup_mma(f_0, v, s_0, is_async=True)
        s_1 = warpgroup_mma(f_1, v, s_1, is_async=True)
        s_2 = warpgroup_mma(f_2, v, s_2, is_async=True)
        high += _sum_over_first(gradient, b_i)
        dq = (dq + _side_by_side(low, high)) * (inverse * 0.0625)[:, None]
        place_q = dq_pointer + ((first + token) * (heads * 16))[:, None] + key[None, :]
        gl.store(place_q, dq.to(BF16), mask=(first + token < end)[:, None] & (key >= 0)[None, :])
        later = first + T + token
        inverse = gl.load(inverse_pointer + later, mask=later < end, other=0.0)
        s_0, s_1, s_2, linear, f_0, f_1, f_2 = warpgroup_mma_wait(0, [s_0, s_1, s_2, linear, f_0, f_1, f_2])
        wrap = stage + 1 == STAGES
        phase = gl.where(wrap, phase ^ 1, phase)
        stage = gl.where(wrap, 0, stage + 1)
