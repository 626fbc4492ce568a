"""Layouts of the selective scan's kernels: eight lanes of channels, four of states, some of each in every thread.

A program is one warp. A tile of states (LANES, SN, D) has SN states and D / 8 channels in a thread: at each step a
thread reads its channels' step sizes and its states' B and C from shared memory, which all its products share. What
belongs to single steps and channels, softplus and gates, is computed once, in tiles (T,D) spread over all lanes.
"""

# mypy: allow-untyped-defs, disable-error-code="assignment,misc"

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from . import selective_scan_tiles_triton as arithmetic

# Triton 3.7 renamed it.
barrier = getattr(gl, "thread_barrier", None) or gl.barrier

T = gl.constexpr(8)  # steps in a tile
LANES = gl.constexpr(4)  # of states; the other 8 of a warp take channels
LOG2E = arithmetic.LOG2E
ROWS = gl.constexpr(gl.SwizzledSharedLayout(1, 1, 1, [1, 0]))
CUBE = gl.constexpr(gl.SwizzledSharedLayout(1, 1, 1, [2, 1, 0]))
COLUMNS = gl.constexpr(gl.SwizzledSharedLayout(1, 1, 1, [1, 0, 2]))


decay, rates = gluon.jit(arithmetic.decay.fn), gluon.jit(arithmetic.rates.fn)
sigmoid, step_size = gluon.jit(arithmetic.sigmoid.fn), gluon.jit(arithmetic.step_size.fn)


@gluon.constexpr_function
def power_of_two(n):
    """The next one."""
    return 1 << (n - 1).bit_length()


@gluon.constexpr_function
def states_layout(block_d, sn, warps=1):
    """Of (LANES, SN, D)."""
    return gl.BlockedLayout([1, sn, block_d // (8 * warps)], [4, 1, 8], [1, 1, warps], [2, 1, 0])


@gluon.constexpr_function
def tile_layout(block_d, warps=1):
    """Of (T, D)."""
    return gl.BlockedLayout([1, block_d // (4 * warps)], [8, 4], [1, warps], [1, 0])


@gluon.constexpr_function
def parts_layout(block_d, warps=1):
    """Of (LANES, T, D), a tile's threads with the partial sums of all lanes of states."""
    return gl.BlockedLayout([4, 1, block_d // (4 * warps)], [1, 8, 4], [1, 1, warps], [2, 1, 0])


@gluon.constexpr_function
def columns_layout(sn, warps=1):
    """Of (T, N) in memory."""
    return gl.BlockedLayout([1, max(2, sn // warps)], [8, 4], [1, warps], [1, 0])


@gluon.jit
def load_rows(pointer, t, d, L, row: gl.constexpr, channels: gl.constexpr, BLOCK_D: gl.constexpr):
    """(T,D) of a sequence, zeros outside."""
    return gl.load(
        pointer + t[:, None].to(gl.int64) * row + d[None, :], mask=rows_inside(t, d, L, channels, BLOCK_D), other=0.0
    )


@gluon.jit
def rows_inside(t, d, L, channels: gl.constexpr, BLOCK_D: gl.constexpr):
    """Channels are only compared where a program may be cut off: a comparison would hinder wide loads."""
    inside = (t < L)[:, None] & (d >= 0)[None, :]
    if channels % BLOCK_D != 0:
        inside = inside & (d < channels)[None, :]
    return inside


@gluon.jit
def load_columns(pointer, t, n, L, row, N: gl.constexpr, WIDTH: gl.constexpr):
    """(T,WIDTH) of B or C, zeros outside."""
    inside = (t < L)[:, None]
    if N != WIDTH:
        inside = inside & (n < N)[None, :]
    return gl.load(pointer + t[:, None].to(gl.int64) * row + n[None, :], mask=inside, other=0.0)


@gluon.jit
def load_constant(pointer, d, channels, HAS: gl.constexpr):
    """A row of float32 parameters, or zeros."""
    constant = (d * 0).to(gl.float32)
    if HAS:
        constant = gl.load(pointer + d, mask=d < channels, other=0.0).to(gl.float32)
    return constant


@gluon.jit
def state_places(first, SN: gl.constexpr, BLOCK_D: gl.constexpr, S3: gl.constexpr):
    """Which states (LANES,SN,1), and which channels (1,1,D), of a tile of states."""
    lane = gl.arange(0, LANES, gl.SliceLayout(1, gl.SliceLayout(2, S3)))
    n = gl.arange(0, SN, gl.SliceLayout(0, gl.SliceLayout(2, S3)))
    n = gl.expand_dims(lane, 1) * SN + gl.expand_dims(n, 0)
    d = first + gl.arange(0, BLOCK_D, gl.SliceLayout(0, gl.SliceLayout(0, S3)))
    return gl.expand_dims(n, 2), gl.expand_dims(gl.expand_dims(d, 0), 0)


@gluon.jit
def joined(rows):
    """Four tiles -> one with the dimensions 2, 2 behind, all in registers."""
    return gl.join(gl.join(rows[0], rows[2]), gl.join(rows[1], rows[3]))


@gluon.jit
def stacked(rows):
    """One, four or eight (LANES, D) -> (LANES, as many, D)."""
    STEPS: gl.constexpr = len(rows)
    tiles = rows[0]
    if STEPS == 4:
        tiles = joined(rows)
    if STEPS == 8:
        pairs = ()
        for i in gl.static_range(4):
            pairs += (gl.join(rows[i], rows[i + 4]),)
        tiles = joined(pairs)
    return gl.permute(gl.reshape(tiles, [rows[0].shape[0], rows[0].shape[1], STEPS]), (0, 2, 1))


@gluon.jit
def columns(x_TN, SN: gl.constexpr):
    """(T,N) -> (LANES, SN, T N / (LANES SN)), all in registers."""
    groups: gl.constexpr = x_TN.shape[0] * x_TN.shape[1] // (LANES * SN)
    return gl.permute(gl.reshape(x_TN.to(gl.float32), [groups, LANES, SN]), (1, 2, 0))
