"""What comes before and after the selective scan's kernels: B, C and A in their layouts, and sums of partial gradients.

One launch each: at short sequences a launch costs as much as a tenth of a scan.
"""

# mypy: allow-untyped-defs

import triton
import triton.language as tl

PACKED_STEPS = 64  # of one program, a multiple of the backward's chunk
PACKED_CHANNELS = 64
SUMMED_BLOCKS = 8  # partial sums in flight at once
SUMMED_CHANNELS = 64


@triton.jit
def _pack_sequence(
    x, rows, columns, tile, L, padded, row_x,
    N: tl.constexpr, WIDTH: tl.constexpr, STATES: tl.constexpr, T: tl.constexpr, TILE: tl.constexpr, KEEP: tl.constexpr,
):  # fmt: skip
    t = tile * TILE + tl.arange(0, TILE)[:, None]
    n = tl.arange(0, STATES)[None, :]
    x_TN = tl.load(x + t * row_x + n, mask=(t < L) & (n < N), other=0.0).to(tl.float32)
    tl.store(rows + t * (2 * WIDTH) + n, x_TN, mask=(t < padded) & (n < WIDTH))
    if KEEP:
        t = tile * TILE + tl.arange(0, TILE)[None, :]
        n = tl.arange(0, STATES)[:, None]
        place = (t // T) * (N * 2 * T) + n * (2 * T) + t % T
        tl.store(columns + place, tl.trans(x_TN), mask=(t < padded) & (n < N))


@triton.jit(do_not_specialize=["L", "padded", "programs"])
def pack(
    B, C, A, rows, columns, A_ND, L, padded, tiles, programs, channels, row_B, row_C, batch_B, batch_C,
    N: tl.constexpr, WIDTH: tl.constexpr, STATES: tl.constexpr, T: tl.constexpr, TILE: tl.constexpr,
    BLOCK_D: tl.constexpr, KEEP: tl.constexpr,
):  # fmt: skip
    """B and C (B,L,N) to rows (B,padded,2,WIDTH) and, to KEEP, columns (B,padded/T,N,2,T); A (D,N) to (N,D).

    All float32, with zeros where there is no step or state. The first `programs` programs take B and C.
    """
    pid = tl.program_id(0)
    if pid < programs:
        b = (pid // tiles).to(tl.int64)
        tile = pid % tiles
        rows += b * padded * (2 * WIDTH)
        columns += b * padded * (2 * N)
        _pack_sequence(B + b * batch_B, rows, columns, tile, L, padded, row_B, N, WIDTH, STATES, T, TILE, KEEP)
        _pack_sequence(
            C + b * batch_C, rows + WIDTH, columns + T, tile, L, padded, row_C, N, WIDTH, STATES, T, TILE, KEEP
        )
    else:
        d = (pid - programs) * BLOCK_D + tl.arange(0, BLOCK_D)
        n = tl.arange(0, STATES)
        inside = (d < channels)[:, None] & (n < N)[None, :]
        A_DN = tl.load(A + d[:, None] * N + n[None, :], mask=inside, other=0.0).to(tl.float32)
        inside = (d < channels)[None, :] & (n < N)[:, None]
        tl.store(A_ND + n[:, None] * channels + d[None, :], tl.trans(A_DN), mask=inside)


@triton.jit
def _sum_sequence(
    partials, out, blocks, stride, first, L,
    N: tl.constexpr, STATES: tl.constexpr, T: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """(blocks,N,2,T), one of the two, over blocks -> steps from `first` of (L,N)."""
    n = tl.arange(0, STATES)
    t = tl.arange(0, T)
    parts = tl.arange(0, PARTS)
    place_NT = n[:, None] * (2 * T) + t[None, :]
    total_PNT = tl.zeros([PARTS, STATES, T], tl.float32)
    for block in range(0, blocks, PARTS):
        here = block + parts
        total_PNT += tl.load(
            partials + here.to(tl.int64)[:, None, None] * stride + place_NT[None],
            mask=(here < blocks)[:, None, None] & (n < N)[None, :, None],
            other=0.0,
        )
    total_NT = tl.sum(total_PNT, 0)
    t = first + t
    mask_TN = (t < L)[:, None] & (n < N)[None, :]
    tl.store(out + t[:, None] * N + n[None, :], tl.trans(total_NT).to(out.dtype.element_ty), mask=mask_TN)


@triton.jit(do_not_specialize=["L", "chunks", "blocks", "programs"])
def finish(
    dBC, dconstants, dB, dC, dA, dD, dbias, L, chunks, blocks, batch, channels, programs,
    N: tl.constexpr, STATES: tl.constexpr, T: tl.constexpr, PARTS: tl.constexpr, BLOCK_D: tl.constexpr,
    HAS_D: tl.constexpr, HAS_BIAS: tl.constexpr,
):  # fmt: skip
    """Gradients of B and C (B,L,N) from the blocks' dBC (blocks,B,chunks,N,2,T); those of A, D and the bias from the
    sequences' dconstants (B,N+2,D). The first `programs` programs take B and C. Every sum has a fixed order.
    """
    pid = tl.program_id(0)
    if pid < programs:
        b = (pid // chunks).to(tl.int64)
        first = (pid % chunks) * T
        stride = (b * 0 + batch) * chunks * (N * 2 * T)  # 64 bits; a batch of 1 is no tensor here
        dBC += pid.to(tl.int64) * (N * 2 * T)
        _sum_sequence(dBC, dB + b * L * N, blocks, stride, first, L, N, STATES, T, PARTS)
        _sum_sequence(dBC + T, dC + b * L * N, blocks, stride, first, L, N, STATES, T, PARTS)
    else:
        pid -= programs
        n = pid % (N + 2)
        d = pid // (N + 2) * BLOCK_D + tl.arange(0, BLOCK_D)
        parts = tl.arange(0, 4 * PARTS)
        inside = d < channels
        total_PD = tl.zeros([4 * PARTS, BLOCK_D], tl.float32)
        for start in range(0, batch, 4 * PARTS):
            b = start + parts
            here = dconstants + (b.to(tl.int64) * (N + 2) + n)[:, None] * channels + d[None, :]
            total_PD += tl.load(here, mask=(b < batch)[:, None] & inside[None, :], other=0.0)
        total_D = tl.sum(total_PD, 0)
        tl.store(dA + d * N + n, total_D.to(dA.dtype.element_ty), mask=inside & (n < N))
        if HAS_D:
            tl.store(dD + d, total_D.to(dD.dtype.element_ty), mask=inside & (n == N))
        if HAS_BIAS:
            tl.store(dbias + d, total_D.to(dbias.dtype.element_ty), mask=inside & (n == N + 1))
