"""The decode step of taylor_attention with a head's state on its way through shared memory from the beginning.

The program's first instructions copy the state of its head to shared memory, whole (40 kB at 153 features of 64 values)
or as much of it as is given there: no registers are held by loads under way, so that five programs fit on a
multiprocessor, and while some of them compute or write, the others' reads are in flight. Rows of V + 1 floats are
aligned to 4 bytes; copies are no wider.

Each thread copies the numbers that it will use and writes them back: no thread sees what another one copied or wrote,
save the features, which are formed once, number by number, and read from shared memory by the row.
"""

# mypy: allow-untyped-defs, disable-error-code="assignment,misc"

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import async_copy

from . import taylor_step_triton

dimensions = gluon.jit(taylor_step_triton.dimensions.fn)
features = gluon.jit(taylor_step_triton.features.fn)
barrier = getattr(gl, "thread_barrier", None) or gl.barrier  # Triton 3.7 renamed it
ROWS = gl.constexpr(32)  # features of a tile


@gluon.jit
def _places(tile, F: gl.constexpr, V: gl.constexpr, PADDED: gl.constexpr, LAYOUT: gl.constexpr):
    """Where a tile's numbers lie in the state, and whether there are any."""
    feature = tile * ROWS + gl.arange(0, ROWS, layout=gl.SliceLayout(1, LAYOUT))
    value = gl.arange(0, PADDED, layout=gl.SliceLayout(0, LAYOUT))
    return feature[:, None] * (V + 1) + value[None, :], (feature < F)[:, None] & (value < V)[None, :]


@gluon.jit
def _fetch(shared, state, tile, F: gl.constexpr, V: gl.constexpr, LAYOUT: gl.constexpr):
    """A tile on its way to shared memory."""
    place, exists = _places(tile, F, V, shared.shape[1], LAYOUT)
    async_copy.async_copy_global_to_shared(shared, state + place, mask=exists)
    async_copy.commit_group()


@gluon.jit
def _feature_rows(pointer, feature, F: gl.constexpr, K: gl.constexpr):
    """phi of one head, zeros beyond its last feature."""
    i, j = dimensions(gl.minimum(gl.maximum(feature - 1 - K, 0), F - 2 - K), K)
    return gl.where(feature < F, features(pointer, feature, i, j, K), 0.0)


@gluon.jit(do_not_specialize=["heads"])
def step_kernel(
    q, k, v, y, state, q_batch, q_head, k_batch, k_head, v_batch, v_head, heads,
    K: gl.constexpr, V: gl.constexpr, F: gl.constexpr, BLOCK_F: gl.constexpr, BLOCK_V: gl.constexpr,
    BUFFERS: gl.constexpr, WARPS: gl.constexpr,
):  # fmt: skip
    """F features; BLOCK_F of them, and BLOCK_V values, with those that are not there. As many threads at most.

    BUFFERS tiles are on their way at first; the others follow into their places.
    """
    TILES: gl.constexpr = (F + ROWS - 1) // ROWS
    LINE: gl.constexpr = gl.BlockedLayout([1], [32], [WARPS], [0])
    TILE: gl.constexpr = gl.BlockedLayout([ROWS // WARPS, 1], [1, 32], [WARPS, 1], [1, 0])
    PLAIN: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [1, 0])
    head = gl.program_id(0)
    batch = (head // heads).to(gl.int64)
    q += batch * q_batch + (head % heads) * q_head
    k += batch * k_batch + (head % heads) * k_head
    v += batch * v_batch + (head % heads) * v_head
    state += head.to(gl.int64) * (F * (V + 1))
    tiles = gl.allocate_shared_memory(gl.float32, [BUFFERS, ROWS, BLOCK_V], PLAIN)
    for tile in gl.static_range(BUFFERS):
        _fetch(tiles.index(tile), state, tile, F, V, TILE)
    feature = gl.arange(0, BLOCK_F, layout=LINE)
    sums = gl.load(state + feature * (V + 1) + V, mask=feature < F, other=0.0)
    value = gl.arange(0, BLOCK_V, layout=gl.SliceLayout(0, TILE))
    v_V = gl.load(v + value, mask=value < V, other=0.0).to(gl.float32)
    phi_q, phi_k = _feature_rows(q, feature, F, K), _feature_rows(k, feature, F, K)
    sums += phi_k
    gl.store(state + feature * (V + 1) + V, sums, mask=feature < F)
    z = gl.sum(phi_q * sums, 0)
    phi_qs = gl.allocate_shared_memory(gl.float32, [BLOCK_F], gl.SwizzledSharedLayout(1, 1, 1, [0]))
    phi_ks = gl.allocate_shared_memory(gl.float32, [BLOCK_F], gl.SwizzledSharedLayout(1, 1, 1, [0]))
    phi_qs.store(phi_q)
    phi_ks.store(phi_k)
    barrier()
    y_FV = gl.zeros([ROWS, BLOCK_V], gl.float32, TILE)
    for tile in gl.static_range(TILES):
        async_copy.wait_group(min(BUFFERS, TILES - tile) - 1)
        place, exists = _places(tile, F, V, BLOCK_V, TILE)
        phi_F = phi_ks.slice(tile * ROWS, ROWS).load(gl.SliceLayout(1, TILE))
        rows_FV = tiles.index(tile % BUFFERS).load(TILE) + phi_F[:, None] * v_V[None, :]
        if tile + BUFFERS < TILES:
            barrier()
            _fetch(tiles.index(tile % BUFFERS), state, tile + BUFFERS, F, V, TILE)
        gl.store(state + place, rows_FV, mask=exists)
        y_FV += phi_qs.slice(tile * ROWS, ROWS).load(gl.SliceLayout(1, TILE))[:, None] * rows_FV
    y_V = gl.sum(y_FV, 0) / z
    gl.store(y + head.to(gl.int64) * V + value, y_V.to(y.dtype.element_ty), mask=value < V)
