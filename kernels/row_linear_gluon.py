"""The kernel of `row_linear` in Gluon, for Hopper: weights are on their way before the kernel in front has ended.

A program takes a tile of outputs (16 a warp) and one of SPLIT parts of the width, for all rows at
once. The weight's tile is the left operand of warpgroup products, x the right one: few rows are their short side.
Weights and x go through rings of their own in shared memory, for nobody writes weights: all stages of theirs are asked
for before the program waits for the kernel in front (`griddepcontrol`), x follows. The next kernel may be launched from
then on. Its programs start where multiprocessors have room for their rings: beside this kernel's if rings are small or
programs few, else as each of this kernel's programs ends.

Parts of a sum lie in `parts`, (tiles, SPLIT, BATCH, TILE) in float32, which the L2 cache holds. They are added in their
order, whoever comes last: with MEET all programs of a tile wait for each other and each adds up its share of the rows,
so that none has to read the whole tile; otherwise the last one adds up everything. Programs that wait never wait for
one that cannot start: a launch has no more of them than there are multiprocessors, the kernel in front does not wait
for it, and the one behind is only launched once all its programs run. `counters` count on from launch to launch, so
that nobody has to clear them; in a block of dependents each launch has zeros of its own.
"""

# mypy: allow-untyped-defs, disable-error-code="assignment,misc"

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

barrier = getattr(gl, "thread_barrier", None) or gl.barrier  # Triton 3.7 renamed it


