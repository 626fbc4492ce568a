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
QUAD = gl.constexpr(4)  # steps that change places together
LANES = gl.constexpr(4)  # of states; the other 8 of a warp take channels
LOG2E = arithmetic.LOG2E
ROWS = gl.constexpr(gl.SwizzledSharedLayout(1, 1, 1, [1, 0]))
COLUMNS = gl.constexpr(gl.SwizzledSharedLayout(1, 1, 1, [1, 0, 2]))


decay, rates = gluon.jit(arithmetic.decay.fn), gluon.jit(arithmetic.rates.fn)
step_and_slope = gluon.jit(arithmetic.step_and_slope.fn)
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
def tile_lanes(block_d, warps):
    """Channels next to each other in a thread of a (T, D) tile, and its warp's lanes along T and D.

    Warps take different steps: a row of 32 channels in eight lanes is read and written at once, in memory and, in
    float32, in shared memory.
    """
    vector = min(4, max(1, block_d // (4 * warps)))
    return vector, 32 * vector // block_d, block_d // vector


@gluon.constexpr_function
def tile_layout(block_d, warps=1):
    """Of (T, D)."""
    vector, along_t, along_d = tile_lanes(block_d, warps)
    return gl.BlockedLayout([1, vector], [along_t, along_d], [warps, 1], [1, 0])


@gluon.constexpr_function
def parts_layout(block_d, warps=1):
    """Of (T, LANES, D), a tile's threads with the partial sums of all lanes of states."""
    vector, along_t, along_d = tile_lanes(block_d, warps)
    return gl.BlockedLayout([1, 4, vector], [along_t, 1, along_d], [warps, 1, 1], [2, 1, 0])


@gluon.constexpr_function
def parts_places(block_d):
    """Of (T, LANES, D) in shared memory: lanes of states next to each other in different banks."""
    return gl.SwizzledSharedLayout(block_d // 2, 1, 2, [2, 1, 0])


@gluon.constexpr_function
def columns_layout(width, warps=1):
    """Of (T, WIDTH) in memory."""
    vector = max(2, min(4, width // (4 * warps)))
    return gl.BlockedLayout([1, vector], [32 * vector // width, width // vector], [warps, 1], [1, 0])


@gluon.jit
def load_rows(pointer, t, d, L, row: gl.constexpr, channels: gl.constexpr, BLOCK_D: gl.constexpr):
    """(T,D) of a sequence, zeros outside."""
    return gl.load(
        pointer + t[:, None].to(gl.int64) * row + d[None, :], mask=rows_inside(t, d, L, channels, BLOCK_D), other=0.0
    )


@gluon.constexpr_function
def pairs_layout(whole):
    """Of (T, half as many numbers), two of 16 bits in each, by the threads of a layout `whole`."""
    return gl.BlockedLayout(
        [1, whole.size_per_thread[1] // 2], whole.threads_per_warp, whole.warps_per_cta, whole.order
    )


@gluon.jit
def pairs_of(pointer):
    return pointer.to(gl.pointer_type(gl.int32), bitcast=True)


@gluon.jit
def taken_apart(pairs, dtype: gl.constexpr, WHOLE: gl.constexpr):
    """Numbers of 16 bits (T,D) from pairs (T,D/2).

    Rows are loaded in pairs where they wait for the next tile: others would be taken apart, and waited for, at once.
    """
    low = (pairs & 0xFFFF).to(gl.int16).to(dtype, bitcast=True)
    high = (pairs >> 16).to(gl.int16).to(dtype, bitcast=True)
    both = gl.reshape(gl.join(low, high), [pairs.shape[0], 2 * pairs.shape[1]])
    return gl.convert_layout(both, WHOLE, assert_trivial=True)


@gluon.jit
def not_before(x):
    """x as it is known from here on: what follows from a load does not wait for it earlier."""
    if x.dtype.primitive_bitwidth == 16:
        return gl.inline_asm_elementwise("mov.b32 $0, $1;", "=r,r", [x], dtype=x.dtype, is_pure=False, pack=2)
    return gl.inline_asm_elementwise("mov.b32 $0, $1;", "=r,r", [x], dtype=x.dtype, is_pure=False, pack=1)


@gluon.jit
def packed_tiles(starts, example):
    """Of an example in a packed row: its first tile there, and the one behind its last.

    As numbers of which nothing is known: the compiler would count tokens and addresses from the loaded ones, each in
    registers of its own, in a loop that has none left.
    """
    begin = not_before(gl.load(starts + example) // T)
    return begin, not_before(gl.load(starts + example + 1) // T)


@gluon.jit
def load_slots(asked, t, L, ASKED: gl.constexpr):
    """(T,) of a sequence: the rows of asked tokens, -1 for others; without ASKED nothing that is used."""
    slot = t * 0
    if ASKED:
        slot = gl.load(asked + t, mask=t < L, other=-1)
    return slot


@gluon.jit
def asked_inside(slot, d, channels: gl.constexpr, BLOCK_D: gl.constexpr):
    """`rows_inside` of rows that are asked for."""
    inside = (slot >= 0)[:, None] & (d >= 0)[None, :]
    if channels % BLOCK_D != 0:
        inside = inside & (d < channels)[None, :]
    return inside


@gluon.jit
def load_either(
    pointer, t, slot, d, L, row: gl.constexpr, channels: gl.constexpr, BLOCK_D: gl.constexpr, ASKED: gl.constexpr
):
    """(T,D) of a sequence, zeros outside; ASKED: of rows that slots name, zeros for tokens without."""
    if ASKED:
        places = slot[:, None].to(gl.int64) * row + d[None, :]
        return gl.load(pointer + places, mask=asked_inside(slot, d, channels, BLOCK_D), other=0.0)
    return load_rows(pointer, t, d, L, row, channels, BLOCK_D)


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
def joined(tiles):
    """Four tiles -> one with a dimension of 4 behind, all in registers."""
    four = gl.join(gl.join(tiles[0], tiles[2]), gl.join(tiles[1], tiles[3]))
    return gl.reshape(four, [tiles[0].shape[0], tiles[0].shape[1], QUAD])


@gluon.jit
def store_parts(shared, first: gl.constexpr, rows):
    """Four steps' sums over a thread's states (LANES, D). By fours: between two parts of a block there is a barrier."""
    shared.slice(first, QUAD).store(gl.permute(joined(rows), (2, 0, 1)))


@gluon.jit
def sum_of_lanes(shared, LSD: gl.constexpr, TD: gl.constexpr):
    """Partial sums over each lane's states (T,LANES,D) -> (T,D)."""
    return gl.convert_layout(gl.sum(shared.load(LSD), 1), TD, assert_trivial=True)


@gluon.jit
def columns(x_TN, SN: gl.constexpr):
    """(T,N) -> (LANES, SN, T N / (LANES SN)), all in registers."""
    groups: gl.constexpr = x_TN.shape[0] * x_TN.shape[1] // (LANES * SN)
    return gl.permute(gl.reshape(x_TN.to(gl.float32), [groups, LANES, SN]), (1, 2, 0))
