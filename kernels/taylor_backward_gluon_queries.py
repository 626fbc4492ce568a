"""The sweep for dq, forwards; see `taylor_backward_gluon_kernels` for the formula.

A step: features of the keys and the copy of the state to shared memory, barrier; weights; the first G, then the update;
contractions, of each G while the next is computed; barrier.
"""

# mypy: allow-untyped-defs

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mma_v2,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from .taylor_backward_gluon_rows import (
    NARROW,
    SIXTEEN,
    SMALL_A,
    SMALL_B,
    _allocate_keys,
    _allocate_narrow,
    _allocate_squares,
    _allocate_values,
    _at,
    _await,
    _copy_state,
    _expect,
    _expect_all,
    _fetch_all,
    _fill_columns,
    _fill_pick,
    _first_of,
    _load_state,
    _second_of,
    _side_by_side,
    _start_fetch,
    _start_gradient,
    _start_update,
    _store_features,
    _sum_over_first,
    _times_second,
    _two_parts,
    _zero_state,
)
from .taylor_gluon_states import SLOT
from .taylor_gluon_tiles import BF16, OPERAND, SQUARE, T, _not_before, _place, barrier


@gluon.jit
def _key_moments(k, moments, key_sum):
    k_transposed, k_rows = k.permute((1, 0)).load(SMALL_A), k.load(SMALL_B)
    ones = gl.full([16, k.shape[0]], 1.0, BF16, layout=SMALL_A)
    return mma_v2(k_transposed, k_rows, moments), mma_v2(ones, k_rows, key_sum)