@gluon.constexpr_function
def _layout(rows, tile, warps):
    """Of rows whose outputs lie side by side: up to 16 bytes a thread."""
    vector = min(4, max(1, rows * tile // (32 * warps)))
    lanes = min(32, tile // vector)
    along = min(warps, tile // (vector * lanes))
    return gl.BlockedLayout([1, vector], [32 // lanes, lanes], [warps // along, along], [1, 0])


@gluon.jit
def _fetch_weight(weight_map, ring, bar, tile, step, TILE: gl.constexpr, WIDTH: gl.constexpr, pred):
    mbarrier.expect(bar, TILE * WIDTH * 2, pred=pred)
    tma.async_copy_global_to_shared(weight_map, [tile * TILE, step * WIDTH], bar, ring, pred=pred)


@gluon.jit
def _fetch_x(x_map, ring, bar, step, BATCH: gl.constexpr, WIDTH: gl.constexpr, pred):
    mbarrier.expect(bar, BATCH * WIDTH * 2, pred=pred)
    tma.async_copy_global_to_shared(x_map, [0, step * WIDTH], bar, ring, pred=pred)


@gluon.jit
def _next(stage, phase, STAGES: gl.constexpr):
    """The stage after this one, and the phase that its barrier completes next."""
    wrap = stage + 1 == STAGES
    return gl.where(wrap, 0, stage + 1), gl.where(wrap, phase ^ 1, phase)


@gluon.jit
def _barriers(COUNT: gl.constexpr):
    bars = gl.allocate_shared_memory(gl.int64, [COUNT, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(COUNT):
        mbarrier.init(bars.index(i), count=1)
    return bars


@gluon.jit
def _seen(counter):
    """What the counter has come to; what was written before that is seen from here on."""
    code: gl.constexpr = "ld.acquire.gpu.global.u32 $0, [$1];"
    return gl.inline_asm_elementwise(code, "=r,l", [counter], dtype=gl.int32, is_pure=False, pack=1)


@gluon.jit
def _store_rows(y, bias, y_BE, row, first, rows, outputs, HAS_BIAS: gl.constexpr, LAYOUT: gl.constexpr):
    """Rows from `row` and outputs from `first` on, as far as there are any."""
    b = row + gl.arange(0, y_BE.shape[0], layout=gl.SliceLayout(1, LAYOUT))
    e = first + gl.arange(0, y_BE.shape[1], layout=gl.SliceLayout(0, LAYOUT))
    if HAS_BIAS:
        y_BE += gl.load(bias + e, mask=e < outputs, other=0.0).to(gl.float32)[None, :]
    inside = (b < rows)[:, None] & (e < outputs)[None, :]
    gl.store(y + (b[:, None] * outputs + e[None, :]), y_BE.to(y.dtype.element_ty), mask=inside)


@gluon.jit
def _sum_of_parts(
    parts, row, SHARE: gl.constexpr, BATCH: gl.constexpr, TILE: gl.constexpr, SPLIT: gl.constexpr, LAYOUT: gl.constexpr
):
    """Of SHARE rows from `row` on, read from the L2 cache."""
    b = row + gl.arange(0, SHARE, layout=gl.SliceLayout(1, LAYOUT))
    e = gl.arange(0, TILE, layout=gl.SliceLayout(0, LAYOUT))
    place = parts + (b[:, None] * TILE + e[None, :])
    total = gl.load(place, cache_modifier=".cg")
    for i in gl.static_range(1, SPLIT):
        total += gl.load(place + i * (BATCH * TILE), cache_modifier=".cg")
    return total


@gluon.jit(do_not_specialize=["rows", "steps"])
def product_kernel(
    x_map, weight_map, bias, y, parts, counters, rows, outputs, steps,
    TILE: gl.constexpr, WIDTH: gl.constexpr, BATCH: gl.constexpr, SPLIT: gl.constexpr, WEIGHT_STAGES: gl.constexpr,
    X_STAGES: gl.constexpr, MEET: gl.constexpr, HAS_BIAS: gl.constexpr, EARLY: gl.constexpr, WARPS: gl.constexpr,
):  # fmt: skip
    """`steps` of WIDTH make the width; BATCH: rows with those that are not there. EARLY: as a dependent."""
    SUMS: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [WARPS, 1], [16, BATCH, 16])
    dtype: gl.constexpr = weight_map.dtype
    tile, part = gl.program_id(0), gl.program_id(1)
    begin = part * steps // SPLIT
    count = (part + 1) * steps // SPLIT - begin
    ws = gl.allocate_shared_memory(dtype, [WEIGHT_STAGES, TILE, WIDTH], weight_map.layout)
    xs = gl.allocate_shared_memory(dtype, [X_STAGES, BATCH, WIDTH], x_map.layout)
    w_bars, x_bars = _barriers(WEIGHT_STAGES), _barriers(X_STAGES)
    fence_async_shared()
    barrier()
    for i in gl.static_range(WEIGHT_STAGES):
        _fetch_weight(weight_map, ws.index(i), w_bars.index(i), tile, begin + i, TILE, WIDTH, i < count)
    if EARLY:
        gdc_launch_dependents()
        gdc_wait()
    for i in gl.static_range(X_STAGES):
        _fetch_x(x_map, xs.index(i), x_bars.index(i), begin + i, BATCH, WIDTH, i < count)
    y_EB = gl.zeros([TILE, BATCH], gl.float32, SUMS)
    w_stage, w_phase, w_freed = 0, 0, WEIGHT_STAGES - 1
    x_stage, x_phase, x_freed = 0, 0, X_STAGES - 1
    for step in range(count):
        mbarrier.wait(w_bars.index(w_stage), w_phase)
        mbarrier.wait(x_bars.index(x_stage), x_phase)
        y_EB = warpgroup_mma(ws.index(w_stage), xs.index(x_stage).permute((1, 0)), y_EB, is_async=True)
        y_EB = warpgroup_mma_wait(1, [y_EB])  # the product of the step before is done
        barrier()
        w_later, x_later = step + WEIGHT_STAGES - 1, step + X_STAGES - 1
        more = (step > 0) & (w_later < count)
        _fetch_weight(weight_map, ws.index(w_freed), w_bars.index(w_freed), tile, begin + w_later, TILE, WIDTH, more)
        more = (step > 0) & (x_later < count)
        _fetch_x(x_map, xs.index(x_freed), x_bars.index(x_freed), begin + x_later, BATCH, WIDTH, more)
        w_freed, x_freed = w_stage, x_stage
        w_stage, w_phase = _next(w_stage, w_phase, WEIGHT_STAGES)
        x_stage, x_phase = _next(x_stage, x_phase, X_STAGES)
    y_EB = warpgroup_mma_wait(0, [y_EB])
    barrier()  # what follows takes the rings' place: the compiler does not see that the other warps' products read them
    if SPLIT == 1:
        WHOLE: gl.constexpr = _layout(BATCH, TILE, WARPS)
        _store_rows(y, bias, gl.convert_layout(y_EB.trans(), WHOLE), 0, tile * TILE, rows, outputs, HAS_BIAS, WHOLE)
    else:
        parts += tile * (SPLIT * BATCH * TILE)
        e = gl.arange(0, TILE, layout=gl.SliceLayout(1, SUMS))
        b = gl.arange(0, BATCH, layout=gl.SliceLayout(0, SUMS))
        gl.store(parts + (part * (BATCH * TILE) + e[:, None] + b[None, :] * TILE), y_EB)
        barrier()
        ticket = gl.atomic_add(counters + tile, 1, sem="acq_rel", scope="gpu")
        SHARE: gl.constexpr = BATCH // SPLIT if MEET else BATCH
        SHARES: gl.constexpr = _layout(SHARE, TILE, WARPS)
        row = 0
        last = ticket % SPLIT == SPLIT - 1
        if MEET:
            row = part * SHARE
            while _seen(counters + tile) - (ticket // SPLIT + 1) * SPLIT < 0:
                pass
            barrier()
        if MEET or last:
            total = _sum_of_parts(parts, row, SHARE, BATCH, TILE, SPLIT, SHARES)
            _store_rows(y, bias, total, row, tile * TILE, rows, outputs, HAS_BIAS, SHARES)
