"""The sweep for dk, backwards: that for dq with R for S; see `taylor_backward_gluon_queries`."""

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
    PRODUCTS,
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
    _expect_all,
    _fetch_all,
    _fill_columns,
    _fill_pick,
    _first_of,
    _load_state,
    _scaled,
    _second_of,
    _side_by_side,
    _start_gradient,
    _start_update,
    _store_features,
    _sum_over_first,
    _times_second,
    _two_parts,
    _zero_state,
)
from .taylor_gluon_states import SLOT
from .taylor_gluon_tiles import BF16, KEYS_SHARED, NUMBERS, OPERAND, SQUARE, T, _not_after, _place, barrier


@gluon.jit
def _load_rows(inverse_pointer, delta_pointer, first, end):
    """1 / z by rows of features and of keys, -delta / z by the latter."""
    row = first + gl.arange(0, T, layout=gl.SliceLayout(1, gl.SliceLayout(2, PRODUCTS)))
    token = first + gl.arange(0, T, layout=gl.SliceLayout(1, SIXTEEN))
    inside = (token < end) & (token >= 0)
    of_features = gl.load(inverse_pointer + row, mask=(row < end) & (row >= 0), other=0.0)
    inverse = gl.load(inverse_pointer + token, mask=inside, other=0.0)
    return of_features, inverse, -gl.load(delta_pointer + token, mask=inside, other=0.0)


@gluon.jit
def _scale_queries(q, scaled, weighted, extra, inverses, inverse, weight):
    """q / z, -delta / z q, -delta in two parts."""
    rows = q.load(SIXTEEN)
    scaled.store(_scaled(rows, inverse))
    inverses.store(inverse)
    weighted.store(_scaled(rows, weight))
    _two_parts(extra, gl.where(inverse > 0.0, weight / inverse, 0.0))


@gluon.jit
def _query_moments(q, weighted, ones, moments, query_sum):
    transposed = weighted.permute((1, 0)).load(SMALL_A)
    moments = mma_v2(transposed, q.load(SMALL_B), moments)
    return moments, mma_v2(ones.permute((1, 0)).load(SMALL_A), weighted.load(SMALL_B), query_sum)


