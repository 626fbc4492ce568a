"""Gradients of ssd for narrow states and many sequences: one warp walks back over the chunks of a sequence and head.

It carries R, what the outputs behind a chunk ask of the state, takes the states h before the chunks from the forward,
and computes y before the gate again. So x, dy, z and h are read once, dx and dz written once, and nothing else of their
size passes through memory. What each head adds to dB and dC is summed over the heads of a group by another launch.
Formulas: `ssd_backward_triton`.
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
    TILE,
    T,
    async_copy,
    block_of_weights,
    chunk_steps,
    example,
    fetch,
    fit_into_half,
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
    sums_before,
    sums_from_behind,
    transposed,
    turned,
)


@gluon.jit
def _fetch_chunk(
    xs, dys, zs, Bs, Cs, hs, x, dy, z, B, C, kept, x_row, dy_row, z_row, B_row, C_row, chunk, length,
    P: gl.constexpr, N: gl.constexpr, BYTES: gl.constexpr, WIDE: gl.constexpr, ALIGNED: gl.constexpr,
    HAS_Z: gl.constexpr, INITIAL: gl.constexpr,
):  # fmt: skip
    """Chunk number `chunk`; nothing is read for a negative one, and no state that nobody gave or computed."""
    start = chunk * T
    left = gl.where(chunk < 0, 0, length - start)
    fetch(xs, x, x_row, start, left, P, BYTES, ALIGNED)
    fetch(dys, dy, dy_row, start, left, P, BYTES, ALIGNED)
    if HAS_Z:
        fetch(zs, z, z_row, start, left, P, BYTES, ALIGNED)
    fetch(Bs, B, B_row, start, left, N, BYTES, ALIGNED)
    fetch(Cs, C, C_row, start, left, N, BYTES, ALIGNED)
    fetch(hs, kept, N, chunk * P, gl.where(chunk < (0 if INITIAL else 1), 0, P), N, WIDE, ALIGNED)
    async_copy.commit_group()


@gluon.jit(do_not_specialize=["length", "heads", "per_group"])
def walk_gradient_kernel(
    x, dy, dt, A, B, C, D, z, bias, kept, grad_final, dx, dz, ddt, dB, dC, scales, partials, grad_initial,
    x_batch, x_row, x_head, dt_batch, dt_row, dt_head, B_batch, B_row, B_group, C_batch, C_row, C_group,
    z_batch, z_row, z_head, dx_batch, dx_row, dz_batch, dz_row, ddt_batch, ddt_row, dB_batch, dB_row, dC_batch, dC_row,
    starts, length, heads, per_group,
    P: gl.constexpr, N: gl.constexpr, BP: gl.constexpr, BN: gl.constexpr, BYTES: gl.constexpr, ALIGNED: gl.constexpr,
    HAS_D: gl.constexpr, HAS_Z: gl.constexpr, HAS_BIAS: gl.constexpr, SOFTPLUS: gl.constexpr, INITIAL: gl.constexpr,
    GRAD_FINAL: gl.constexpr, GRAD_INITIAL: gl.constexpr, SCALED: gl.constexpr, PACKED: gl.constexpr,
    PRECISION: gl.constexpr,
):  # fmt: skip
    """dx, dz (B,L,H,P), ddt (B,L,H), dB, dC by head (B,L,H,N), and sums (B,3,H) for A, the bias and D.

    A token's heads lie side by side in each. kept: states before the chunks (B,H,chunks,P,N). Blocks of weights are
    outputs x inputs. SCALED: dB and dC are float16, of each chunk over its own of `scales` (2,B,chunks,H).

    PACKED: all but kept states and sums are one row of examples, `length` that of the longest, and `scales` are those
    of tiles of 8 tokens, (tiles,2,H).
    """
    WIDE: gl.constexpr = 2 if PRECISION == "bf16" else 4  # bytes of an operand and of a kept number
    OPERAND: gl.constexpr = gl.bfloat16 if PRECISION == "bf16" else gl.float32
    X: gl.constexpr = memory_layout(BP, BYTES)
    PARTS: gl.constexpr = memory_layout(BN, 2) if dB.dtype.element_ty.primitive_bitwidth == 16 else MMA
    sequence = gl.program_id(0)
    batch, head = (sequence // heads).to(gl.int64), (sequence % heads).to(gl.int64)
    group = head // per_group
    most = gl.cdiv(length, T)
    place, apart, length = example(starts, batch, length, PACKED)
    chunks = gl.cdiv(length, T)
    if PACKED:
        scales += place // TILE * (2 * heads) + head
    x += place * x_batch + head * x_head
    z += place * z_batch + head * z_head
    dt += place * dt_batch + head * dt_head
    B += place * B_batch + group * B_group
    C += place * C_batch + group * C_group
    dy += (place * apart * heads + head) * P
    dx += place * dx_batch + head * P
    dz += place * dz_batch + head * P
    ddt += place * ddt_batch + head
    dB += place * dB_batch + head * N
    dC += place * dC_batch + head * N
    kept += sequence.to(gl.int64) * most * (P * N)
    rate = gl.load(A + head).to(gl.float32)
    skip, shift = load_scalar(D, head, HAS_D), load_scalar(bias, head, HAS_BIAS)
    t, p, n = gl.arange(0, T, LINE), gl.arange(0, BP, ROW), gl.arange(0, BN, COLUMN)
    tile, exists = p[:, None] * N + n[None, :], (p < P)[:, None] & (n < N)[None, :]
    R = gl.zeros([BP, BN], gl.float32, MMA)
    if GRAD_FINAL:
        R = gl.load(grad_final + sequence.to(gl.int64) * (P * N) + tile, mask=exists, other=0.0)
    sum_A, sum_bias = gl.zeros([T], gl.float32, LINE), gl.zeros([T], gl.float32, LINE)
    sum_D = gl.zeros([T], gl.float32, ROW)
    wide: gl.constexpr = shared_layout(BP, BYTES)
    narrow: gl.constexpr = shared_layout(BN, BYTES)
    xs = gl.allocate_shared_memory(x.dtype.element_ty, [2, T, BP], wide)
    dys = gl.allocate_shared_memory(dy.dtype.element_ty, [2, T, BP], wide)
    zs = gl.allocate_shared_memory(x.dtype.element_ty, [2, T, BP], wide)
    Bs = gl.allocate_shared_memory(x.dtype.element_ty, [2, T, BN], narrow)
    Cs = gl.allocate_shared_memory(x.dtype.element_ty, [2, T, BN], narrow)
    hs = gl.allocate_shared_memory(kept.dtype.element_ty, [2, BP, BN], shared_layout(BN, WIDE))
    # Places of dy and h are taken again, so that eight programs fit on a multiprocessor with 32 states, too.
    APART: gl.constexpr = dy.dtype.element_ty != OPERAND
    if APART:
        inner_shared = gl.allocate_shared_memory(OPERAND, [T, BP], shared_layout(BP, WIDE))
    weights_shared = gl.allocate_shared_memory(OPERAND, [T, T], shared_layout(T, WIDE))
    products_shared = gl.allocate_shared_memory(OPERAND, [T, T], shared_layout(T, WIDE))
    chunk = chunks - 1
    start = chunk * T
    raw = gl.load(dt + (start + t).to(gl.int64) * dt_row, mask=start + t < length, other=0.0)
    _fetch_chunk(
        xs.index(0), dys.index(0), zs.index(0), Bs.index(0), Cs.index(0), hs.index(0), x, dy, z, B, C, kept,
        x_row, heads * P, z_row, B_row, C_row, chunk, length, P, N, BYTES, WIDE, ALIGNED, HAS_Z, INITIAL,
    )  # fmt: skip
    for done in range(chunks):
        stage, chunk = done % 2, chunks - 1 - done
        start = chunk * T
        left = length - start
        here = raw.to(gl.float32) + shift
        step, total = chunk_steps(raw, shift, rate * LOG2E, t < left, SOFTPLUS)
        before = start - T + t
        raw = gl.load(dt + before.to(gl.int64) * dt_row, mask=before >= 0, other=0.0)
        _fetch_chunk(
            xs.index(1 - stage), dys.index(1 - stage), zs.index(1 - stage), Bs.index(1 - stage), Cs.index(1 - stage),
            hs.index(1 - stage), x, dy, z, B, C, kept,
            x_row, heads * P, z_row, B_row, C_row, chunk - 1, length, P, N, BYTES, WIDE, ALIGNED, HAS_Z, INITIAL,
        )  # fmt: skip
        async_copy.wait_group(1)
        x_tile, B_tile, C_tile, h_tile = xs.index(stage), Bs.index(stage), Cs.index(stage), hs.index(stage)
        if not APART:
            inner_shared = dys.index(stage)
        end = gl.sum(gl.where(t == T - 1, total, 0.0), 0)
        all_decay = gl.exp2(end)
        up = gl.exp2(gl.convert_layout(total, ROW))
        down = gl.convert_layout(gl.exp2(end - total), ROW)
        step_i, step_j = gl.convert_layout(step, ROW), gl.convert_layout(step, COLUMN)

        B_left, C_left = from_shared(B_tile, 0, PRECISION), from_shared(C_tile, 0, PRECISION)
        scores, decay, factor, weights = block_of_weights(
            C_left, from_shared(transposed(B_tile), 1, PRECISION), step, total, skip, PRECISION
        )
        inner = dys.index(stage).load(MMA).to(gl.float32)
        if HAS_Z:
            y = product(
                C_left, from_shared(transposed(h_tile), 1, PRECISION), gl.zeros([T, BP], gl.float32, MMA), PRECISION
            )
            y = product(left_operand(weights, PRECISION), from_shared(x_tile, 1, PRECISION), y * up[:, None], PRECISION)
            gate = zs.index(stage).load(MMA).to(gl.float32)
            opened = sigmoid(gate)
            by_gate = inner * opened
            inner = by_gate * gate
            store_tile(dz, y * (by_gate + inner * (1.0 - opened)), dz_row, start, left, P, X)
        own = gl.sum(inner * x_tile.load(MMA).to(gl.float32), 1)
        inner_shared.store(operand(inner, PRECISION))
        weights_shared.store(operand(weights, PRECISION))
        inner_left = left_operand(inner, PRECISION)

        # Strictly before: a token's own part would cancel in the sums by time, but not its rounding.
        products = product(
            inner_left, from_shared(transposed(x_tile), 1, PRECISION), gl.zeros([T, T], gl.float32, MMA), PRECISION
        )
        both = products * decay * scores
        products *= factor
        products_shared.store(operand(products, PRECISION))
        B_own, C_own = B_tile.load(MMA).to(gl.float32), C_tile.load(MMA).to(gl.float32)
        direct = own * gl.sum(B_own * C_own, 1)
        later = gl.convert_layout(gl.sum(both, 0), LINE)

        through = product(inner_left, from_shared(h_tile, 1, PRECISION), gl.zeros([T, BN], gl.float32, MMA), PRECISION)
        through *= up[:, None]
        by_time = gl.sum(both * step_j[None, :], 1) + gl.sum(through * C_own, 1)
        through = product(left_operand(products, PRECISION), from_shared(B_tile, 1, PRECISION), through, PRECISION)
        if SCALED:
            if PACKED:
                scale = scales + start // TILE * (2 * heads)
                all_scales = heads
            else:
                scale = scales + (batch * chunks + chunk) * heads + head
                all_scales = gl.num_programs(0).to(gl.int64) * chunks
            through = fit_into_half(through, scale + all_scales, 2 * heads, left, PACKED)
        store_tile(dC, through, dC_row, start, left, N, PARTS)
        across = gl.sum(gl.reshape(h_tile.load(MMA).to(gl.float32) * R, [BP * BN]), 0) * all_decay

        h_tile.store(operand(R, PRECISION))
        through = product(
            from_shared(x_tile, 0, PRECISION), from_shared(h_tile, 1, PRECISION),
            gl.zeros([T, BN], gl.float32, MMA), PRECISION,
        )  # fmt: skip
        through *= down[:, None]
        by_source = gl.sum(through * B_own, 1)
        direct += by_source
        C_right = C_tile.load(side(1, PRECISION))
        through = product(
            from_shared(transposed(products_shared), 0, PRECISION), operand(C_right, PRECISION),
            through * step_i[:, None], PRECISION,
        )  # fmt: skip
        if SCALED:
            through = fit_into_half(through, scale, 2 * heads, left, PACKED)
        store_tile(dB, through, dB_row, start, left, N, PARTS)

        inner_right = from_shared(inner_shared, 1, PRECISION)
        grad = product(B_left, turned(R, PRECISION), gl.zeros([T, BP], gl.float32, MMA), PRECISION)
        grad = product(
            from_shared(transposed(weights_shared), 0, PRECISION), inner_right, grad * (down * step_i)[:, None],
            PRECISION,
        )  # fmt: skip
        store_tile(dx, grad, dx_row, start, left, P, X)
        weight = gl.convert_layout(gl.exp2(total), gl.SliceLayout(1, side(1, PRECISION)))
        C_weighted = operand(C_right.to(gl.float32) * weight[:, None], PRECISION)
        R = product(from_shared(transposed(inner_shared), 0, PRECISION), C_weighted, R * all_decay, PRECISION)

        times = gl.convert_layout(by_time, LINE) - later * step
        times += gl.where(t == T - 1, across, 0.0)  # the last entry reaches all sums from behind
        sums = sums_from_behind(times) + sums_before(gl.convert_layout(by_source, LINE) * step)
        grad_step = sums * rate + later + gl.convert_layout(direct, LINE)
        if SOFTPLUS:
            grad_step *= sigmoid(here)
        grad_step = gl.where(t < left, grad_step, 0.0)
        gl.store(ddt + (start + t).to(gl.int64) * ddt_row, grad_step.to(ddt.dtype.element_ty), mask=t < left)
        sum_A += sums * step
        sum_bias += grad_step
        sum_D += own
    partials += batch * 3 * heads + head
    gl.store(partials, gl.sum(sum_A, 0))
    gl.store(partials + heads, gl.sum(sum_bias, 0))
    gl.store(partials + 2 * heads, gl.sum(sum_D, 0))
    if GRAD_INITIAL:
        gl.store(grad_initial + sequence.to(gl.int64) * (P * N) + tile, R, mask=exists)
