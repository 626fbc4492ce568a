"""The sums of segments that the sweeps for dk and dv begin with. Hopper, key width 16, up to 64 values, bf16.

R^T = sum dy^T phi(q) / z and, for the normaliser, N = -sum delta / z q q^T and n1 = -sum delta / z q, in the order of a
forward state (`taylor_gluon_states`). Segments are numbered from the end.
"""

# mypy: allow-untyped-defs

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    mma_v2,
    warpgroup_mma_wait,
)

from .taylor_gluon_features import (
    ROWS,
    SMALL,
    SMALL_A,
    SMALL_B,
    STEP,
    _add_keys,
    _allocate_features,
    _store_features,
    _store_state,
    _zero_state,
)
from .taylor_gluon_states import SLOT
from .taylor_gluon_tiles import (
    BF16,
    KEYS_SHARED,
    KEYS_TILE,
    OPERAND,
    VALUES_TILE,
    _allocate_barriers,
    _fetch,
    _place,
    barrier,
)


@gluon.jit
def _load_by_rows(inverse_pointer, delta_pointer, first, end):
    """1 / z and -u . y of the 128 tokens from `first` on."""
    token = first + gl.arange(0, STEP, layout=gl.SliceLayout(1, ROWS))
    inverse = gl.load(inverse_pointer + token, mask=token < end, other=0.0)
    return inverse, -gl.load(delta_pointer + token, mask=token < end, other=0.0)


@gluon.jit(do_not_specialize=["length", "heads", "segment", "segments"])
def gradient_sums_kernel(
    q_map, dy_map, inverse_pointer, delta_pointer, slots, length, heads, segment, segments, STAGES: gl.constexpr
):
    """The sum of each segment but the first, to the slot after its own, counted from the end."""
    batch, head, place, number = _place(heads, segment, segments - 1, 1)
    begin = (segments - 1 - number) * segment
    end = gl.minimum(begin + segment, length)
    steps = (end - begin + STEP - 1) // STEP
    inverse_pointer += place.to(gl.int64) * length
    delta_pointer += place.to(gl.int64) * length
    qs = gl.allocate_shared_memory(BF16, [STAGES, 1, 1, STEP, 16], KEYS_TILE)
    dys = gl.allocate_shared_memory(BF16, [STAGES, 1, 1, STEP, 64], VALUES_TILE)
    q_bars, dy_bars = _allocate_barriers(STAGES), _allocate_barriers(STAGES)
    features = _allocate_features()
    weighted = gl.allocate_shared_memory(BF16, [STEP, 16], KEYS_SHARED)
    weights = gl.allocate_shared_memory(BF16, [STEP, 16], KEYS_SHARED)
    fence_async_shared()
    barrier()
    for i in gl.static_range(STAGES - 1):
        mbarrier.expect(q_bars.index(i), STEP * 32, pred=i < steps)
        mbarrier.expect(dy_bars.index(i), STEP * 128, pred=i < steps)
        _fetch(q_map, qs.index(i), q_bars.index(i), batch, head, begin + i * STEP, 0, i < steps)
        _fetch(dy_map, dys.index(i), dy_bars.index(i), batch, head, begin + i * STEP, 0, i < steps)
    inverse, weight = _load_by_rows(inverse_pointer, delta_pointer, begin, end)
    barrier()
    r_0, r_1, r_2, moments, query_sum = _zero_state()
    query_sum = gl.zeros([16, 16], gl.float32, layout=SMALL)
    column = gl.arange(0, 16, layout=gl.SliceLayout(0, ROWS))
    stage = 0
    phase = 0
    for step in range(steps):
        later = begin + (step + STAGES - 1) * STEP
        more = step + (STAGES - 1) < steps
        mbarrier.wait(q_bars.index(stage), phase)
        mbarrier.wait(dy_bars.index(stage), phase)
        q, dy = qs.index(stage).reshape([STEP, 16]), dys.index(stage).reshape([STEP, 64])
        rows = q.load(ROWS)
        in_float = rows.to(gl.float32)
        constants = gl.where(column[None, :] == 0, inverse[:, None], 0.0).to(BF16)
        _store_features(rows, (in_float * inverse[:, None]).to(BF16), features, constants)
        weighted.store((in_float * weight[:, None]).to(BF16))
        weights.store(gl.where(column[None, :] == 0, weight[:, None], 0.0).to(BF16))
        values = dy.permute((1, 0)).load(OPERAND)
        inverse, weight = _load_by_rows(inverse_pointer, delta_pointer, begin + (step + 1) * STEP, end)
        fence_async_shared()
        barrier()
        # mma.sync between open wgmma groups would make the assembler wait after each of them.
        q_rows = q.load(SMALL_B)
        moments = mma_v2(weighted.permute((1, 0)).load(SMALL_A), q_rows, moments)
        query_sum = mma_v2(weights.permute((1, 0)).load(SMALL_A), q_rows, query_sum)
        ahead = gl.where(stage == 0, STAGES - 1, stage - 1)
        mbarrier.expect(q_bars.index(ahead), STEP * 32, pred=more)
        mbarrier.expect(dy_bars.index(ahead), STEP * 128, pred=more)
        r_0, r_1, r_2, last = _add_keys(values, features[0], features[1], features[2], r_0, r_1, r_2)
        _fetch(q_map, qs.index(ahead), q_bars.index(ahead), batch, head, later, 0, more)
        _fetch(dy_map, dys.index(ahead), dy_bars.index(ahead), batch, head, later, 0, more)
        r_0, r_1, r_2, values, last = warpgroup_mma_wait(0, [r_0, r_1, r_2, values, last])
        barrier()
        wrap = stage + 1 == STAGES
        phase = gl.where(wrap, phase ^ 1, phase)
        stage = gl.where(wrap, 0, stage + 1)
    slot = slots + (place * (segments + 1) + number + 1).to(gl.int64) * SLOT
    _store_state(slot, r_0, r_1, r_2, moments, query_sum * 4.0, 0.0)
