"""The sums of segments of taylor_attention. Hopper, key width 16, 64 values, bf16."""

# mypy: allow-untyped-defs

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, mbarrier, warpgroup_mma_wait

from .taylor_gluon_features import (
    ROWS,
    STEP,
    _add_keys,
    _allocate_features,
    _constants,
    _key_moments,
    _store_features,
    _store_state,
    _zero_state,
)
from .taylor_gluon_states import SLOT
from .taylor_gluon_tiles import BF16, KEYS_TILE, OPERAND, VALUES_TILE, _allocate_barriers, _fetch, _place, barrier


@gluon.jit(do_not_specialize=["length", "heads", "segment", "segments", "value_tiles"])
def segment_sums_kernel(k_map, v_map, slots, length, heads, segment, segments, value_tiles, STAGES: gl.constexpr):
    """The sum of each segment but the last, (segments - 1) programs per sequence and value tile, to the slot after."""
    batch, head, place, number = _place(heads, segment, segments - 1, value_tiles)
    begin, column = number * segment, place % value_tiles * 64
    steps = segment // STEP
    ks = gl.allocate_shared_memory(BF16, [STAGES, 1, 1, STEP, 16], KEYS_TILE)
    vs = gl.allocate_shared_memory(BF16, [STAGES, 1, 1, STEP, 64], VALUES_TILE)
    k_bars, v_bars = _allocate_barriers(STAGES), _allocate_barriers(STAGES)
    features = _allocate_features()
    fence_async_shared()
    barrier()
    for i in gl.static_range(STAGES - 1):
        mbarrier.expect(k_bars.index(i), STEP * 32, pred=i < steps)
        mbarrier.expect(v_bars.index(i), STEP * 128, pred=i < steps)
        _fetch(k_map, ks.index(i), k_bars.index(i), batch, head, begin + i * STEP, 0, i < steps)
        _fetch(v_map, vs.index(i), v_bars.index(i), batch, head, begin + i * STEP, column, i < steps)
    barrier()
    s_0, s_1, s_2, moments, key_sum = _zero_state()
    constants = _constants(1.0, 1.0)
    stage = 0
    phase = 0
    for step in range(steps):
        mbarrier.wait(k_bars.index(stage), phase)
        mbarrier.wait(v_bars.index(stage), phase)
        k, v = ks.index(stage).reshape([STEP, 16]), vs.index(stage).reshape([STEP, 64])
        # mma.sync between open wgmma groups would make the assembler wait after each of them.
        moments, key_sum = _key_moments(k, moments, key_sum)
        x = k.load(ROWS)
        _store_features(x, x, features, constants)
        values = v.permute((1, 0)).load(OPERAND)
        fence_async_shared()
        barrier()
        ahead = gl.where(stage == 0, STAGES - 1, stage - 1)
        more = step + (STAGES - 1) < steps
        later = begin + (step + STAGES - 1) * STEP
        mbarrier.expect(k_bars.index(ahead), STEP * 32, pred=more)
        mbarrier.expect(v_bars.index(ahead), STEP * 128, pred=more)
        s_0, s_1, s_2, last = _add_keys(values, features[0], features[1], features[2], s_0, s_1, s_2)
        _fetch(k_map, ks.index(ahead), k_bars.index(ahead), batch, head, later, 0, more)
        _fetch(v_map, vs.index(ahead), v_bars.index(ahead), batch, head, later, column, more)
        s_0, s_1, s_2, values, last = warpgroup_mma_wait(0, [s_0, s_1, s_2, values, last])
        barrier()
        wrap = stage + 1 == STAGES
        phase = gl.where(wrap, phase ^ 1, phase)
        stage = gl.where(wrap, 0, stage + 1)
    slot = slots + (place * (segments + 1) + number + 1).to(gl.int64) * SLOT
    _store_state(slot, s_0, s_1, s_2, moments, key_sum, segment.to(gl.float32))
