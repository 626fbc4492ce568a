"""`sliding_window_step` where a head's ring fits into shared memory several times: all of it is asked for at once.

A program takes one head of one sequence. Its first instructions copy the head's keys and values to shared memory, 57 kB
at 128 slots of 112 numbers; three such programs (six with heads of 64) fit on a multiprocessor, so that reads are in
flight while some of them compute. Until the keys have come, the query, the new key and the new value are loaded and
turned. The softmax is over all slots at once. Slots that no token has taken yet are read and weigh nothing, as in the
reference: they must hold numbers.

A thread copies the vectors of 16 bytes that it will use, so that it waits for its own copies alone. The new token is
written once all have waited: its slot is that of the oldest key, which is still read.
"""

# mypy: allow-untyped-defs, disable-error-code="assignment,misc"

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import async_copy

barrier = getattr(gl, "thread_barrier", None) or gl.barrier  # Triton 3.7 renamed it
VECTOR = gl.constexpr(8)  # numbers in 16 bytes


@gluon.constexpr_function
def _layout(width, warps):
    """Of rows that pass through memory: 16 bytes a thread."""
    return gl.BlockedLayout([1, 8], [32 * 8 // width, width // 8], [warps, 1], [1, 0])


@gluon.jit
def _fetch(shared, rows, ROW: gl.constexpr, SLOTS: gl.constexpr, WIDTH: gl.constexpr, LAYOUT: gl.constexpr):
    """A head's slots on their way to shared memory, zeros beyond them."""
    slot = gl.arange(0, shared.shape[0], layout=gl.SliceLayout(1, LAYOUT))
    column = gl.arange(0, shared.shape[1], layout=gl.SliceLayout(0, LAYOUT))
    inside = (slot < SLOTS)[:, None] & (column < WIDTH)[None, :]
    async_copy.async_copy_global_to_shared(shared, rows + (slot[:, None] * ROW + column[None, :]), mask=inside)
    async_copy.commit_group()


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
    BLOCK_K: gl.constexpr, BLOCK_V: gl.constexpr, BLOCK_S: gl.constexpr, HALF: gl.constexpr, WARPS: gl.constexpr,
):  # fmt: skip
    """factor = scale * log2(e): scores are in base 2. Strides of sequences in the caches count rows."""
    LK: gl.constexpr = _layout(BLOCK_K, WARPS)
    LV: gl.constexpr = _layout(BLOCK_V, WARPS)
    PLAIN: gl.constexpr = gl.SwizzledSharedLayout(8, 1, 1, [1, 0])
    b, h = (gl.program_id(0) // H).to(gl.int64), gl.program_id(0) % H
    keys += b * keys_rows * KEYS_ROW + h * KEYS_HEAD
    values += b * values_rows * VALUES_ROW + h * VALUES_HEAD
    ks = gl.allocate_shared_memory(keys.dtype.element_ty, [BLOCK_S, BLOCK_K], PLAIN)
    vs = gl.allocate_shared_memory(values.dtype.element_ty, [BLOCK_S, BLOCK_V], PLAIN)
    _fetch(ks, keys, KEYS_ROW, SLOTS, K, LK)
    _fetch(vs, values, VALUES_ROW, SLOTS, V, LV)
    place = gl.load(position + b * each).to(gl.int32)
    c_K, c_V = gl.arange(0, BLOCK_K, layout=gl.SliceLayout(0, LK)), gl.arange(0, BLOCK_V, layout=gl.SliceLayout(0, LV))
    if HALF > 0:
        cos += b * COS_ROW
        sin += b * SIN_ROW
    q_K = _head(q + b * q_batch + h * q_head, c_K, cos, sin, K, HALF).to(gl.float32) * factor
    k_K = _head(k + b * k_batch + h * k_head, c_K, cos, sin, K, HALF)
    v_V = gl.load(v + b * v_batch + h * v_head + c_V, mask=c_V < V, other=0.0)
    own = gl.sum(q_K * k_K.to(gl.float32), 0)
    async_copy.wait_group(1)
    slot_J = gl.arange(0, BLOCK_S, layout=gl.SliceLayout(1, LK))
    s_J = gl.sum(ks.load(LK).to(gl.float32) * q_K[None, :], 1)
    s_J = gl.where(slot_J < gl.minimum(place, SLOTS), s_J, float("-inf"))
    top = gl.maximum(gl.max(s_J, 0), own)
    p_J, own = gl.exp2(s_J - top), gl.exp2(own - top)
    total = gl.sum(p_J, 0) + own
    p_J = gl.convert_layout(p_J, gl.SliceLayout(1, LV))
    async_copy.wait_group(0)
    y_V = gl.sum(vs.load(LV).to(gl.float32) * p_J[:, None], 0) + own * v_V.to(gl.float32)
    gl.store(y + gl.program_id(0).to(gl.int64) * V + c_V, (y_V / total).to(y.dtype.element_ty), mask=c_V < V)
    barrier()
    slot = place % SLOTS
    gl.store(keys + slot * KEYS_ROW + c_K, k_K.to(keys.dtype.element_ty), mask=c_K < K)
    gl.store(values + slot * VALUES_ROW + c_V, v_V.to(values.dtype.element_ty), mask=c_V < V)
