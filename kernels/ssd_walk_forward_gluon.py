"""Outputs of ssd for narrow states and many sequences: one warp walks over the chunks of a sequence and head.

Chunks are short, T = 16 tokens: all that is quadratic is one 16 x 16 block, and what 16 tokens need fits into the
registers of one warp, which waits for no other. While it works on a chunk, the next one is on its way to shared memory.
Formulas: `ssd_forward_triton`.
"""

# mypy: allow-untyped-defs, disable-error-code="assignment,misc"

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from .ssd_walk_tiles_gluon import (
    COLUMN,
    LINE,
    LOG2E,
    MMA,
    ROW,
    T,
    async_copy,
    block_of_weights,
    chunk_steps,
    example,
    fetch,
    from_shared,
    left_operand,
    load_scalar,
    memory_layout,
    operand,
    product,
    shared_layout,
    side,
    sigmoid,
    store_tile,
    transposed,
    turned,
)


@gluon.jit(do_not_specialize=["length", "heads", "per_group"])
def walk_output_kernel(
    x, dt, A, B, C, D, z, bias, y, kept, initial, final,
    x_batch, x_row, x_head, dt_batch, dt_row, dt_head, B_batch, B_row, B_group, C_batch, C_row, C_group,
    z_batch, z_row, z_head, starts, length, heads, per_group,
    P: gl.constexpr, N: gl.constexpr, BP: gl.constexpr, BN: gl.constexpr, BYTES: gl.constexpr, ALIGNED: gl.constexpr,
    HAS_D: gl.constexpr, HAS_Z: gl.constexpr, HAS_BIAS: gl.constexpr, SOFTPLUS: gl.constexpr, KEEP: gl.constexpr,
    INITIAL: gl.constexpr, FINAL: gl.constexpr, PACKED: gl.constexpr, PRECISION: gl.constexpr,
):  # fmt: skip
    """y (B,L,H,P); KEEP: the states before the chunks (B,H,chunks,P,N); FINAL: the last state (B,H,P,N).

    A first state of zeros is not kept. PACKED: all but those are one row of examples, `length` that of the longest.
    """
    WIDE: gl.constexpr = 2 if PRECISION == "bf16" else 4  # bytes of a kept number
    X: gl.constexpr = memory_layout(BP, BYTES)
    sequence = gl.program_id(0)
    batch, head = (sequence // heads).to(gl.int64), (sequence % heads).to(gl.int64)
    group = head // per_group
    most = gl.cdiv(length, T)
    place, apart, length = example(starts, batch, length, PACKED)
    chunks = gl.cdiv(length, T)
    x += place * x_batch + head * x_head
    z += place * z_batch + head * z_head
    dt += place * dt_batch + head * dt_head
    B += place * B_batch + group * B_group
    C += place * C_batch + group * C_group
    y += (place * apart * heads + head) * P
    kept += sequence.to(gl.int64) * most * (P * N)
    rate = gl.load(A + head).to(gl.float32) * LOG2E
    skip, shift = load_scalar(D, head, HAS_D), load_scalar(bias, head, HAS_BIAS)
    t, p, n = gl.arange(0, T, LINE), gl.arange(0, BP, ROW), gl.arange(0, BN, COLUMN)
    tile, exists = p[:, None] * N + n[None, :], (p < P)[:, None] & (n < N)[None, :]
    state = gl.zeros([BP, BN], gl.float32, MMA)
    if INITIAL:
        state = gl.load(initial + sequence.to(gl.int64) * (P * N) + tile, mask=exists, other=0.0).to(gl.float32)
    xs = gl.allocate_shared_memory(x.dtype.element_ty, [2, T, BP], shared_layout(BP, BYTES))
    zs = gl.allocate_shared_memory(x.dtype.element_ty, [2, T, BP], shared_layout(BP, BYTES))
    Bs = gl.allocate_shared_memory(x.dtype.element_ty, [2, T, BN], shared_layout(BN, BYTES))
    Cs = gl.allocate_shared_memory(x.dtype.element_ty, [2, T, BN], shared_layout(BN, BYTES))
    start = length * 0
    raw = gl.load(dt + t * dt_row, mask=t < length, other=0.0)
    fetch(xs.index(0), x, x_row, start, length, P, BYTES, ALIGNED)
    fetch(Bs.index(0), B, B_row, start, length, N, BYTES, ALIGNED)
    fetch(Cs.index(0), C, C_row, start, length, N, BYTES, ALIGNED)
    if HAS_Z:
        fetch(zs.index(0), z, z_row, start, length, P, BYTES, ALIGNED)
    async_copy.commit_group()
    for chunk in range(chunks):
        stage, start = chunk % 2, chunk * T
        left = length - start
        step, total = chunk_steps(raw, shift, rate, t < left, SOFTPLUS)
        # The next one; beyond the end nothing is read.
        after = start + T
        raw = gl.load(dt + (after + t).to(gl.int64) * dt_row, mask=after + t < length, other=0.0)
        fetch(xs.index(1 - stage), x, x_row, after, length - after, P, BYTES, ALIGNED)
        fetch(Bs.index(1 - stage), B, B_row, after, length - after, N, BYTES, ALIGNED)
        fetch(Cs.index(1 - stage), C, C_row, after, length - after, N, BYTES, ALIGNED)
        if HAS_Z:
            fetch(zs.index(1 - stage), z, z_row, after, length - after, P, BYTES, ALIGNED)
        async_copy.commit_group()
        async_copy.wait_group(1)
        if KEEP:
            rows = P if INITIAL else gl.where(chunk == 0, 0, P)
            store_tile(kept, state, N, chunk * P, rows, N, memory_layout(BN, WIDE))
        C_left = from_shared(Cs.index(stage), 0, PRECISION)
        B_right = from_shared(transposed(Bs.index(stage)), 1, PRECISION)
        up = gl.exp2(gl.convert_layout(total, ROW))
        out = product(C_left, turned(state, PRECISION), gl.zeros([T, BP], gl.float32, MMA), PRECISION) * up[:, None]
        _, _, _, weights = block_of_weights(C_left, B_right, step, total, skip, PRECISION)
        out = product(left_operand(weights, PRECISION), from_shared(xs.index(stage), 1, PRECISION), out, PRECISION)
        end = gl.sum(gl.where(t == T - 1, total, 0.0), 0)
        weight = gl.convert_layout(step * gl.exp2(end - total), gl.SliceLayout(1, side(1, PRECISION)))
        B_weighted = Bs.index(stage).load(side(1, PRECISION)).to(gl.float32) * weight[:, None]
        x_left = from_shared(transposed(xs.index(stage)), 0, PRECISION)
        state = product(x_left, operand(B_weighted, PRECISION), state * gl.exp2(end), PRECISION)
        if HAS_Z:
            gate = zs.index(stage).load(MMA).to(gl.float32)
            out *= gate * sigmoid(gate)
        store_tile(y, out, heads * P, start, left, P, X)
    if FINAL:
        gl.store(final + sequence.to(gl.int64) * (P * N) + tile, state, mask=exists)
