"""`row_linear` in Gluon, on Hopper: weights stream through a ring of shared memory, from before the kernel's turn.

A program takes a tile of outputs (16 a warp) and, with SPLIT > 1, a part of the width; all rows at once. The weight's
tile is the left operand of warpgroup products, x the right one: few rows are their short side. All stages of the ring
are asked for before the program waits for the kernel before it (dependent_launch.py), for nobody writes weights; x
follows. So memory is busy while that kernel ends, and a product's launch and first reads hide behind it.

x is read anew for every tile of outputs, (rows / tile) bytes for each of the weight: at 128 rows as much as the weight
with tiles of 128. Hence wide tiles over parts of the width, so that there are programs enough.

Parts: left to whoever reads y (`PARTS`), or added up, in their order, by the program that is done last (`counters`,
zero before and after). Gated, a tile's rows are 8 values and their 8 gates by turns, as a tensor map of four dimensions
reads them: a thread of a warpgroup product holds rows r and r + 8, a value and its gate.
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
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

# Triton 3.7 renamed it.
barrier = getattr(gl, "thread_barrier", None) or gl.barrier

WIDTH = gl.constexpr(64)  # of a tile: 128 bytes


@gluon.jit
def _fetch_weight(weight_map, tile, bar, step, outputs, GATED: gl.constexpr, TILE: gl.constexpr, pred):
    if GATED:
        first = outputs * (TILE // 16)
        tma.async_copy_global_to_shared(weight_map, [first, 0, 0, step * WIDTH], bar, tile, pred=pred)
    else:
        tma.async_copy_global_to_shared(weight_map, [outputs * TILE, step * WIDTH], bar, tile, pred=pred)


@gluon.jit
def _places(E: gl.constexpr, B: gl.constexpr, step_e, step_b, LAYOUT: gl.constexpr):
    e_E = gl.arange(0, E, layout=gl.SliceLayout(1, LAYOUT))
    b_B = gl.arange(0, B, layout=gl.SliceLayout(0, LAYOUT))
    return e_E[:, None] * step_e + b_B[None, :] * step_b


@gluon.jit
def _inside(E: gl.constexpr, B: gl.constexpr, outputs, rows, LAYOUT: gl.constexpr):
    e_E = gl.arange(0, E, layout=gl.SliceLayout(1, LAYOUT))
    b_B = gl.arange(0, B, layout=gl.SliceLayout(0, LAYOUT))
    return (e_E < outputs)[:, None] & (b_B < rows)[None, :]


@gluon.jit
def _add_bias(y_EB, bias, first, outputs, here, LAYOUT: gl.constexpr):
    e_E = first + gl.arange(0, y_EB.shape[0], layout=gl.SliceLayout(1, LAYOUT))
    return y_EB + gl.load(bias + e_E, mask=(e_E < outputs) & here, other=0.0).to(gl.float32)[:, None]


@gluon.jit
def _store_part(y, bias, y_EB, tile, part, rows, outputs, HAS_BIAS: gl.constexpr, SUMS: gl.constexpr):
    """A summand of y; the first one has the bias."""
    E: gl.constexpr = y_EB.shape[0]
    B: gl.constexpr = y_EB.shape[1]
    if HAS_BIAS:
        y_EB = _add_bias(y_EB, bias, tile * E, outputs, part == 0, SUMS)
    y += part.to(gl.int64) * rows * outputs + tile * E
    gl.store(y + _places(E, B, 1, outputs, SUMS), y_EB, mask=_inside(E, B, outputs - tile * E, rows, SUMS))


@gluon.jit
def _store(
    y, bias, y_EB, tile, rows, outputs, GATED: gl.constexpr, HAS_BIAS: gl.constexpr, SUMS: gl.constexpr,
    LAYOUT: gl.constexpr,
):  # fmt: skip
    """y itself, through its gate if there is one."""
    E: gl.constexpr = y_EB.shape[0]
    B: gl.constexpr = y_EB.shape[1]
    BLOCK: gl.constexpr = E // 2 if GATED else E
    if HAS_BIAS:
        y_EB = _add_bias(y_EB, bias, tile * E, outputs, True, SUMS)
    if GATED:
        value, gate = gl.split(y_EB.reshape([E // 16, 2, 8, B]).permute([0, 2, 3, 1]))
        out = (value * gate / (1.0 + gl.exp(-gate))).reshape([BLOCK, B])
    else:
        out = y_EB
    out = gl.convert_layout(out.to(y.dtype.element_ty), LAYOUT)
    y += tile * BLOCK
    inside = _inside(BLOCK, B, outputs - tile * BLOCK, rows, LAYOUT)
    gl.store(y + _places(BLOCK, B, 1, outputs, LAYOUT), out, mask=inside)


@gluon.jit(do_not_specialize=["rows", "outputs"])
def product_kernel(
    x_map, weight_map, bias, y, parts, counters, rows, outputs,
    K: gl.constexpr, TILE: gl.constexpr, BATCH: gl.constexpr, SPLIT: gl.constexpr, STAGES: gl.constexpr,
    GATED: gl.constexpr, PARTS: gl.constexpr, HAS_BIAS: gl.constexpr, EARLY: gl.constexpr, num_warps: gl.constexpr,
):  # fmt: skip
    """`outputs` of y. PARTS: y (SPLIT, rows, outputs) float32."""
    STEPS: gl.constexpr = K // WIDTH
    BYTES: gl.constexpr = (TILE + BATCH) * WIDTH * 2
    SUMS: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [num_warps, 1], [16, BATCH, 16])
    BLOCK_E: gl.constexpr = TILE // 2 if GATED else TILE
    LANES: gl.constexpr = BLOCK_E // 8 if BLOCK_E < 256 else 32
    ROWS_OUT: gl.constexpr = gl.BlockedLayout([8, 1], [LANES, 32 // LANES], [1, num_warps], [0, 1])
    dtype: gl.constexpr = weight_map.dtype
    tile, part = gl.program_id(0), gl.program_id(1)
    begin = part * STEPS // SPLIT
    count = (part + 1) * STEPS // SPLIT - begin
    if GATED:
        ws = gl.allocate_shared_memory(dtype, [STAGES, TILE // 16, 2, 8, WIDTH], weight_map.layout)
    else:
        ws = gl.allocate_shared_memory(dtype, [STAGES, TILE, WIDTH], weight_map.layout)
    xs = gl.allocate_shared_memory(dtype, [STAGES, BATCH, WIDTH], x_map.layout)
    bars = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(STAGES):
        mbarrier.init(bars.index(i), count=1)
    fence_async_shared()
    barrier()
    for i in gl.static_range(STAGES):
        mbarrier.expect(bars.index(i), BYTES, pred=i < count)
        _fetch_weight(weight_map, ws.index(i), bars.index(i), begin + i, tile, GATED, TILE, i < count)
    if EARLY:
        gdc_launch_dependents()
        gdc_wait()
    for i in gl.static_range(STAGES):
        tma.async_copy_global_to_shared(x_map, [0, (begin + i) * WIDTH], bars.index(i), xs.index(i), pred=i < count)
    y_EB = gl.zeros([TILE, BATCH], gl.float32, SUMS)
    stage = 0
    phase = 0
    freed = STAGES - 1
    for step in range(count):
        mbarrier.wait(bars.index(stage), phase)
        w = ws.index(stage).reshape([TILE, WIDTH])
        y_EB = warpgroup_mma(w, xs.index(stage).permute((1, 0)), y_EB, is_async=True)
        y_EB = warpgroup_mma_wait(1, [y_EB])  # the product of the step before is done
        barrier()
        more = (step > 0) & (step + STAGES - 1 < count)
        later = begin + step + STAGES - 1
        mbarrier.expect(bars.index(freed), BYTES, pred=more)
        _fetch_weight(weight_map, ws.index(freed), bars.index(freed), later, tile, GATED, TILE, more)
        tma.async_copy_global_to_shared(x_map, [0, later * WIDTH], bars.index(freed), xs.index(freed), pred=more)
        freed = stage
        wrap = stage + 1 == STAGES
        phase = gl.where(wrap, phase ^ 1, phase)
        stage = gl.where(wrap, 0, stage + 1)
    y_EB = warpgroup_mma_wait(0, [y_EB])
    if PARTS:
        _store_part(y, bias, y_EB, tile, part, rows, outputs, HAS_BIAS, SUMS)
    elif SPLIT == 1:
        _store(y, bias, y_EB, tile, rows, outputs, GATED, HAS_BIAS, SUMS, ROWS_OUT)
    else:
        slots = parts + tile * (SPLIT * TILE * BATCH) + _places(TILE, BATCH, BATCH, 1, SUMS)
        gl.store(slots + part * (TILE * BATCH), y_EB)
        barrier()
        if gl.atomic_add(counters + tile, 1, sem="acq_rel", scope="gpu") == SPLIT - 1:
            total = gl.zeros([TILE, BATCH], gl.float32, SUMS)
            for i in gl.static_range(SPLIT):
                total += gl.load(slots + i * (TILE * BATCH), cache_modifier=".cg")
            gl.atomic_xchg(counters + tile, 0, sem="relaxed", scope="gpu")
            _store(y, bias, total, tile, rows, outputs, GATED, HAS_BIAS, SUMS, ROWS_OUT)
