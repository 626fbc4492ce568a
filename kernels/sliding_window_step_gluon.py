"""`sliding_window_step` where three quarters of a head's ring fit into shared memory several times.

A program takes one head of one sequence. Its first instructions copy the head's keys and half of its values to shared
memory, the other half follows into the place of the first keys once these are used: 43 of 57 kB at 128 slots of 112
numbers. Four such programs (seven with heads of 64) fit on a multiprocessor, so that reads are in flight while some of
them compute. Until the keys have come, the query, the new key and the new value are loaded and turned. The softmax is
over all slots at once. Slots that no token has taken yet are read and weigh nothing, as in the reference: they must
hold numbers.

The new token is written once all threads have waited: its slot is that of the oldest key, which is still read.
"""

# mypy: allow-untyped-defs, disable-error-code="assignment,misc"

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import async_copy
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

barrier = getattr(gl, "thread_barrier", None) or gl.barrier  # Triton 3.7 renamed it
VECTOR = gl.constexpr(8)  # numbers in 16 bytes


@gluon.constexpr_function
def _layout(width, warps):
    """Of rows that pass through memory: 16 bytes a thread."""
    return gl.BlockedLayout([1, 8], [32 * 8 // width, width // 8], [warps, 1], [1, 0])


@gluon.jit
def _fetch(shared, cache, first, ROW: gl.constexpr, SLOTS: gl.constexpr, WIDTH: gl.constexpr, LAYOUT: gl.constexpr):
    """A head's slots from `first` on, on their way to shared memory; zeros beyond them."""
    slot = first + gl.arange(0, shared.shape[0], layout=gl.SliceLayout(1, LAYOUT))
    column = gl.arange(0, shared.shape[1], layout=gl.SliceLayout(0, LAYOUT))
    inside = (slot < SLOTS)[:, None] & (column < WIDTH)[None, :]
    async_copy.async_copy_global_to_shared(shared, cache + (slot[:, None] * ROW + column[None, :]), mask=inside)
    async_copy.commit_group()


@gluon.jit
def _arrived(shared, LAYOUT: gl.constexpr, YOUNGER: gl.constexpr):
    """A tile in float32; so many younger ones may still be on their way."""
    async_copy.wait_group(YOUNGER)
    barrier()
    return shared.load(LAYOUT).to(gl.float32)


@gluon.jit
def _scores(k_JK, q_K, first, filled, LAYOUT: gl.constexpr):
    """-inf where no token is."""
    slot_J = first + gl.arange(0, k_JK.shape[0], layout=gl.SliceLayout(1, LAYOUT))
    return gl.where(slot_J < filled, gl.sum(k_JK * q_K[None, :], 1), float("-inf"))


@gluon.jit
def _vectors(column, ALIGNED: gl.constexpr):
    """`column`, of which the compiler cannot see that it goes by whole vectors."""
    if ALIGNED:
        column = gl.max_contiguous(gl.multiple_of(column, VECTOR), VECTOR)
    return column


@gluon.jit
def _head(x, column, cos, sin, WIDTH: gl.constexpr, HALF: gl.constexpr):
    """A head, its first 2 HALF dimensions turned by the angles at cos and sin, rounded to its dtype."""
    ALIGNED: gl.constexpr = HALF % VECTOR == 0
    head = gl.load(x + column, mask=column < WIDTH, other=0.0)
    if HALF > 0:
        first, turns = column < HALF, column < 2 * HALF
        place = _vectors(gl.where(first, column, column - HALF), ALIGNED)
        other = _vectors(gl.where(first, column + HALF, column - HALF), ALIGNED)
        partner = gl.load(x + other, mask=turns, other=0.0).to(gl.float32)
        c = gl.load(cos + place, mask=turns, other=1.0).to(gl.float32)
        s = gl.load(sin + place, mask=turns, other=0.0).to(gl.float32)
        head = (head.to(gl.float32) * c + partner * gl.where(first, -s, s)).to(head.dtype)
    return head


@gluon.jit(do_not_specialize=["H"])
def ring_kernel(
    q, k, v, keys, values, position, cos, sin, y, H, factor, each,
    q_batch, q_head, k_batch, k_head, v_batch, v_head, keys_rows, values_rows,
    KEYS_ROW: gl.constexpr, KEYS_HEAD: gl.constexpr, VALUES_ROW: gl.constexpr, VALUES_HEAD: gl.constexpr,
    COS_ROW: gl.constexpr, SIN_ROW: gl.constexpr, K: gl.constexpr, V: gl.constexpr, SLOTS: gl.constexpr,
    BLOCK: gl.constexpr, ROWS: gl.constexpr, HALF: gl.constexpr, WARPS: gl.constexpr,
    EARLY: gl.constexpr = False,
):  # fmt: skip
    """factor = scale * log2(e): scores are in base 2. Caches: strides of sequences count rows, 2 ROWS >= SLOTS."""
    TILE: gl.constexpr = _layout(BLOCK, WARPS)
    b, h = (gl.program_id(0) // H).to(gl.int64), gl.program_id(0) % H
    keys += b * keys_rows * KEYS_ROW + h * KEYS_HEAD
    values += b * values_rows * VALUES_ROW + h * VALUES_HEAD
    tiles = gl.allocate_shared_memory(keys.dtype.element_ty, [3, ROWS, BLOCK], gl.SwizzledSharedLayout(8, 1, 1, [1, 0]))
    _fetch(tiles.index(0), keys, 0, KEYS_ROW, SLOTS, K, TILE)
    _fetch(tiles.index(1), keys, ROWS, KEYS_ROW, SLOTS, K, TILE)
    _fetch(tiles.index(2), values, 0, VALUES_ROW, SLOTS, V, TILE)
    if EARLY:
        gdc_launch_dependents()
        gdc_wait()
    place = gl.load(position + b * each).to(gl.int32)
    column = gl.arange(0, BLOCK, layout=gl.SliceLayout(0, TILE))
    if HALF > 0:
        cos += b * COS_ROW
        sin += b * SIN_ROW
    q_K = _head(q + b * q_batch + h * q_head, column, cos, sin, K, HALF).to(gl.float32) * factor
    k_K = _head(k + b * k_batch + h * k_head, column, cos, sin, K, HALF)
    v_V = gl.load(v + b * v_batch + h * v_head + column, mask=column < V, other=0.0)
    barrier()  # the compiler would move the loads above behind the wait
    own, filled = gl.sum(q_K * k_K.to(gl.float32), 0), gl.minimum(place, SLOTS)
    s_J = _scores(_arrived(tiles.index(0), TILE, 2), q_K, 0, filled, TILE)
    barrier()
    _fetch(tiles.index(0), values, ROWS, VALUES_ROW, SLOTS, V, TILE)
    t_J = _scores(_arrived(tiles.index(1), TILE, 2), q_K, ROWS, filled, TILE)
    top = gl.maximum(gl.max(gl.maximum(s_J, t_J), 0), own)
    s_J, t_J, own = gl.exp2(s_J - top), gl.exp2(t_J - top), gl.exp2(own - top)
    total = gl.sum(s_J + t_J, 0) + own
    y_JV = _arrived(tiles.index(2), TILE, 1) * s_J[:, None]
    y_JV += _arrived(tiles.index(0), TILE, 0) * t_J[:, None]
    y_V = gl.sum(y_JV, 0) + own * v_V.to(gl.float32)
    gl.store(y + gl.program_id(0).to(gl.int64) * V + column, (y_V / total).to(y.dtype.element_ty), mask=column < V)
    slot = place % SLOTS
    barrier()
    gl.store(keys + slot * KEYS_ROW + column, k_K.to(keys.dtype.element_ty), mask=column < K)
    gl.store(values + slot * VALUES_ROW + column, v_V.to(values.dtype.element_ty), mask=column < V)
