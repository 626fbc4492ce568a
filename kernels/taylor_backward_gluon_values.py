"""The sweep for dv: the serial forward, backwards, with queries for keys. Hopper, key width 16, up to 64 values, bf16.

    16 dv^T = R^T phi(k)^T + u^T (weights of later queries),  R^T += u^T phi(q)

R^T (values by features) is an operand where it is, as S^T in `taylor_gluon_serial`; the weight is r^2 / 2 + 4 r + 16.
"""

# mypy: allow-untyped-defs

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from .taylor_gluon_features import (
    ROWS,
    _add_keys,
    _allocate_features,
    _constants,
    _load_state,
    _store_features,
    _zero_state,
)
from .taylor_gluon_serial import (
    _allocate_tiles,
    _await,
    _expect,
    _fetch_step,
    _query_state,
    _state_operands,
)
from .taylor_gluon_states import SLOT
from .taylor_gluon_tiles import (
    BF16,
    NUMBERS,
    OPERAND,
    SQUARE,
    VALUES_SHARED,
    VALUES_TILE,
    T,
    _not_after,
    _place,
    barrier,
)


@gluon.jit
def _scaled_values(dy, inverses):
    """u^T, dy^T with its columns divided by z, as an operand."""
    values = gl.convert_layout(dy.permute((1, 0)).load(OPERAND), SQUARE, assert_trivial=True).to(gl.float32)
    u = (values * inverses.load(gl.SliceLayout(0, SQUARE))[None, :]).to(BF16)
    return gl.convert_layout(u, OPERAND, assert_trivial=True)


@gluon.jit(do_not_specialize=["length", "heads", "segment", "segments"])
def value_sweep_kernel(
    q_map, k_map, dy_map, dv_map, inverse_pointer, slots, length, heads, segment, segments,
    BEGIN: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """dv (B,L,H,V), one program per segment, backwards. BEGIN: from the slot of the segment, counted from the end."""
    batch, head, place, from_end = _place(heads, segment, segments, 1)
    begin = (segments - 1 - from_end) * segment
    end = gl.minimum(begin + segment, length)
    steps = (end - begin + T - 1) // T
    last = begin + (steps - 1) * T
    inverse_pointer += place.to(gl.int64) * length
    # k in the place of q, q in that of k.
    tiles = _allocate_tiles(STAGES)
    dv_tile = gl.allocate_shared_memory(BF16, [1, 1, T, 64], VALUES_TILE)
    weights_tile = gl.allocate_shared_memory(BF16, [T, 64], VALUES_SHARED)
    inverses = gl.allocate_shared_memory(gl.float32, [T], NUMBERS)
    features = _allocate_features()
    constants = _constants(16.0, 1.0)
    for i in gl.static_range(STAGES - 1):
        _expect(tiles, i, i < steps)
    fence_async_shared()
    barrier()
    for i in gl.static_range(STAGES - 1):
        _fetch_step(k_map, q_map, dy_map, tiles, i, batch, head, last - i * T, 0, i < steps)
    rows = gl.arange(0, T, layout=gl.SliceLayout(1, SQUARE))
    inverses.store(gl.load(inverse_pointer + last + rows, mask=last + rows < end, other=0.0))
    barrier()
    r_0, r_1, r_2, _, _ = _zero_state()
    if BEGIN:
        r_0, r_1, r_2, _, _ = _load_state(slots + (place * (segments + 1) + from_end).to(gl.int64) * SLOT)
    stage = 0
    phase = 0
    for step in range(steps):
        first = last - step * T
        pair, dy = _await(tiles, stage, phase)
        k, q = pair.slice(0, T), pair.slice(T, T)
        nothing = gl.zeros([T, T], gl.float32, layout=SQUARE)
        r = warpgroup_mma(k, q.permute((1, 0)), nothing, use_acc=False, is_async=True)
        x = pair.load(ROWS)
        _store_features(x, x, features, constants)
        u = _scaled_values(dy, inverses)
        earlier = gl.load(inverse_pointer + (first - T) + rows, mask=first - T + rows >= begin, other=0.0)
        r = warpgroup_mma_wait(0, [r])
        weights_tile.store(_not_after((r * 0.5 + 4.0) * r + 16.0).to(BF16))
        p_0, p_1, p_2 = _state_operands(r_0, r_1, r_2)
        ahead = gl.where(stage == 0, STAGES - 1, stage - 1)
        more = step + (STAGES - 1) < steps
        fence_async_shared()
        tma.store_wait(0)
        barrier()
        _expect(tiles, ahead, more)
        dv = _query_state(u, weights_tile, features, p_0, p_1, p_2)
        f_0, f_1, f_2 = features[0].slice(T, T), features[1].slice(T, T), features[2].slice(T, T)
        r_0, r_1, r_2, last_operand = _add_keys(u, f_0, f_1, f_2, r_0, r_1, r_2)
        # The tiles of the step before: all threads have passed a barrier since they were read.
        _fetch_step(k_map, q_map, dy_map, tiles, ahead, batch, head, first - (STAGES - 1) * T, 0, more)
        inverses.store(earlier)
        dv, p_0, p_1, p_2 = warpgroup_mma_wait(3, [dv, p_0, p_1, p_2])
        dv_tile.reshape([T, 64]).permute((1, 0)).store((dv * 0.0625).to(BF16))
        r_0, r_1, r_2, u, last_operand = warpgroup_mma_wait(0, [r_0, r_1, r_2, u, last_operand])
        fence_async_shared()
        barrier()
        tma.async_copy_shared_to_global(dv_map, [batch, head, first, 0], dv_tile)
        wrap = stage + 1 == STAGES
        phase = gl.where(wrap, phase ^ 1, phase)
        stage = gl.where(wrap, 0, stage + 1)
    tma.store_wait(0)
