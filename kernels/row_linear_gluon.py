"""The kernel of `row_linear` in Gluon, for Hopper: weights are on their way before the kernel in front has ended.

A program takes a tile of outputs (16 a warp), one of SPLIT parts of the width and one group of BATCH rows. The weight's
tile is the left operand of warpgroup products, x the right one: few rows are their short side. Weights and x go through
rings of their own in shared memory, for nobody writes weights: all stages of theirs are asked for before the program
waits for the kernel in front (`griddepcontrol`), x follows. The next kernel may be launched from then on. Its programs
start where multiprocessors have room for their rings: beside this kernel's if rings are small or programs few, else as
each of this kernel's programs ends.

Parts of a sum lie in `parts`, (tiles, groups, SPLIT, BATCH, TILE) in float32, which the L2 cache holds. They are added
in their order, whoever comes last: with MEET all programs of a tile wait for each other and each adds up its share of
the rows, so that none has to read the whole tile; otherwise the last one adds up everything. Programs that wait never
wait for one that cannot start: a launch has no more of them than there are multiprocessors, the kernel in front does
not wait for it, and the one behind is only launched once all its programs run. `counters` count on from launch to
launch, so that nobody has to clear them; in a block of dependents each launch has zeros of its own.
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

from .row_linear_ends_gluon import (
    convolved,
    halves_layout,
    inverse_rms,
    rows_layout,
    silu,
    store_rows,
    store_stream,
    two_of_pairs,
)

barrier = getattr(gl, "thread_barrier", None) or gl.barrier  # Triton 3.7 renamed it


@gluon.jit
def _fetch_weight(
    weight_map, ring, bar, tile, step, TILE: gl.constexpr, WIDTH: gl.constexpr, PAIRS: gl.constexpr, pred
):
    mbarrier.expect(bar, TILE * WIDTH * 2, pred=pred)
    if PAIRS:
        tma.async_copy_global_to_shared(weight_map, [tile * (TILE // 2), 0, step * WIDTH], bar, ring, pred=pred)
    else:
        tma.async_copy_global_to_shared(weight_map, [tile * TILE, step * WIDTH], bar, ring, pred=pred)


@gluon.jit
def _fetch_x(x_map, ring, bar, row, step, BATCH: gl.constexpr, WIDTH: gl.constexpr, pred):
    mbarrier.expect(bar, BATCH * WIDTH * 2, pred=pred)
    tma.async_copy_global_to_shared(x_map, [row, step * WIDTH], bar, ring, pred=pred)


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


@gluon.jit(do_not_specialize=["rows", "steps", "square_parts", "width"])
def product_kernel(
    x_map, weight_map, bias, y, parts, counters, squares, residual, gain, new_residual, new_squares, taps, taps_bias,
    state, rows, outputs, steps, square_parts, width, eps,
    TILE: gl.constexpr, WIDTH: gl.constexpr, BATCH: gl.constexpr, SPLIT: gl.constexpr, WEIGHT_STAGES: gl.constexpr,
    X_STAGES: gl.constexpr, MEET: gl.constexpr, HAS_BIAS: gl.constexpr, EARLY: gl.constexpr, WARPS: gl.constexpr,
    PARTS: gl.constexpr, END: gl.constexpr, HAS_TAPS_BIAS: gl.constexpr,
):  # fmt: skip
    """`steps` of WIDTH make the width; BATCH: rows of a group with those that are not there. EARLY: as a dependent.

    PARTS, of a norm that is not applied yet, the sums of squares of each row, with those that are not there; 0: x is
    normalised. END: "" stores the sums, "gate" and "conv" what pairs of them make, "add" the stream.
    """
    SUMS: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [WARPS, 1], [16, BATCH, 16])
    PAIRS: gl.constexpr = END == "gate" or END == "conv"
    ROWS: gl.constexpr = BATCH // SPLIT if SPLIT > 1 and MEET else BATCH  # that a program ends
    LAYOUT: gl.constexpr = rows_layout(ROWS, TILE, WARPS, PAIRS)
    HALF: gl.constexpr = halves_layout(ROWS, TILE, WARPS)
    LATE: gl.constexpr = SPLIT > 1 and not MEET  # who writes the state is not known before the end
    dtype: gl.constexpr = weight_map.dtype
    tile, part, group = gl.program_id(0), gl.program_id(1), gl.program_id(2)
    begin = part * steps // SPLIT
    count = (part + 1) * steps // SPLIT - begin
    SHAPE: gl.constexpr = [WEIGHT_STAGES, TILE // 2, 2, WIDTH] if PAIRS else [WEIGHT_STAGES, TILE, WIDTH]
    ws = gl.allocate_shared_memory(dtype, SHAPE, weight_map.layout)
    xs = gl.allocate_shared_memory(dtype, [X_STAGES, BATCH, WIDTH], x_map.layout)
    w_bars, x_bars = _barriers(WEIGHT_STAGES), _barriers(X_STAGES)
    fence_async_shared()
    barrier()
    for i in gl.static_range(WEIGHT_STAGES):
        _fetch_weight(weight_map, ws.index(i), w_bars.index(i), tile, begin + i, TILE, WIDTH, PAIRS, i < count)
    first_row = group * BATCH
    row = first_row + (part * ROWS if SPLIT > 1 and MEET else 0)
    b = row + gl.arange(0, ROWS, layout=gl.SliceLayout(1, LAYOUT))
    e = tile * TILE + gl.arange(0, TILE, layout=gl.SliceLayout(0, LAYOUT))
    if HAS_BIAS:
        at = (e % 2) * (outputs // 2) + e // 2 if PAIRS else e
        bias_E = gl.load(bias + at, mask=e < outputs, other=0.0).to(gl.float32)
    if END == "add":
        gain_E = gl.load(gain + e, mask=e < outputs, other=0.0).to(gl.float32)
    if END == "conv":
        j = tile * (TILE // 2) + gl.arange(0, TILE // 2, layout=gl.SliceLayout(0, HALF))
        half_b = row + gl.arange(0, ROWS, layout=gl.SliceLayout(1, HALF))
        here = (half_b < rows)[:, None] & (j < outputs // 2)[None, :]
        slot = state + (half_b[:, None] * (outputs // 2) + j[None, :])
        if not LATE:
            words = gl.load(slot, mask=here, other=0)
        taps_0 = gl.load(taps + 3 * j, mask=j < outputs // 2, other=0.0).to(gl.float32)
        taps_1 = gl.load(taps + 3 * j + 1, mask=j < outputs // 2, other=0.0).to(gl.float32)
        taps_2 = gl.load(taps + 3 * j + 2, mask=j < outputs // 2, other=0.0).to(gl.float32)
        offset = gl.zeros([TILE // 2], gl.float32, gl.SliceLayout(0, HALF))
        if HAS_TAPS_BIAS:
            offset = gl.load(taps_bias + j, mask=j < outputs // 2, other=0.0).to(gl.float32)
    if EARLY:
        gdc_launch_dependents()
        gdc_wait()
    for i in gl.static_range(X_STAGES):
        _fetch_x(x_map, xs.index(i), x_bars.index(i), first_row, begin + i, BATCH, WIDTH, i < count)
    if PARTS:
        scale = inverse_rms(squares, row, rows, square_parts, width, eps, ROWS, PARTS, WARPS, LAYOUT)
    if END == "add":
        inside = (b < rows)[:, None] & (e < outputs)[None, :]
        residual_BE = gl.load(residual + (b[:, None] * outputs + e[None, :]), mask=inside, other=0.0).to(gl.float32)
    y_EB = gl.zeros([TILE, BATCH], gl.float32, SUMS)
    w_stage, w_phase, w_freed = 0, 0, WEIGHT_STAGES - 1
    x_stage, x_phase, x_freed = 0, 0, X_STAGES - 1
    for step in range(count):
        mbarrier.wait(w_bars.index(w_stage), w_phase)
        mbarrier.wait(x_bars.index(x_stage), x_phase)
        weights = ws.index(w_stage)
        if PAIRS:
            weights = weights._reinterpret(dtype, [TILE, WIDTH], x_map.layout)
        y_EB = warpgroup_mma(weights, xs.index(x_stage).permute((1, 0)), y_EB, is_async=True)
        y_EB = warpgroup_mma_wait(1, [y_EB])  # the product of the step before is done
        barrier()
        w_later, x_later = step + WEIGHT_STAGES - 1, step + X_STAGES - 1
        more = (step > 0) & (w_later < count)
        freed = ws.index(w_freed), w_bars.index(w_freed)
        _fetch_weight(weight_map, freed[0], freed[1], tile, begin + w_later, TILE, WIDTH, PAIRS, more)
        more = (step > 0) & (x_later < count)
        _fetch_x(x_map, xs.index(x_freed), x_bars.index(x_freed), first_row, begin + x_later, BATCH, WIDTH, more)
        w_freed, x_freed = w_stage, x_stage
        w_stage, w_phase = _next(w_stage, w_phase, WEIGHT_STAGES)
        x_stage, x_phase = _next(x_stage, x_phase, X_STAGES)
    y_EB = warpgroup_mma_wait(0, [y_EB])
    barrier()  # what follows takes the rings' place: the compiler does not see that the other warps' products read them
    mine = True
    if SPLIT == 1:
        total = gl.convert_layout(y_EB.trans(), LAYOUT)
    else:
        sum_of_all = tile * gl.num_programs(2) + group  # its number
        parts += sum_of_all * (SPLIT * BATCH * TILE)
        sums_e = gl.arange(0, TILE, layout=gl.SliceLayout(1, SUMS))
        sums_b = gl.arange(0, BATCH, layout=gl.SliceLayout(0, SUMS))
        gl.store(parts + (part * (BATCH * TILE) + sums_e[:, None] + sums_b[None, :] * TILE), y_EB)
        barrier()
        ticket = gl.atomic_add(counters + sum_of_all, 1, sem="acq_rel", scope="gpu")
        if MEET:
            while _seen(counters + sum_of_all) - (ticket // SPLIT + 1) * SPLIT < 0:
                pass
            barrier()
        else:
            mine = ticket % SPLIT == SPLIT - 1
        total = gl.zeros([ROWS, TILE], gl.float32, LAYOUT)
        if mine:
            total = _sum_of_parts(parts, row - first_row, ROWS, BATCH, TILE, SPLIT, LAYOUT)
    if mine:
        if PARTS:
            total *= scale[:, None]
        if HAS_BIAS:
            total += bias_E[None, :]
        if END == "":
            store_rows(y, total, row, tile * TILE, rows, outputs, LAYOUT)
        elif END == "add":
            store_stream(
                total, residual_BE, gain_E, y, new_residual, new_squares, row, tile, rows, outputs, TILE, LAYOUT
            )  # fmt: skip
        else:
            first, second = two_of_pairs(total, HALF)
            if END == "gate":
                made = first * silu(second)
            else:
                if LATE:
                    words = gl.load(slot, mask=here, other=0)
                made, new = convolved(
                    first.to(dtype), words, taps_0[None, :], taps_1[None, :], taps_2[None, :], offset[None, :]
                )
                gl.store(slot, new, mask=here)
                made *= second
            store_rows(y, made, row, tile * (TILE // 2), rows, outputs // 2, HALF)
