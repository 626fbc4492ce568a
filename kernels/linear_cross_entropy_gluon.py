"""Kernels of `linear_cross_entropy` in Gluon, for Hopper and bfloat16: products run beside exponentials.

The sums are those of `linear_cross_entropy_triton`. A program is one warpgroup. In the forward it has 64 positions,
which stay in registers as the left operand, and a share of the words, which pass through a ring in shared memory,
filled by a tensor map: reading both operands from shared memory would fill its bandwidth. Blocks of words go in pairs,
so that the second product runs beside the first one's exponentials. Nothing branches while a product is under way, or
the assembler waits for every single instruction of it: each logit is compared with its target. The weight's gradient
has words and positions the other way round.

The forward's exponentials need no running peak: they are taken from the peak of a few words, those that are targets of
the program's positions. Where others lie so far above it that sums overflow, the program starts again from the peak
that it then knows. Sums that vanish beside those words would not count. The product with those words is also where
each position finds the logit of its target.
"""

# mypy: allow-untyped-defs, disable-error-code="assignment,misc"

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_init,
    warpgroup_mma_wait,
)

barrier = getattr(gl, "thread_barrier", None) or gl.barrier  # Triton 3.7 renamed it

LOG2E = gl.constexpr(1.4426950408889634)
BLOCK = gl.constexpr(64)  # positions of a program, and words that it takes at once
WARPS = gl.constexpr(4)
STAGES = gl.constexpr(6)  # of the ring
ROW_SHARED = gl.constexpr(gl.SwizzledSharedLayout(1, 1, 1, [0]))
MOST, LEAST = gl.constexpr(2.0**100), gl.constexpr(2.0**-90)  # of a sum of exponentials that is precise


@gluon.jit
def _fetch(tiles, ring, bars, step, row, BYTES: gl.constexpr, pred):
    slot = step % STAGES
    mbarrier.expect(bars.index(slot), BYTES, pred=pred)
    tma.async_copy_global_to_shared(tiles, [row, 0], bars.index(slot), ring.index(slot), pred=pred)


@gluon.jit
def _begun(tiles, ring, row, count, BYTES: gl.constexpr):
    """The ring's barriers; all tiles but a pair's are asked for, `count` being as many as there are."""
    bars = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(STAGES):
        mbarrier.init(bars.index(i), count=1)
    fence_async_shared()
    barrier()
    for i in gl.static_range(STAGES - 2):
        _fetch(tiles, ring, bars, i, row + i * BLOCK, BYTES, i < count)
    return bars


