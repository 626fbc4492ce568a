"""A tile's inputs on their way to shared memory while another tile is at work, for the selective scan's backward.

A load into registers that is asked for early takes those registers all the while, and one of the six scoreboards that
loads from shared memory need. A copy takes neither. Threads copy what they themselves will read, but for states.
"""

# mypy: allow-untyped-defs, disable-error-code="assignment,misc"

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import async_copy

from .selective_scan_tiles_gluon import LANES, ROWS, T, asked_inside, power_of_two, rows_inside


@gluon.constexpr_function
def kept_layout(block_d, warps):
    """Of states (N, D) on their way: 16 bytes a thread."""
    along_d = block_d // 4
    return gl.BlockedLayout([1, 4], [32 // along_d, along_d], [warps, 1], [1, 0])


@gluon.constexpr_function
def kept_places(block_d, sn, warps):
    """Of (LANES SN, D) in shared memory: lanes of states that are read together in different banks."""
    return gl.SwizzledSharedLayout(block_d // warps, sn, warps, [1, 0])


@gluon.constexpr_function
def kept_rows(block_d, sn, warps):
    """Of (LANES SN, D), the threads of a tile of states (LANES, SN, D)."""
    return gl.BlockedLayout([sn, block_d // (8 * warps)], [4, 8], [1, warps], [1, 0])


@gluon.jit
def room(u, delta, B, C, z, open_y, dy, SN: gl.constexpr, GROUPS: gl.constexpr, BLOCK_D: gl.constexpr,
         WARPS: gl.constexpr, HAS_Z: gl.constexpr):  # fmt: skip
    """For a tile's delta, u, dy, z, y before the gate, B, C and states."""
    WIDTH: gl.constexpr = power_of_two(GROUPS) * LANES * SN
    delta_shared = gl.allocate_shared_memory(delta.dtype.element_ty, [T, BLOCK_D], ROWS)
    u_shared = gl.allocate_shared_memory(u.dtype.element_ty, [T, BLOCK_D], ROWS)
    dy_shared = gl.allocate_shared_memory(dy.dtype.element_ty, [T, BLOCK_D], ROWS)
    z_shared = dy_shared
    y_shared = dy_shared
    if HAS_Z:
        z_shared = gl.allocate_shared_memory(z.dtype.element_ty, [T, BLOCK_D], ROWS)
        y_shared = gl.allocate_shared_memory(open_y.dtype.element_ty, [T, BLOCK_D], ROWS)
    B_shared = gl.allocate_shared_memory(B.dtype.element_ty, [T, WIDTH], ROWS)
    C_shared = gl.allocate_shared_memory(C.dtype.element_ty, [T, WIDTH], ROWS)
    kept_shared = ()
    for _ in gl.static_range(GROUPS):
        kept_shared += (gl.allocate_shared_memory(gl.float32, [LANES * SN, BLOCK_D], kept_places(BLOCK_D, SN, WARPS)),)
    return delta_shared, u_shared, dy_shared, z_shared, y_shared, B_shared, C_shared, kept_shared


@gluon.jit
def copy_rows(shared, pointer, t, d, L, row: gl.constexpr, channels: gl.constexpr, BLOCK_D: gl.constexpr):
    """(T,D) of a sequence, zeros outside."""
    async_copy.async_copy_global_to_shared(
        shared, pointer + t[:, None].to(gl.int64) * row + d[None, :], mask=rows_inside(t, d, L, channels, BLOCK_D)
    )


@gluon.jit
def copy_either(
    shared, pointer, t, slot, d, L, row: gl.constexpr, channels: gl.constexpr, BLOCK_D: gl.constexpr,
    ASKED: gl.constexpr,
):  # fmt: skip
    """(T,D) of a sequence, zeros outside; ASKED: of rows that slots name, zeros for tokens without."""
    if ASKED:
        async_copy.async_copy_global_to_shared(
            shared, pointer + slot[:, None].to(gl.int64) * row + d[None, :],
            mask=asked_inside(slot, d, channels, BLOCK_D),
        )  # fmt: skip
    else:
        copy_rows(shared, pointer, t, d, L, row, channels, BLOCK_D)


@gluon.jit
def copy_columns(shared, pointer, t, n, L, row: gl.constexpr, N: gl.constexpr, WIDTH: gl.constexpr):
    """(T,WIDTH) of B or C, zeros outside."""
    inside = (t < L)[:, None]
    if N != WIDTH:
        inside = inside & (n < N)[None, :]
    async_copy.async_copy_global_to_shared(
        shared, pointer + t[:, None].to(gl.int64) * row + n[None, :], mask=inside & (n >= 0)[None, :]
    )


@gluon.jit
def ask(
    places, u, delta, B, C, z, open_y, dy, kept, tile, slot, tt, tn, d, n, first, L, row_B: gl.constexpr,
    row_C: gl.constexpr, channels: gl.constexpr, row_u: gl.constexpr, row_delta: gl.constexpr, row_z: gl.constexpr,
    row_dy: gl.constexpr, N: gl.constexpr, SN: gl.constexpr, BLOCK_D: gl.constexpr, WARPS: gl.constexpr,
    HAS_Z: gl.constexpr, ASKED: gl.constexpr,
):  # fmt: skip
    """Of a sequence's tile: delta, u, dy, z and y before the gate (or dy), B and C, as in memory; the states before."""
    KEPT: gl.constexpr = kept_layout(BLOCK_D, WARPS)
    GROUP: gl.constexpr = LANES * SN
    t = tile * T
    copy_rows(places[0], delta, t + tt, d, L, row_delta, channels, BLOCK_D)
    copy_rows(places[1], u, t + tt, d, L, row_u, channels, BLOCK_D)
    copy_either(places[2], dy, t + tt, slot, d, L, row_dy, channels, BLOCK_D, ASKED)
    if HAS_Z:
        copy_either(places[3], z, t + tt, slot, d, L, row_z, channels, BLOCK_D, ASKED)
        copy_either(places[4], open_y, t + tt, slot, d, L, channels, channels, BLOCK_D, ASKED)
    copy_columns(places[5], B, t + tn, n, L, row_B, N, n.shape[0])
    copy_columns(places[6], C, t + tn, n, L, row_C, N, n.shape[0])
    dk = first + gl.arange(0, BLOCK_D, gl.SliceLayout(0, KEPT))
    for i in gl.static_range((N + GROUP - 1) // GROUP):
        nk = i * GROUP + gl.arange(0, GROUP, gl.SliceLayout(1, KEPT))
        inside = (nk < N)[:, None] & (dk >= 0)[None, :]
        if channels % BLOCK_D != 0:
            inside = inside & (dk < channels)[None, :]
        here = kept + (tile * N + nk)[:, None].to(gl.int64) * channels + dk[None, :]
        async_copy.async_copy_global_to_shared(places[7][i], here, mask=inside)
    async_copy.commit_group()


@gluon.constexpr_function
def words_layout(layout):
    """Of a tile's rows in words of two bfloat16, the same threads'."""
    sizes = [*layout.size_per_thread[:-1], layout.size_per_thread[-1] // 2]
    return gl.BlockedLayout(sizes, layout.threads_per_warp, layout.warps_per_cta, layout.order)


@gluon.jit
def widened(shared, LAYOUT: gl.constexpr):
    """As float32. A bfloat16 is the upper half of one: two take two instructions, where conversions take three."""
    if shared.dtype == gl.bfloat16:
        ROW_COUNT: gl.constexpr = shared.shape[0]
        WIDTH: gl.constexpr = shared.shape[1]
        words = shared._reinterpret(gl.int32, [ROW_COUNT, WIDTH // 2], ROWS).load(words_layout(LAYOUT))
        both = gl.join(words << 16, words & -65536).to(gl.float32, bitcast=True)
        found = gl.convert_layout(gl.reshape(both, [ROW_COUNT, WIDTH]), LAYOUT, assert_trivial=True)
    else:
        found = shared.load(LAYOUT).to(gl.float32)
    return found


@gluon.jit
def take(places, TD: gl.constexpr, TN: gl.constexpr):
    """What a thread itself copied, all but the states, as float32."""
    return (
        widened(places[0], TD), widened(places[1], TD), widened(places[2], TD), widened(places[3], TD),
        widened(places[4], TD), widened(places[5], TN), widened(places[6], TN),
    )  # fmt: skip