@gluon.jit(do_not_specialize=["length", "heads", "segment", "segments"])
def query_gradient_kernel(
    q_map, k_map, v_map, dy_map, y_map, inverse_pointer, delta_pointer, dq_pointer, slots,
    length, heads, segment, segments, BEGIN: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """dq (B,L,H,16) and delta / z (B,H,L), one program per segment, forwards."""
    batch, head, place, number = _place(heads, segment, segments, 1)
    begin = number * segment
    end = gl.minimum(begin + segment, length)
    steps = (end - begin + T - 1) // T
    inverse_pointer += place.to(gl.int64) * length
    delta_pointer += place.to(gl.int64) * length
    dq_pointer += (batch.to(gl.int64) * length * heads + head) * 16
    qs, ks = _allocate_keys(STAGES), _allocate_keys(STAGES)
    # Of y one buffer is enough: it is read before the barrier that the next is fetched behind.
    vs, dys, ys = _allocate_values(STAGES), _allocate_values(STAGES), _allocate_values(1)
    squares_at, features_at = _allocate_squares(), _allocate_squares()
    narrow_at = _allocate_narrow(64), _allocate_narrow(16), _allocate_narrow(16)
    others_at = _allocate_narrow(T), _allocate_narrow(T), _allocate_narrow(T), _allocate_narrow(64)
    _fill_columns(others_at[1].index(0), 1.0, 1.0, 0.0)
    _fill_columns(others_at[2].index(0), 0.0, 0.0, 4.0)
    _fill_pick(others_at[3].index(0))
    for i in gl.static_range(STAGES - 1):
        _expect_all(qs, ks, vs, dys, i, i < steps)
    _expect(ys, 0, 64, True)
    fence_async_shared()
    barrier()
    for i in gl.static_range(STAGES - 1):
        _fetch_all(q_map, k_map, v_map, dy_map, qs, ks, vs, dys, i, batch, head, begin + i * T, i < steps)
    _start_fetch(y_map, ys, 0, batch, head, begin, True)
    # Without it there would be one in the loop.
    barrier()
    s_0, s_1, s_2, linear, moments, key_sum = _zero_state()
    if BEGIN:
        s_0, s_1, s_2, linear, moments, key_sum = _load_state(
            slots + (place * (segments + 1) + number).to(gl.int64) * SLOT
        )
    row = gl.arange(0, T, layout=gl.SliceLayout(1, SQUARE))
    token = gl.arange(0, T, layout=gl.SliceLayout(1, NARROW))
    key = gl.arange(0, 16, layout=gl.SliceLayout(0, NARROW))
    nothing = gl.zeros([T, 64], gl.float32, layout=SQUARE)
    nothing_narrow = gl.zeros([T, 16], gl.float32, layout=NARROW)
    inverse = gl.load(inverse_pointer + begin + token, mask=begin + token < end, other=0.0)
    stage = 0
    phase = 0
    for step in range(steps):
        ahead = gl.where(stage == 0, STAGES - 1, stage - 1)
        more = step + (STAGES - 1) < steps
        first = begin + step * T
        q, k = _await(qs, stage, phase, 16), _await(ks, stage, phase, 16)
        v, dy = _await(vs, stage, phase, 64), _await(dys, stage, phase, 64)
        y = _await(ys, 0, step & 1, 64).load(SQUARE).to(gl.float32)
        dy_rows = dy.load(SQUARE).to(gl.float32)
        delta = gl.sum(dy_rows * y, 1)
        of_row = gl.convert_layout(inverse, gl.SliceLayout(1, SQUARE), assert_trivial=True)
        gl.store(delta_pointer + first + row, delta * of_row, mask=first + row < end)
        squares, features, narrow = _at(squares_at, step), _at(features_at, step), _at(narrow_at, step)
        extra, two, four, pick = _at(others_at, step)
        _two_parts(extra, gl.convert_layout(-delta, gl.SliceLayout(1, SIXTEEN)))
        _store_features(k, features, inverse, False)
        _copy_state(squares, narrow, s_0, s_1, s_2, linear, moments, key_sum)
        fence_async_shared()
        barrier()
        _expect_all(qs, ks, vs, dys, ahead, more)
        _expect(ys, 0, 64, step + 1 < steps)
        r = warpgroup_mma(q, k.permute((1, 0)), nothing, use_acc=False, is_async=True)
        r = warpgroup_mma(extra, four.permute((1, 0)), r, is_async=True)
        da = warpgroup_mma(dy, v.permute((1, 0)), nothing, use_acc=False, is_async=True)
        da = warpgroup_mma(extra, two.permute((1, 0)), da, is_async=True)
        w = warpgroup_mma(q, narrow[1], nothing_narrow, use_acc=False, is_async=True)
        w = warpgroup_mma(extra, narrow[2], w, is_async=True)
        gradient = _start_gradient(dy, squares[1])
        later = first + (STAGES - 1) * T
        _fetch_all(q_map, k_map, v_map, dy_map, qs, ks, vs, dys, ahead, batch, head, later, more)
        _start_fetch(y_map, ys, 0, batch, head, first + T, step + 1 < steps)
        r, da, w = warpgroup_mma_wait(1, [r, da, w])
        dq = gl.convert_layout(-delta, gl.SliceLayout(1, NARROW))[:, None] * w
        dq = warpgroup_mma(dy, narrow[0], dq, is_async=True)
        ds = _not_before(da * r)
        ds = gl.convert_layout(ds.to(BF16), OPERAND, assert_trivial=True)
        dq = warpgroup_mma(ds, k, dq, is_async=True)
        following = _start_gradient(dy, squares[0])
        a, b = q.slice(0, 8, dim=1), q.slice(8, 8, dim=1)
        a_i, b_j = _first_of(a), _second_of(b)
        gradient = warpgroup_mma_wait(3, [gradient])
        picked = _times_second(gradient, b_j)
        dq = warpgroup_mma(picked, pick, dq, is_async=True)
        high = _sum_over_first(gradient, a_i)
        following, dq, ds, picked = warpgroup_mma_wait(0, [following, dq, ds, picked])
        gradient = _start_gradient(dy, squares[2])
        s_0, s_1, s_2, linear, operand = _start_update(k, v, features, s_0, s_1, s_2, linear)
        low = _sum_over_first(following, a_i)
        gradient = warpgroup_mma_wait(4, [gradient])
        high += _sum_over_first(gradient, _first_of(b))
        dq = (dq + _side_by_side(low, high)) * (inverse * 0.0625)[:, None]
        place_q = dq_pointer + ((first + token) * (heads * 16))[:, None] + key[None, :]
        gl.store(place_q, dq.to(BF16), mask=(first + token < end)[:, None] & (key >= 0)[None, :])
        following_token = first + T + token
        inverse = gl.load(inverse_pointer + following_token, mask=following_token < end, other=0.0)
        s_0, s_1, s_2, linear, operand = warpgroup_mma_wait(0, [s_0, s_1, s_2, linear, operand])
        # mma.sync between open wgmma groups would make the assembler wait after each of them.
        moments, key_sum = _key_moments(k, moments, key_sum)
        # All threads have read the copy of the state and the features.
        barrier()
        wrap = stage + 1 == STAGES
        phase = gl.where(wrap, phase ^ 1, phase)
        stage = gl.where(wrap, 0, stage + 1)
