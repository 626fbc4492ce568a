"""Layouts and pieces of the walks of ssd: one warp, chunks of 16 tokens, products by the warp's own matrix units.

Tiles lie as the matrix units leave their results: a thread has pairs of neighbours of two rows. A result is the left
operand of another product, and its transpose the right one, without a move; what needs the other one goes through
shared memory. Sums of steps are formed with a token a lane.

Precision is that of `taylor_tiles`: "bf16", "tf32" or "tf32x3", what operands are rounded to.
"""

# mypy: allow-untyped-defs, disable-error-code="assignment,misc"

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import async_copy, mma_v2

from . import exponentials_triton, packing, ssd_tiles_triton

LOG2E = exponentials_triton.LOG2E
T = gl.constexpr(16)  # tokens of a chunk
TILE = gl.constexpr(packing.ALIGNED)  # tokens; packed examples are whole tiles
_MMA = gl.NVMMADistributedLayout([2, 0], [1, 1], [16, 8])
MMA = gl.constexpr(_MMA)
ROW, COLUMN = gl.constexpr(gl.SliceLayout(1, _MMA)), gl.constexpr(gl.SliceLayout(0, _MMA))  # of vectors
LINE = gl.constexpr(gl.BlockedLayout([1], [32], [1], [0]))  # a token a lane, twice

sigmoid, softplus = gluon.jit(exponentials_triton.sigmoid.fn), gluon.jit(ssd_tiles_triton.softplus.fn)
load_scalar, example = gluon.jit(ssd_tiles_triton.load_scalar.fn), gluon.jit(ssd_tiles_triton.example.fn)


@gluon.constexpr_function
def side(index, precision):
    """Of a product's left (0) and right (1) operand."""
    return gl.DotOperandLayout(index, _MMA, 2 if precision == "bf16" else 1)


