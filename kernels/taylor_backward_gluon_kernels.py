"""Gradients of taylor_attention by serial sweeps, for Hopper in Gluon: key width 16, up to 64 values, bf16.

With r = q . k, u = dy / z, delta = dy . y (see `taylor_backward_triton`), the forward's state S (of k and v) and a
state R, summed from the end (of q and u); K = 16 makes every coefficient a power of two:

    16 dq_t = 1/z_t [ dS.q_t + 4 S1 dy_t - delta_t (M q_t + 4 k1) + sum_s (dy_t . v_s - delta_t) (r_ts + 4) k_s ]
    16 dk_s =         dR.k_s + 4 R1 v_s  + N k_s + 4 n1           + sum_t (u_t . v_s - u_t . y_t) (r_ts + 4) q_t
    32 dv_s =         phi(k_s) R                                  + sum_t (r_ts^2 + 8 r_ts + 32) u_t

dS.q is the gradient by q of w . (phi(q) S), contracted from G = w S^T, 64 features at a time: sum_i G_ij x_i inside a
thread, in float32; the one sum over j (block a b), spread over four lanes, by a product with zeros and ones.
M = sum k k^T, k1 = sum k, N = -sum u.y q q^T, n1 = -sum u.y q.

A step: copy the state (bf16, shared memory), barrier, the products, then the update runs beside the last contraction.
Slots and segments are those of the forward; R's segments are numbered from the end.
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

from .taylor_backward_gluon_blocks import (
    NARROW,
    SMALL_A,
    SMALL_B,
    _add_keys,
    _fill_ones,
    _key_features,
    _load_state,
    _query_features,
    _zero_state,
)
from .taylor_backward_gluon_keys import key_gradient_kernel
from .taylor_backward_gluon_queries import query_gradient_kernel
from .taylor_backward_gluon_query import (
    SIXTEEN,
    _by_rows,
    _copy_squares,
    _fill_pick,
    _fill_two,
    _ring,
    _side_by_side,
    _start_gradient,
    _sum_over_first,
    _times_second,
    query_sweep_kernel,
)
from .taylor_backward_gluon_sums import gradient_sums_kernel
from .taylor_backward_gluon_values import value_sweep_kernel
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

__all__ = [
    "gradient_sums_kernel",
    "key_gradient_kernel",
    "key_value_sweep_kernel",
    "query_gradient_kernel",
    "query_sweep_kernel",
    "value_sweep_kernel",
]


@gluon.jit
def _load_rows(inverse_pointer, delta_pointer, first, end):
    """1 / z by rows of values, -u . y by rows of keys."""
    row = first + gl.arange(0, T, layout=gl.SliceLayout(1, SQUARE))
    token = first + gl.arange(0, T, layout=gl.SliceLayout(1, SIXTEEN))
    inverse = gl.load(inverse_pointer + row, mask=(row < end) & (row >= 0), other=0.0)
    inside = (token < end) & (token >= 0)
    return inverse, -gl.load(delta_pointer + token, mask=inside, other=0.0)


@gluon.jit
def _scale_queries(q, weighted, extra, weight):
    """weighted = -u . y q; the first two columns of extra add up to -u . y."""
    weighted.store((q.load(SIXTEEN).to(gl.float32) * weight[:, None]).to(BF16))
    column = gl.arange(0, 16, layout=gl.SliceLayout(0, SIXTEEN))
    rounded = weight.to(BF16).to(gl.float32)
    rest = gl.where(column[None, :] == 1, (weight - rounded)[:, None], 0.0)
    extra.store(gl.where(column[None, :] == 0, rounded[:, None], rest).to(BF16))


@gluon.jit
def _query_moments(q, weighted, extra, moments, query_sum):
    rows = q.load(SMALL_B)
    moments = mma_v2(weighted.permute((1, 0)).load(SMALL_A), rows, moments)
    return moments, mma_v2(extra.permute((1, 0)).load(SMALL_A), rows, query_sum)


@gluon.jit
def _fetch_key_step(q_map, k_map, v_map, dy_map, qs, ks, vs, dys, bar, batch, head, row, pred, KEYS: gl.constexpr):
    """All tiles of 64 tokens into one stage; v for dk alone."""
    tma.async_copy_global_to_shared(dy_map, [batch, head, row, 0], bar, dys, pred=pred)
    tma.async_copy_global_to_shared(q_map, [batch, head, row, 0], bar, qs, pred=pred)
    tma.async_copy_global_to_shared(k_map, [batch, head, row, 0], bar, ks, pred=pred)
    if KEYS:
        tma.async_copy_global_to_shared(v_map, [batch, head, row, 0], bar, vs, pred=pred)


@gluon.jit
def _causal(x):
    """Zero where the query (column) is before the key (row)."""
    row = gl.arange(0, T, layout=gl.SliceLayout(1, SQUARE))
    column = gl.arange(0, T, layout=gl.SliceLayout(0, SQUARE))
    return gl.where(column[None, :] >= row[:, None], x, 0.0)


@gluon.jit
def _square_operand(x):
    return gl.convert_layout(x.to(BF16), OPERAND, assert_trivial=True)


@gluon.jit
def _key_gradient(q, k, v, u, two, ones, pick, extra, square_0, square_1, square_2, vector, rest_of_vector, smalls):
    """16 dk of 64 keys without the contraction over b b, whose G it returns beside (a, b)."""
    nothing = gl.zeros([T, 64], gl.float32, layout=SQUARE)
    r = warpgroup_mma(k, q.permute((1, 0)), nothing, use_acc=False, is_async=True)
    da = warpgroup_mma(v, u.permute((1, 0)), nothing, use_acc=False, is_async=True)
    da = warpgroup_mma(two, extra.permute((1, 0)), da, is_async=True)
    r, da = warpgroup_mma_wait(0, [r, da])
    gradient = _start_gradient(v, square_1)
    dk = gl.zeros([T, 16], gl.float32, layout=NARROW)
    dk = warpgroup_mma(v, vector, dk, use_acc=False, is_async=True)
    dk = warpgroup_mma(v, rest_of_vector, dk, is_async=True)
    dk = warpgroup_mma(k, smalls.index(0), dk, is_async=True)
    dk = warpgroup_mma(ones, smalls.index(1), dk, is_async=True)
    # In two parts: u, this and dk itself would be three roundings, as much as twice the reference's error.
    exact = _causal(da * (r + 4.0))
    ds = _square_operand(exact)
    rest = _square_operand(exact - exact.to(BF16).to(gl.float32))
    dk = warpgroup_mma(ds, q, dk, is_async=True)
    dk = warpgroup_mma(rest, q, dk, is_async=True)
    a_i, b_i, b_j = _by_rows(k)
    gradient, dk, ds, rest = warpgroup_mma_wait(0, [gradient, dk, ds, rest])
    # The next block's gradient is computed beside the contraction of this one.
    following = _start_gradient(v, square_0)
    picked = _times_second(gradient, b_j)
    dk = warpgroup_mma(picked, pick, dk, is_async=True)
    high = _sum_over_first(gradient, a_i)
    following, dk, picked = warpgroup_mma_wait(0, [following, dk, picked])
    gradient = _start_gradient(v, square_2)
    low = _sum_over_first(following, a_i)
    gradient = warpgroup_mma_wait(0, [gradient])
    return dk, low, high, gradient, b_i


@gluon.jit
def _value_gradient(q, k, u, ones, square_0, square_1, square_2, vector, constant):
    """32 dv of 64 keys."""
    nothing = gl.zeros([T, 64], gl.float32, layout=SQUARE)
    r = warpgroup_mma(k, q.permute((1, 0)), nothing, use_acc=False, is_async=True)
    p_0, p_1, p_2 = _query_features(k)
    r = warpgroup_mma_wait(0, [r])
    dv = warpgroup_mma(k, vector.permute((1, 0)), nothing, use_acc=False, is_async=True)
    dv = warpgroup_mma(ones, constant.permute((1, 0)), dv, is_async=True)
    dv = warpgroup_mma(p_0, square_0, dv, is_async=True)
    dv = warpgroup_mma(p_1, square_1, dv, is_async=True)
    dv = warpgroup_mma(p_2, square_2, dv, is_async=True)
    weights = _square_operand(_causal((r + 8.0) * r + 32.0))
    dv = warpgroup_mma(weights, u, dv, is_async=True)
    dv, p_0, p_1, p_2, weights = warpgroup_mma_wait(0, [dv, p_0, p_1, p_2, weights])
    return dv


@gluon.jit(do_not_specialize=["length", "heads", "segment", "segments"])
def key_value_sweep_kernel(
    q_map, k_map, v_map, dy_map, dv_map, inverse_pointer, delta_pointer, dk_pointer, slots,
    length, heads, segment, segments, KEYS: gl.constexpr, BEGIN: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """dk (B,L,H,16) if KEYS, else dv (B,L,H,V), one program per segment, backwards.

    Two sweeps, for one would have to keep the sums for both: it spilled, and took longer than the two.
    """
    BYTES: gl.constexpr = T * (320 if KEYS else 192)
    batch, head, place, from_end = _place(heads, segment, segments, 1)
    begin = (segments - 1 - from_end) * segment
    end = gl.minimum(begin + segment, length)
    steps = (end - begin + T - 1) // T
    last = begin + (steps - 1) * T
    inverse_pointer += place.to(gl.int64) * length
    delta_pointer += place.to(gl.int64) * length
    dk_pointer += (batch.to(gl.int64) * length * heads + head) * 16
    qs = gl.allocate_shared_memory(BF16, [STAGES, 1, 1, T, 16], KEYS_TILE)
    ks = gl.allocate_shared_memory(BF16, [STAGES, 1, 1, T, 16], KEYS_TILE)
    vs = gl.allocate_shared_memory(BF16, [STAGES if KEYS else 1, 1, 1, T, 64], VALUES_TILE)
    dys = gl.allocate_shared_memory(BF16, [STAGES, 1, 1, T, 64], VALUES_TILE)
    square_0 = gl.allocate_shared_memory(BF16, [64, 64], VALUES_SHARED)
    square_1 = gl.allocate_shared_memory(BF16, [64, 64], VALUES_SHARED)
    square_2 = gl.allocate_shared_memory(BF16, [64, 64], VALUES_SHARED)
    vector = gl.allocate_shared_memory(BF16, [64, 16], KEYS_SHARED)
    constants = gl.allocate_shared_memory(BF16, [64, 16], KEYS_SHARED)
    smalls = gl.allocate_shared_memory(BF16, [2, 16, 16], KEYS_SHARED)
    ones = gl.allocate_shared_memory(BF16, [T, 16], KEYS_SHARED)
    two = gl.allocate_shared_memory(BF16, [T, 16], KEYS_SHARED)
    pick = gl.allocate_shared_memory(BF16, [64, 16], KEYS_SHARED)
    weighted = gl.allocate_shared_memory(BF16, [T, 16], KEYS_SHARED)
    extra = gl.allocate_shared_memory(BF16, [T, 16], KEYS_SHARED)
    bars = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    _ring(bars, STAGES)
    _fill_ones(ones)
    _fill_two(two)
    _fill_pick(pick)
    fence_async_shared()
    barrier()
    for i in gl.static_range(STAGES - 1):
        mbarrier.expect(bars.index(i), BYTES, pred=i < steps)
        _fetch_key_step(
            q_map, k_map, v_map, dy_map, qs.index(i), ks.index(i), vs.index(i if KEYS else 0), dys.index(i),
            bars.index(i), batch, head, last - i * T, i < steps, KEYS,
        )  # fmt: skip
    r_0, r_1, r_2, linear, constant, moments, query_sum = _zero_state()
    if BEGIN:
        r_0, r_1, r_2, linear, constant, moments, query_sum = _load_state(
            slots + (place * (segments + 1) + from_end).to(gl.int64) * SLOT
        )
    token = gl.arange(0, T, layout=gl.SliceLayout(1, NARROW))
    key = gl.arange(0, 16, layout=gl.SliceLayout(0, NARROW))
    inverse, weight = _load_rows(inverse_pointer, delta_pointer, last, end)
    stage = 0
    phase = 0
    for step in range(steps):
        ahead = stage + (STAGES - 1)
        ahead = gl.where(ahead >= STAGES, ahead - STAGES, ahead)
        more = step + (STAGES - 1) < steps
        first = last - step * T
        _copy_squares(square_0, square_1, square_2, r_0, r_1, r_2)
        if KEYS:
            vector.store((linear * 4.0).to(BF16))
            rest = linear * 4.0 - (linear * 4.0).to(BF16).to(gl.float32)
            constants.store(rest.to(BF16))
            smalls.index(0).store(moments.to(BF16))
            smalls.index(1).store((query_sum * 4.0).to(BF16))
        else:
            vector.store((linear * 8.0).to(BF16))
            constants.store((constant * 32.0).to(BF16))
        mbarrier.expect(bars.index(ahead), BYTES, pred=more)
        mbarrier.wait(bars.index(stage), phase)
        q, k = qs.index(stage).reshape([T, 16]), ks.index(stage).reshape([T, 16])
        u = dys.index(stage).reshape([T, 64])
        u.store((u.load(SQUARE).to(gl.float32) * inverse[:, None]).to(BF16))
        if KEYS:
            _scale_queries(q, weighted, extra, weight)
        else:
            tma.store_wait(0)
        inverse, weight = _load_rows(inverse_pointer, delta_pointer, first - T, end)
        fence_async_shared()
        barrier()
        _fetch_key_step(
            q_map, k_map, v_map, dy_map, qs.index(ahead), ks.index(ahead), vs.index(ahead if KEYS else 0),
            dys.index(ahead), bars.index(ahead), batch, head, last - (step + STAGES - 1) * T, more, KEYS,
        )  # fmt: skip
        if KEYS:
            v = vs.index(stage).reshape([T, 64])
            dk, low, high, gradient, b_i = _key_gradient(
                q, k, v, u, two, ones, pick, extra, square_0, square_1, square_2, vector, constants, smalls
            )
            moments, query_sum = _query_moments(q, weighted, extra, moments, query_sum)
            f_0, f_1, f_2 = _key_features(q)
            linear = warpgroup_mma(u.permute((1, 0)), q, linear, is_async=True)
            r_0 = warpgroup_mma(f_0, u, r_0, is_async=True)
            r_1 = warpgroup_mma(f_1, u, r_1, is_async=True)
            r_2 = warpgroup_mma(f_2, u, r_2, is_async=True)
            high += _sum_over_first(gradient, b_i)
            dk = (dk + _side_by_side(low, high)) * 0.0625
            place_k = dk_pointer + ((first + token) * (heads * 16))[:, None] + key[None, :]
            gl.store(place_k, dk.to(BF16), mask=(first + token < end)[:, None] & (key >= 0)[None, :])
        else:
            dv = _value_gradient(q, k, u, ones, square_0, square_1, square_2, vector, constants)
            f_0, f_1, f_2 = _key_features(q)
            r_0, r_1, r_2, linear, constant = _add_keys(q, u, ones, f_0, f_1, f_2, r_0, r_1, r_2, linear, constant)
            # v's place is free.
            dv_tile = vs.index(0)
            dv_tile.reshape([T, 64]).store((dv * 0.03125).to(BF16))
            fence_async_shared()
            barrier()
            tma.async_copy_shared_to_global(dv_map, [batch, head, first, 0], dv_tile)
        r_0, r_1, r_2, linear, constant, f_0, f_1, f_2 = warpgroup_mma_wait(
            0, [r_0, r_1, r_2, linear, constant, f_0, f_1, f_2]
        )
        wrap = stage + 1 == STAGES
        phase = gl.where(wrap, phase ^ 1, phase)
        stage = gl.where(wrap, 0, stage + 1)
    if not KEYS:
        tma.store_wait(0)