@gluon.jit
def _logits(x, ring, bars, step, zeros):
    """The product with the words of a step, under way."""
    slot = step % STAGES
    mbarrier.wait(bars.index(slot), (step // STAGES) & 1)
    return warpgroup_mma(x, ring.index(slot).permute((1, 0)), zeros, use_acc=False, is_async=True)


@gluon.jit
def _eighths(values):
    """(N, V) as (N, V / 8, 8): a thread of the matrix units holds the middle whole."""
    return gl.reshape(values, (values.shape[0], values.shape[1] // 8, 8))


@gluon.jit
def _without(logits, at_N):
    """Logits (N, BLOCK) without those in columns at_N, if there are such columns."""
    column = gl.arange(0, BLOCK, gl.SliceLayout(0, logits.type.layout))
    place = at_N[:, None] - (column & 6)[None, :]  # bits 1 and 2 of a column are the thread's, the others constants
    return gl.where(place == (column & (BLOCK - 7))[None, :], float("-inf"), logits)


@gluon.jit
def _taken(logits, from_N, at_N, peak, rest, before):
    """Exponentials of a block of words, whose first one lies at_N before the targets, and what is summed of it."""
    logits = _without(logits, at_N)
    others = gl.exp2(logits * LOG2E - from_N[:, None])
    top = gl.max(_eighths(logits), 1)
    peak = gl.maximum(peak, top)
    rest += gl.sum(_eighths(others), 1)
    row_N = gl.convert_layout(at_N, gl.SliceLayout(1, top.type.layout), assert_trivial=True)
    before = gl.where((row_N >= BLOCK)[:, None], peak, before)  # as long as the target is still ahead
    return others, peak, rest, before


@gluon.jit(do_not_specialize=["N", "words"])
def lce_pairs_kernel(
    x, weight, weight_map, target, rows, expected, N, V, words, D: gl.constexpr, EXPECTED: gl.constexpr
):  # fmt: skip
    """`lce_forward_kernel` for whole pairs of blocks of words: rows (S,4,N), expected (S,N,D)."""
    LOGITS: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [WARPS, 1], [16, BLOCK, 16])
    SUMS: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [WARPS, 1], [16, D, 16])
    X: gl.constexpr = gl.DotOperandLayout(0, LOGITS, 2)
    P: gl.constexpr = gl.DotOperandLayout(0, SUMS, 2)
    ROW: gl.constexpr = gl.SliceLayout(1, LOGITS)
    LINES: gl.constexpr = gl.BlockedLayout([1, 8], [256 // D, D // 8], [WARPS, 1], [1, 0])
    BYTES: gl.constexpr = BLOCK * D * 2
    dtype: gl.constexpr = weight_map.dtype
    split = gl.program_id(1)
    first = split * words
    count = (gl.minimum(first + words, V) - first) // BLOCK
    ring = gl.allocate_shared_memory(dtype, [STAGES, BLOCK, D], weight_map.layout)
    some = gl.allocate_shared_memory(dtype, [BLOCK, D], weight_map.layout)
    bars = _begun(weight_map, ring, first, count, BYTES)
    n = gl.program_id(0) * BLOCK + gl.arange(0, BLOCK, gl.SliceLayout(1, LINES))
    d = gl.arange(0, D, gl.SliceLayout(0, LINES))
    v = gl.load(target + n, mask=n < N, other=-1).to(gl.int32)
    known = (v >= 0) & (v < V)
    some.store(gl.load(weight + v[:, None] * D + d[None, :], mask=known[:, None], other=0.0))
    n = gl.program_id(0) * BLOCK + gl.arange(0, BLOCK, gl.SliceLayout(1, X))
    d = gl.arange(0, D, gl.SliceLayout(0, X))
    x_ND = gl.load(x + n[:, None] * D + d[None, :], mask=(n < N)[:, None], other=0.0)
    n = gl.program_id(0) * BLOCK + gl.arange(0, BLOCK, ROW)
    target_N = gl.load(target + n, mask=n < N, other=-1).to(gl.int32)
    zeros = gl.zeros([BLOCK, BLOCK], gl.float32, LOGITS)
    fence_async_shared()
    barrier()
    logits = warpgroup_mma(x_ND, some.permute((1, 0)), zeros, use_acc=False, is_async=True)
    logits = warpgroup_mma_wait(0, [logits])
    own = gl.arange(0, BLOCK, ROW)[:, None] == gl.arange(0, BLOCK, gl.SliceLayout(0, LOGITS))[None, :]
    wanted_N = gl.where(split == 0, gl.sum(gl.where(own, logits, 0.0), 1), 0.0)
    words_V = gl.convert_layout(target_N, gl.SliceLayout(0, LOGITS))
    strange_V = (words_V < 0) | (words_V >= V)
    left_out = (words_V[None, :] == target_N[:, None]) | strange_V[None, :]
    top_N = gl.max(gl.where(left_out, float("-inf"), logits), 1)
    alone_N = top_N == float("-inf")
    from_N = gl.where(alone_N, 0.0, top_N) * LOG2E
    nothing = gl.max(_eighths(zeros), 1)
    peak, rest, before = nothing, nothing, nothing
    sums = warpgroup_mma_init(gl.zeros([BLOCK, D], gl.float32, SUMS))
    done, wanting = 0, True
    while wanting:
        peak, before = nothing + float("-inf"), nothing + float("-inf")
        rest = nothing
        sums = warpgroup_mma_init(gl.zeros([BLOCK, D], gl.float32, SUMS))
        for step in range(done, done + count, 2):
            at_N = target_N - (first + (step - done) * BLOCK)
            even = _logits(x_ND, ring, bars, step, zeros)
            odd = _logits(x_ND, ring, bars, step + 1, zeros)
            even = warpgroup_mma_wait(1, [even])
            others, peak, rest, before = _taken(even, from_N, at_N, peak, rest, before)
            p = gl.convert_layout(others.to(dtype), P, assert_trivial=True)
            odd = warpgroup_mma_wait(0, [odd])  # the sums of the pair before are done, too
            barrier()
            later = step + STAGES - 2
            _fetch(weight_map, ring, bars, later, first + (later - done) * BLOCK, BYTES, later < done + count)
            later += 1
            _fetch(weight_map, ring, bars, later, first + (later - done) * BLOCK, BYTES, later < done + count)
            if EXPECTED:
                sums = warpgroup_mma(p, ring.index(step % STAGES), sums, is_async=True)
            others, peak, rest, before = _taken(odd, from_N, at_N - BLOCK, peak, rest, before)
            p = gl.convert_layout(others.to(dtype), P, assert_trivial=True)
            if EXPECTED:
                sums = warpgroup_mma(p, ring.index((step + 1) % STAGES), sums, is_async=True)
        done += count
        rest_N = gl.convert_layout(gl.sum(rest, 1), ROW, assert_trivial=True)
        wrong_N = (rest_N > MOST) | (alone_N & (rest_N < LEAST))  # what is not a number stays so
        wanting = (gl.max(wrong_N.to(gl.int32), 0) > 0) & (done == count)
        if wanting:
            peak_N = gl.convert_layout(gl.max(peak, 1), ROW, assert_trivial=True)
            from_N = gl.where(peak_N == float("-inf"), 0.0, peak_N) * LOG2E
            sums = warpgroup_mma_wait(0, [sums])
            sums = warpgroup_mma_init(sums)
            barrier()
            for i in gl.static_range(STAGES - 2):
                _fetch(weight_map, ring, bars, done + i, first + i * BLOCK, BYTES, i < count)
    sums = warpgroup_mma_wait(0, [sums])
    peak_N = gl.convert_layout(gl.max(peak, 1), ROW, assert_trivial=True)
    before_N = gl.convert_layout(gl.max(before, 1), ROW, assert_trivial=True)
    half_N = gl.exp2(gl.minimum((from_N - peak_N * LOG2E) * 0.5, 60.0))  # the whole may overflow
    rest_N = gl.convert_layout(gl.sum(rest, 1), ROW, assert_trivial=True) * half_N * half_N
    rows += split.to(gl.int64) * 4 * N
    gl.store(rows + n, peak_N, mask=n < N)
    gl.store(rows + N + n, rest_N, mask=n < N)
    gl.store(rows + 2 * N + n, wanted_N, mask=n < N)
    gl.store(rows + 3 * N + n, before_N, mask=n < N)
    if EXPECTED:
        half_N = gl.convert_layout(half_N, gl.SliceLayout(1, SUMS))
        sums = sums * half_N[:, None] * half_N[:, None]
        n = gl.program_id(0) * BLOCK + gl.arange(0, BLOCK, gl.SliceLayout(1, SUMS))
        d = gl.arange(0, D, gl.SliceLayout(0, SUMS))
        place = expected + split.to(gl.int64) * N * D + n[:, None] * D + d[None, :]
        gl.store(place, sums, mask=(n < N)[:, None] & (d >= 0)[None, :])


@gluon.jit
def _statistics(target, saved, grad_loss, n, N, last):
    """Of positions, as in memory; nothing adds to a gradient beyond the last."""
    inside = n < last
    grad_N = gl.load(grad_loss + n, mask=inside, other=0.0)
    peak_N = gl.load(saved + n, mask=inside, other=0.0)
    factor_N = gl.load(saved + N + n, mask=inside, other=0.0)
    share_N = gl.load(saved + 2 * N + n, mask=inside, other=0.0)
    return grad_N, peak_N, factor_N, share_N, gl.load(target + n, mask=inside, other=-1).to(gl.int32)


@gluon.jit
def _slopes(logits, peaks, factors, owns, targets, word, start: gl.constexpr):
    """What a block of positions adds to the weight's gradient, words by positions."""
    COLUMN: gl.constexpr = gl.SliceLayout(0, logits.type.layout)
    peak_N = peaks.slice(start, BLOCK).load(COLUMN)
    factor_N = factors.slice(start, BLOCK).load(COLUMN)
    own_N = owns.slice(start, BLOCK).load(COLUMN)
    target_N = targets.slice(start, BLOCK).load(COLUMN)
    slopes = gl.exp2(logits * LOG2E + peak_N[None, :]) * factor_N[None, :]
    return gl.where(word[:, None] == target_N[None, :], own_N[None, :], slopes)


@gluon.jit
def _scale_rows(slope, grad_loss, grad_x, start, N, D: gl.constexpr, ROWS: gl.constexpr):
    """grad_x = grad_loss slope, for ROWS positions."""
    LINES: gl.constexpr = gl.BlockedLayout([1, 4], [128 // D, D // 4], [WARPS, 1], [1, 0])
    n = start + gl.arange(0, ROWS, gl.SliceLayout(1, LINES))
    d = gl.arange(0, D, gl.SliceLayout(0, LINES))
    inside = (n < N)[:, None] & (d >= 0)[None, :]
    grad_N = gl.load(grad_loss + n, mask=n < N, other=0.0)
    made = gl.load(slope + n[:, None] * D + d[None, :], mask=inside, other=0.0) * grad_N[:, None]
    gl.store(grad_x + n[:, None] * D + d[None, :], made.to(grad_x.dtype.element_ty), mask=inside)


@gluon.jit(do_not_specialize=["N", "positions"])
def lce_slope_pairs_kernel(
    x_map, weight, target, saved, grad_loss, grad_weight, slope, grad_x, N, V, positions,
    D: gl.constexpr, GRAD_X: gl.constexpr, ROWS: gl.constexpr,
):  # fmt: skip
    """`lce_weight_kernel` for whole pairs of blocks of positions: grad_weight (S,V,D), and grad_x = grad_loss slope."""
    LOGITS: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [WARPS, 1], [16, BLOCK, 16])
    SUMS: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [WARPS, 1], [16, D, 16])
    W: gl.constexpr = gl.DotOperandLayout(0, LOGITS, 2)
    P: gl.constexpr = gl.DotOperandLayout(0, SUMS, 2)
    LINE: gl.constexpr = gl.BlockedLayout([1], [32], [WARPS], [0])
    BYTES: gl.constexpr = BLOCK * D * 2
    dtype: gl.constexpr = x_map.dtype
    word = gl.program_id(0) * BLOCK + gl.arange(0, BLOCK, gl.SliceLayout(1, LOGITS))
    split = gl.program_id(1)
    begin = split * positions
    last = gl.minimum(begin + positions, N)
    count = gl.cdiv(last - begin, 2 * BLOCK) * 2
    ring = gl.allocate_shared_memory(dtype, [STAGES, BLOCK, D], x_map.layout)
    peaks = gl.allocate_shared_memory(gl.float32, [2 * BLOCK], ROW_SHARED)
    factors = gl.allocate_shared_memory(gl.float32, [2 * BLOCK], ROW_SHARED)
    owns = gl.allocate_shared_memory(gl.float32, [2 * BLOCK], ROW_SHARED)
    targets = gl.allocate_shared_memory(gl.int32, [2 * BLOCK], ROW_SHARED)
    bars = _begun(x_map, ring, begin, count, BYTES)
    v = gl.program_id(0) * BLOCK + gl.arange(0, BLOCK, gl.SliceLayout(1, W))
    d = gl.arange(0, D, gl.SliceLayout(0, W))
    w_VD = gl.load(weight + v[:, None] * D + d[None, :])
    zeros = gl.zeros([BLOCK, BLOCK], gl.float32, LOGITS)
    sums = warpgroup_mma_init(gl.zeros([BLOCK, D], gl.float32, SUMS))
    n = begin + gl.arange(0, 2 * BLOCK, LINE)
    ahead = _statistics(target, saved, grad_loss, n, N, last)
    for step in range(0, count, 2):
        grad_N, peak_N, factor_N, share_N, target_N = ahead
        peaks.store(peak_N * -LOG2E)
        factors.store(grad_N * factor_N)
        owns.store(-grad_N * share_N)
        targets.store(target_N)
        ahead = _statistics(target, saved, grad_loss, n + (step + 2) * BLOCK, N, last)
        even = _logits(w_VD, ring, bars, step, zeros)
        odd = _logits(w_VD, ring, bars, step + 1, zeros)
        even = warpgroup_mma_wait(1, [even])
        slopes = _slopes(even, peaks, factors, owns, targets, word, 0)
        p = gl.convert_layout(slopes.to(dtype), P, assert_trivial=True)
        odd = warpgroup_mma_wait(0, [odd])  # the sums of the pair before are done, too
        barrier()
        later = step + STAGES - 2
        _fetch(x_map, ring, bars, later, begin + later * BLOCK, BYTES, later < count)
        later += 1
        _fetch(x_map, ring, bars, later, begin + later * BLOCK, BYTES, later < count)
        sums = warpgroup_mma(p, ring.index(step % STAGES), sums, is_async=True)
        p = gl.convert_layout(
            _slopes(odd, peaks, factors, owns, targets, word, BLOCK).to(dtype), P, assert_trivial=True
        )
        sums = warpgroup_mma(p, ring.index((step + 1) % STAGES), sums, is_async=True)
    sums = warpgroup_mma_wait(0, [sums])
    d = gl.arange(0, D, gl.SliceLayout(0, SUMS))
    v = gl.program_id(0) * BLOCK + gl.arange(0, BLOCK, gl.SliceLayout(1, SUMS))
    place = grad_weight + split.to(gl.int64) * V * D + v[:, None] * D + d[None, :]
    gl.store(place, sums.to(grad_weight.dtype.element_ty))
    if GRAD_X:
        program = split * gl.num_programs(0) + gl.program_id(0)
        for start in range(program * ROWS, N, gl.num_programs(0) * gl.num_programs(1) * ROWS):
            _scale_rows(slope, grad_loss, grad_x, start, N, D, ROWS)
