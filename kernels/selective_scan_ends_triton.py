"""Around the selective scan's kernels: states before segments, and sums of partial gradients.

One launch each: at short sequences a launch costs as much as a tenth of a scan.
"""

# mypy: allow-untyped-defs

import triton
import triton.language as tl

from .selective_scan_tiles_triton import LOG2E, rates

CARRIED_CHANNELS = 32  # of a program
SUMMED = 512  # sums of a program: four of a thread, of 16 bytes in each block
SUMMED_BLOCKS = 8  # of which a thread has numbers in flight at once
SUMMED_SEGMENTS, SUMMED_CHANNELS = 64, 32


@triton.jit(do_not_specialize=["slots"])
def carry(
    states, steps, A, given, slots, channels, N: tl.constexpr, STATES: tl.constexpr, BLOCK_D: tl.constexpr,
    LOG_A: tl.constexpr, HAS_STATE: tl.constexpr, REVERSE: tl.constexpr,
):  # fmt: skip
    """In place: from what each segment alone hands to the next, in that one's slot of states (B,slots,N,D), to what it
    hands on after all before it. `steps` (B,slots,D) are the segments' sums, `given` (B,D,N) what the first one gets.
    In REVERSE the first is the last.
    """
    b = tl.program_id(1).to(tl.int64)
    n = tl.arange(0, STATES)[:, None]
    d = tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D)[None, :]
    inside = (n < N) & (d < channels)
    A_ND = rates(tl.load(A + d * N + n, mask=inside, other=0.0), LOG_A)
    state_ND = tl.zeros([STATES, BLOCK_D], tl.float32)
    if HAS_STATE:
        state_ND = tl.load(given + (b * channels + d) * N + n, mask=inside, other=0.0).to(tl.float32)
    slot = b * slots
    if REVERSE:
        slot += slots - 1
    tl.store(states + (slot * N + n) * channels + d, state_ND, mask=inside)
    for _ in range(slots - 1):
        step_D = tl.load(steps + slot * channels + d, mask=d < channels, other=0.0)
        if REVERSE:
            slot -= 1
        else:
            slot += 1
        here = states + (slot * N + n) * channels + d
        state_ND = tl.exp2(step_D * A_ND) * state_ND + tl.load(here, mask=inside, other=0.0)
        tl.store(here, state_ND, mask=inside)


@triton.jit
def _sum_blocks(
    dBC, dB, dC, tile, blocks, stride, L, row_dB, row_dC,
    N: tl.constexpr, WIDTH: tl.constexpr, EACH: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """EACH numbers of one sequence's (steps,2,WIDTH) over blocks, `stride` apart -> their places in dB and dC (L,N).

    They are taken as they lie in memory, whatever step they belong to: a thread has four neighbours of each block.
    """
    first = tile.to(tl.int64) * EACH
    before = first // (2 * WIDTH)
    here, rest = tl.arange(0, EACH), (first - before * (2 * WIDTH)).to(tl.int32)
    inside = here < (L - before) * (2 * WIDTH) - rest
    total = tl.zeros([EACH], tl.float32)
    dBC += first
    for block in range(0, blocks, PARTS):
        for i in tl.static_range(PARTS):
            part = dBC + (block + i) * stride
            total += tl.load(part + here, mask=inside & (block + i < blocks), other=0.0)
    t, n = (rest + here) // (2 * WIDTH), (rest + here) % (2 * WIDTH)
    row = t + before
    tl.store(dB + row * row_dB + n, total.to(dB.dtype.element_ty), mask=inside & (n < N))
    tl.store(
        dC + row * row_dC + (n - WIDTH), total.to(dC.dtype.element_ty), mask=inside & (n >= WIDTH) & (n < WIDTH + N)
    )


@triton.jit
def _sum_constants(
    dconstants, A, dA, dD, dbias, n, block, parts, channels,
    N: tl.constexpr, LOG_A: tl.constexpr, PARTS: tl.constexpr, BLOCK_D: tl.constexpr, HAS_D: tl.constexpr,
    HAS_BIAS: tl.constexpr,
):  # fmt: skip
    """One row of (parts,N+2,D) over parts -> a column of dA (D,N), dD or dbias. LOG_A: dA is of log(-A), A dA."""
    d = block * BLOCK_D + tl.arange(0, BLOCK_D)
    lane = tl.arange(0, PARTS)
    inside = d < channels
    total_PD = tl.zeros([PARTS, BLOCK_D], tl.float32)
    for start in range(0, parts, PARTS):
        part = start + lane
        here = dconstants + (part.to(tl.int64) * (N + 2) + n)[:, None] * channels + d[None, :]
        total_PD += tl.load(here, mask=(part < parts)[:, None] & inside[None, :], other=0.0)
    total_D = tl.sum(total_PD, 0)
    if LOG_A:
        A_D = rates(tl.load(A + d * N + n, mask=inside & (n < N), other=0.0), LOG_A) / LOG2E
        total_D *= tl.where(n < N, A_D, 1.0)
    tl.store(dA + d * N + n, total_D.to(dA.dtype.element_ty), mask=inside & (n < N))
    if HAS_D:
        tl.store(dD + d, total_D.to(dD.dtype.element_ty), mask=inside & (n == N))
    if HAS_BIAS:
        tl.store(dbias + d, total_D.to(dbias.dtype.element_ty), mask=inside & (n == N + 1))


@triton.jit(do_not_specialize=["L", "steps", "tiles", "blocks", "programs"])
def finish(
    dBC, dconstants, A, dB, dC, dA, dD, dbias, L, steps, tiles, blocks, batch, parts, channels, programs,
    row_dB, row_dC,
    N: tl.constexpr, LOG_A: tl.constexpr, WIDTH: tl.constexpr, EACH: tl.constexpr, UNIT: tl.constexpr,
    PARTS: tl.constexpr, SEGMENTS: tl.constexpr, BLOCK_D: tl.constexpr, HAS_D: tl.constexpr, HAS_BIAS: tl.constexpr,
):  # fmt: skip
    """Gradients of B and C (B,L,N), rows UNIT row_dB and row_dC apart, from the blocks' dBC (blocks,B,steps,2,WIDTH);
    those of A, D and the bias from the segments' dconstants (parts,N+2,D). Every sum has a fixed order.

    The first `programs` programs take A, D and the bias: each has a long way to go.
    """
    pid = tl.program_id(0)
    if pid < programs:
        n = pid % (N + 2)
        _sum_constants(
            dconstants, A, dA, dD, dbias, n, pid // (N + 2), parts, channels,
            N, LOG_A, SEGMENTS, BLOCK_D, HAS_D, HAS_BIAS,
        )  # fmt: skip
    else:
        pid -= programs
        b = (pid // tiles).to(tl.int64)
        one = (b * 0 + steps) * (2 * WIDTH)  # 64 bits: of one sequence
        _sum_blocks(
            dBC + b * one, dB + b * L * row_dB * UNIT, dC + b * L * row_dC * UNIT, pid % tiles, blocks, batch * one, L,
            row_dB * UNIT, row_dC * UNIT, N, WIDTH, EACH, PARTS,
        )  # fmt: skip