@gluon.jit(do_not_specialize=["length", "heads", "segment", "segments"])
def key_gradient_kernel(
    q_map, k_map, v_map, dy_map, inverse_pointer, delta_pointer, dk_pointer, slots,
    length, heads, segment, segments, BEGIN: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """dk (B,L,H,16), one program per segment, backwards."""
    batch, head, place, from_end = _place(heads, segment, segments, 1)
    begin = (segments - 1 - from_end) * segment
    end = gl.minimum(begin + segment, length)
    steps = (end - begin + T - 1) // T
    last = begin + (steps - 1) * T
    inverse_pointer += place.to(gl.int64) * length
    delta_pointer += place.to(gl.int64) * length
    dk_pointer += (batch.to(gl.int64) * length * heads + head) * 16
    qs, ks = _allocate_keys(STAGES), _allocate_keys(STAGES)
    vs, dys = _allocate_values(STAGES), _allocate_values(STAGES)
    squares_at, features_at = _allocate_squares(), _allocate_squares()
    narrow_at = _allocate_narrow(64), _allocate_narrow(16), _allocate_narrow(16)
    constants_at = _allocate_narrow(T), _allocate_narrow(T), _allocate_narrow(T), _allocate_narrow(64)
    rows_at = _allocate_narrow(T), _allocate_narrow(T)
    inverses = gl.allocate_shared_memory(gl.float32, [T], NUMBERS)
    weighted = gl.allocate_shared_memory(BF16, [T, 16], KEYS_SHARED)
    _fill_columns(constants_at[0].index(0), 0.0, 0.0, 1.0)
    _fill_columns(constants_at[1].index(0), 1.0, 1.0, 0.0)
    _fill_columns(constants_at[2].index(0), 4.0, 0.0, 0.0)
    _fill_pick(constants_at[3].index(0))
    for i in gl.static_range(STAGES - 1):
        _expect_all(qs, ks, vs, dys, i, i < steps)
    fence_async_shared()
    barrier()
    for i in gl.static_range(STAGES - 1):
        _fetch_all(q_map, k_map, v_map, dy_map, qs, ks, vs, dys, i, batch, head, last - i * T, i < steps)
    # Without it there would be one in the loop.
    barrier()
    r_0, r_1, r_2, linear, moments, query_sum = _zero_state()
    if BEGIN:
        r_0, r_1, r_2, linear, moments, query_sum = _load_state(
            slots + (place * (segments + 1) + from_end).to(gl.int64) * SLOT
        )
    token = gl.arange(0, T, layout=gl.SliceLayout(1, NARROW))
    key = gl.arange(0, 16, layout=gl.SliceLayout(0, NARROW))
    nothing = gl.zeros([T, 64], gl.float32, layout=SQUARE)
    of_features, inverse, weight = _load_rows(inverse_pointer, delta_pointer, last, end)
    stage = 0
    phase = 0
    for step in range(steps):
        ahead = gl.where(stage == 0, STAGES - 1, stage - 1)
        more = step + (STAGES - 1) < steps
        first = last - step * T
        q, k = _await(qs, stage, phase, 16), _await(ks, stage, phase, 16)
        v, dy = _await(vs, stage, phase, 64), _await(dys, stage, phase, 64)
        squares, features, narrow = _at(squares_at, step), _at(features_at, step), _at(narrow_at, step)
        ones, two, four, pick = _at(constants_at, step)
        scaled, extra = _at(rows_at, step)
        _scale_queries(q, scaled, weighted, extra, inverses, inverse, weight)
        _store_features(q, features, of_features, True)
        of_features, inverse, weight = _load_rows(inverse_pointer, delta_pointer, first - T, end)
        _copy_state(squares, narrow, r_0, r_1, r_2, linear, moments, query_sum)
        fence_async_shared()
        barrier()
        _expect_all(qs, ks, vs, dys, ahead, more)
        r = warpgroup_mma(k, q.permute((1, 0)), nothing, use_acc=False, is_async=True)
        r = warpgroup_mma(two, four.permute((1, 0)), r, is_async=True)
        da = warpgroup_mma(v, dy.permute((1, 0)), nothing, use_acc=False, is_async=True)
        da = warpgroup_mma(two, extra.permute((1, 0)), da, is_async=True)
        gradient = _start_gradient(v, squares[1])
        later = first - (STAGES - 1) * T
        _fetch_all(q_map, k_map, v_map, dy_map, qs, ks, vs, dys, ahead, batch, head, later, more)
        r, da = warpgroup_mma_wait(1, [r, da])
        dk = gl.zeros([T, 16], gl.float32, layout=NARROW)
        dk = warpgroup_mma(v, narrow[0], dk, use_acc=False, is_async=True)
        dk = warpgroup_mma(k, narrow[1], dk, is_async=True)
        dk = warpgroup_mma(ones, narrow[2], dk, is_async=True)
        # Divided by z before it is rounded: with q / z in its stead dk would have three roundings, twice the error.
        ds = _not_after(da * r) * inverses.load(gl.SliceLayout(0, SQUARE))[None, :]
        ds = gl.convert_layout(ds.to(BF16), OPERAND, assert_trivial=True)
        dk = warpgroup_mma(ds, q, dk, is_async=True)
        following = _start_gradient(v, squares[0])
        a, b = k.slice(0, 8, dim=1), k.slice(8, 8, dim=1)
        a_i, b_j = _first_of(a), _second_of(b)
        gradient = warpgroup_mma_wait(5, [gradient])
        picked = _times_second(gradient, b_j)
        dk = warpgroup_mma(picked, pick, dk, is_async=True)
        high = _sum_over_first(gradient, a_i)
        following, dk, ds, picked = warpgroup_mma_wait(0, [following, dk, ds, picked])
        gradient = _start_gradient(v, squares[2])
        r_0, r_1, r_2, linear, operand = _start_update(scaled, dy, features, r_0, r_1, r_2, linear)
        low = _sum_over_first(following, a_i)
        gradient = warpgroup_mma_wait(4, [gradient])
        high += _sum_over_first(gradient, _first_of(b))
        dk = (dk + _side_by_side(low, high)) * 0.0625
        place_k = dk_pointer + ((first + token) * (heads * 16))[:, None] + key[None, :]
        gl.store(place_k, dk.to(BF16), mask=(first + token < end)[:, None] & (key >= 0)[None, :])
        r_0, r_1, r_2, linear, operand = warpgroup_mma_wait(0, [r_0, r_1, r_2, linear, operand])
        # mma.sync between open wgmma groups would make the assembler wait after each of them.
        moments, query_sum = _query_moments(q, weighted, ones, moments, query_sum)
        # All threads have read the copy of the state and the features.
        barrier()
        wrap = stage + 1 == STAGES
        phase = gl.where(wrap, phase ^ 1, phase)
        stage = gl.where(wrap, 0, stage + 1)