@gluon.constexpr_function
def memory_layout(width, element_bytes):
    """Of a tile whose rows pass through memory: 16 bytes a thread."""
    vector = 16 // element_bytes
    lanes = width // vector
    return gl.BlockedLayout([1, vector], [32 // lanes, lanes], [1, 1], [1, 0])


@gluon.constexpr_function
def shared_layout(width, element_bytes):
    """Of rows in shared memory: eight of them, 16 bytes each, in different banks."""
    rows = max(1, 128 // (width * element_bytes))  # that fill the banks once
    return gl.SwizzledSharedLayout(16 // element_bytes, rows, 8 // rows, [1, 0])


@gluon.jit
def operand(x, PRECISION: gl.constexpr):
    """x rounded to nearest as an operand of the matrix units, which would cut tf32 off; NaN stays NaN."""
    if PRECISION == "bf16":
        x = x.to(gl.bfloat16)
    else:
        x = x.to(gl.float32)
        if PRECISION == "tf32":
            x = _rounded(x)
    return x


@gluon.jit
def _rounded(x):
    bits = (x.to(gl.int32, bitcast=True) + 0x1000) & -0x2000
    return gl.where(x == x, bits.to(gl.float32, bitcast=True), x)


@gluon.jit
def product(x, y, accumulator, PRECISION: gl.constexpr):
    """accumulator + x y for operands; tf32x3 is three products of what tf32 keeps and what it cuts off."""
    if PRECISION == "tf32x3":
        x_high, y_high = _rounded(x), _rounded(y)
        accumulator = mma_v2(x - x_high, y_high, accumulator, input_precision="tf32")
        accumulator = mma_v2(x_high, y - y_high, accumulator, input_precision="tf32")
        x, y = x_high, y_high
    return mma_v2(x, y, accumulator, input_precision="tf32")


@gluon.jit
def left_operand(x, PRECISION: gl.constexpr):
    """A result as the left operand of another product."""
    return gl.convert_layout(operand(x, PRECISION), side(0, PRECISION))


@gluon.jit
def turned(x, PRECISION: gl.constexpr):
    """The transpose of a result as the right operand of another product."""
    return gl.convert_layout(gl.permute(operand(x, PRECISION), (1, 0)), side(1, PRECISION))


@gluon.jit
def from_shared(x, INDEX: gl.constexpr, PRECISION: gl.constexpr):
    """The left (0) or right (1) operand."""
    return operand(x.load(side(INDEX, PRECISION)), PRECISION)


@gluon.jit
def transposed(x):
    return x.permute((1, 0))


@gluon.jit
def fetch(shared, pointer, row, first, left, WIDTH: gl.constexpr, BYTES: gl.constexpr, ALIGNED: gl.constexpr):
    """Rows from `first` on, zero beyond the `left` ones and WIDTH, on their way to shared memory; see `arrived`."""
    ROWS: gl.constexpr = shared.shape[0]
    PADDED: gl.constexpr = shared.shape[1]
    layout: gl.constexpr = memory_layout(PADDED, BYTES)
    t, column = gl.arange(0, ROWS, gl.SliceLayout(1, layout)), gl.arange(0, PADDED, gl.SliceLayout(0, layout))
    place = pointer + gl.to_tensor(first).to(gl.int64) * row + (t[:, None] * row + column[None, :])
    inside = (t < left)[:, None]
    if WIDTH != PADDED:
        inside = inside & (column < WIDTH)[None, :]
    if ALIGNED:
        async_copy.async_copy_global_to_shared(shared, place, mask=inside)
    else:
        shared.store(gl.load(place, mask=inside, other=0.0))


@gluon.jit
def chunk_steps(raw, bias, A, inside, SOFTPLUS: gl.constexpr):
    """The step sizes (T,) and the running sums of dt A, in units of log 2; steps outside are 0."""
    dt = raw.to(gl.float32) + bias
    if SOFTPLUS:
        dt = softplus(dt)
    dt = gl.where(inside, dt, 0.0)
    return dt, gl.associative_scan(dt * A, 0, _add)


@gluon.jit
def _add(x, y):
    return x + y


@gluon.jit
def sums_from_behind(x):
    """The sum of each entry and all behind it."""
    return gl.associative_scan(x, 0, _add, reverse=True)


@gluon.jit
def sums_before(x):
    """The sum of all entries before each."""
    return gl.associative_scan(x, 0, _add) - x


@gluon.jit
def block_of_weights(C, B, dt, total, D, PRECISION: gl.constexpr):
    """One chunk's (T,T), outputs x inputs: C B^T, decays strictly before, decays dt, and weights with the skip."""
    i, j = gl.arange(0, T, ROW), gl.arange(0, T, COLUMN)
    sums = gl.convert_layout(total, ROW)[:, None] - gl.convert_layout(total, COLUMN)[None, :]
    decay = gl.exp2(gl.where(i[:, None] > j[None, :], sums, float("-inf")))
    same = i[:, None] == j[None, :]
    factor = gl.where(same, 1.0, decay) * gl.convert_layout(dt, COLUMN)[None, :]
    scores = product(C, B, gl.zeros([T, T], gl.float32, MMA), PRECISION)
    return scores, decay, factor, scores * factor + gl.where(same, D, 0.0)


@gluon.jit
def fit_into_half(x, scale, next_scale, left, PACKED: gl.constexpr):
    """x over a number, which is stored, that makes its largest entry 2^15: float16 is then as good as its 11 bits.

    PACKED: stored for both tiles of the chunk, if the example has the second.
    """
    size: gl.constexpr = x.shape[0] * x.shape[1]
    largest = gl.maximum(gl.max(gl.reshape(gl.abs(x), [size]), 0), 1e-30)
    gl.store(scale, largest * (1.0 / 32768.0))
    if PACKED:
        gl.store(scale + next_scale, largest * (1.0 / 32768.0), mask=left > TILE)
    return x * (32768.0 / largest)


@gluon.jit
def store_tile(pointer, x, row, first, left, WIDTH: gl.constexpr, layout: gl.constexpr):
    """Rows from `first` on of a dense tensor, in the tensor's dtype."""
    ROWS: gl.constexpr = x.shape[0]
    PADDED: gl.constexpr = x.shape[1]
    t, column = gl.arange(0, ROWS, gl.SliceLayout(1, layout)), gl.arange(0, PADDED, gl.SliceLayout(0, layout))
    place = pointer + gl.to_tensor(first).to(gl.int64) * row + (t[:, None] * row + column[None, :])
    inside = (t < left)[:, None]
    if WIDTH != PADDED:
        inside = inside & (column < WIDTH)[None, :]
    gl.store(place, gl.convert_layout(x.to(pointer.dtype.element_ty), layout), mask=inside)
