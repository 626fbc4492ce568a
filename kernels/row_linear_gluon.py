"""The kernels of `row_linear` in Gluon, for Hopper: weights are on their way before the kernel in front has ended.

`product_kernel`: a program takes a tile of outputs (16 a warp) and one of SPLIT parts of the width, for all rows at
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

`whole_kernel`, for up to 32 rows: a program takes so few outputs that all it needs of the weight waits in shared
memory; its warps share the width and add up among themselves. x goes from the L2 cache to registers.
"""

# mypy: allow-untyped-defs, disable-error-code="assignment,misc"

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import mma_v2
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

barrier = getattr(gl, "thread_barrier", None) or gl.barrier  # Triton 3.7 renamed it
STAGE = gl.constexpr(64)  # of a part of the width: 128 bytes


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


@gluon.jit
def _rows_of_x(
    x, step, rows, x_row, LENGTH: gl.constexpr, PARTS: gl.constexpr, BATCH: gl.constexpr, LAYOUT: gl.constexpr
):
    """(PARTS, STAGE, BATCH): a step's columns of each part, for all rows."""
    p = gl.arange(0, PARTS, layout=gl.SliceLayout(1, gl.SliceLayout(2, LAYOUT)))
    k = gl.arange(0, STAGE, layout=gl.SliceLayout(0, gl.SliceLayout(2, LAYOUT)))
    b = gl.arange(0, BATCH, layout=gl.SliceLayout(0, gl.SliceLayout(1, LAYOUT)))
    column = p[:, None] * LENGTH + (step * STAGE + k)[None, :]
    return gl.load(x + (column[:, :, None] + (b * x_row)[None, None, :]), mask=(b < rows)[None, None, :], other=0.0)


@gluon.jit(do_not_specialize=["rows"])
def whole_kernel(
    x, weight_map, bias, y, rows, outputs, x_row, K: gl.constexpr, TILE: gl.constexpr, PARTS: gl.constexpr,
    BATCH: gl.constexpr, VECTOR: gl.constexpr, HAS_BIAS: gl.constexpr, EARLY: gl.constexpr, WARPS: gl.constexpr,
):  # fmt: skip
    """A warp takes one of PARTS of the width (and 16 of the rows). VECTOR numbers of a row lie in a thread."""
    LENGTH: gl.constexpr = K // PARTS
    STEPS: gl.constexpr = LENGTH // STAGE
    SUMS: gl.constexpr = gl.NVMMADistributedLayout([2, 0], [PARTS, 1, WARPS // PARTS], [1, 16, 8])
    LEFT: gl.constexpr = gl.DotOperandLayout(0, SUMS, VECTOR)
    RIGHT: gl.constexpr = gl.DotOperandLayout(1, SUMS, VECTOR)
    HOLD: gl.constexpr = STEPS * min(BATCH, 16) <= 112  # x whole in registers
    tile = gl.program_id(0)
    ws = gl.allocate_shared_memory(weight_map.dtype, [STEPS, PARTS, TILE, STAGE], weight_map.layout)
    bars = _barriers(STEPS)
    fence_async_shared()
    barrier()
    for step in gl.static_range(STEPS):
        mbarrier.expect(bars.index(step), PARTS * TILE * STAGE * 2)
        tma.async_copy_global_to_shared(weight_map, [0, tile * TILE, step * STAGE], bars.index(step), ws.index(step))
    if EARLY:
        gdc_launch_dependents()
        gdc_wait()
    held = ()
    if HOLD:
        for step in gl.static_range(STEPS):
            held = held + (_rows_of_x(x, step, rows, x_row, LENGTH, PARTS, BATCH, RIGHT),)  # noqa: RUF005
        barrier()  # the assembler would move the loads behind the first wait
    y_PEB = gl.zeros([PARTS, TILE, BATCH], gl.float32, SUMS)
    for step in gl.static_range(STEPS):
        x_PKB = held[step] if HOLD else _rows_of_x(x, step, rows, x_row, LENGTH, PARTS, BATCH, RIGHT)
        mbarrier.wait(bars.index(step), 0)
        y_PEB = mma_v2(ws.index(step).load(LEFT), x_PKB, y_PEB)
    LAYOUT: gl.constexpr = _layout(BATCH, TILE, WARPS)
    y_BE = gl.convert_layout(gl.sum(y_PEB, 0).trans(), LAYOUT)
    _store_rows(y, bias, y_BE, 0, tile * TILE, rows, outputs, HAS_BIAS, LAYOUT)
