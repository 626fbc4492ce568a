"""What the kernel of `row_linear` does with its sums before they are stored: norm, bias, gate, convolution, addition.

All of it in float32, on the tile of rows and outputs that a program ends. What it needs besides the sums is asked for
before the first product: weights and states before the wait for the kernel in front, the rest behind it.

Where two outputs make one (`PAIRS`), they lie side by side in a tile: the first halves' output j is element 2 j of all,
the second halves' 2 j + 1.
"""

# mypy: allow-untyped-defs, disable-error-code="assignment,misc"

from triton.experimental import gluon
from triton.experimental.gluon import language as gl


@gluon.constexpr_function
def _threads(rows, tile, warps, least):
    """Outputs of a thread side by side, up to 16 bytes; lanes and warps along the outputs."""
    vector = min(4, max(least, rows * tile // (32 * warps)))
    lanes = min(32, tile // vector)
    return vector, lanes, min(warps, tile // (vector * lanes))


@gluon.constexpr_function
def rows_layout(rows, tile, warps, pairs):
    """Of rows whose outputs lie side by side; of pairs both in one thread."""
    vector, lanes, along = _threads(rows, tile, warps, 2 if pairs else 1)
    return gl.BlockedLayout([1, vector], [32 // lanes, lanes], [warps // along, along], [1, 0])


@gluon.constexpr_function
def halves_layout(rows, tile, warps):
    """Of what pairs make, where they lie."""
    vector, lanes, along = _threads(rows, tile, warps, 2)
    return gl.BlockedLayout([1, vector // 2], [32 // lanes, lanes], [warps // along, along], [1, 0])


@gluon.constexpr_function
def squares_layout(rows, warps):
    """Of sums of squares, (parts, rows)."""
    lanes = min(32, rows)
    along = min(warps, rows // lanes)
    return gl.BlockedLayout([1, 1], [32 // lanes, lanes], [warps // along, along], [1, 0])


@gluon.jit
def inverse_rms(
    squares, row, rows, parts, width, eps, ROWS: gl.constexpr, PARTS: gl.constexpr, WARPS: gl.constexpr,
    LAYOUT: gl.constexpr,
):  # fmt: skip
    """1 / sqrt(mean of r^2 + eps) of ROWS rows from `row` on; `squares` (parts, rows) are summed in a fixed order."""
    SQUARES: gl.constexpr = squares_layout(ROWS, WARPS)
    p = gl.arange(0, PARTS, layout=gl.SliceLayout(1, SQUARES))
    b = row + gl.arange(0, ROWS, layout=gl.SliceLayout(0, SQUARES))
    inside = (p < parts)[:, None] & (b < rows)[None, :]
    found = gl.load(squares + (p[:, None] * rows + b[None, :]), mask=inside, other=0.0)
    mean = gl.convert_layout(gl.sum(found, axis=0), gl.SliceLayout(1, LAYOUT)) / width
    return 1 / gl.sqrt(mean + eps)


@gluon.jit
def _low(word, dtype: gl.constexpr):
    return (word & 0xFFFF).to(gl.int16).to(dtype, bitcast=True).to(gl.float32)


@gluon.jit
def _high(word, dtype: gl.constexpr):
    return (word >> 16).to(gl.int16).to(dtype, bitcast=True).to(gl.float32)


@gluon.jit
def silu(x):
    return x / (1 + gl.exp(-x))


@gluon.jit
def convolved(u, words, taps_0, taps_1, taps_2, taps_bias):
    """silu of a convolution over the two inputs of a word and u (of the weights' dtype); the word after that."""
    dtype: gl.constexpr = u.dtype
    y = _low(words, dtype) * taps_0 + _high(words, dtype) * taps_1 + u.to(gl.float32) * taps_2 + taps_bias
    new = ((words >> 16) & 0xFFFF) | (u.to(gl.int16, bitcast=True).to(gl.int32) << 16)
    return silu(y), new


@gluon.jit
def two_of_pairs(total, HALF: gl.constexpr):
    """The first and the second of each pair."""
    first, second = gl.split(gl.reshape(total, [total.shape[0], total.shape[1] // 2, 2]))
    return gl.convert_layout(first, HALF), gl.convert_layout(second, HALF)


@gluon.jit
def store_rows(y, total, row, first, rows, outputs, LAYOUT: gl.constexpr):
    """Rows from `row` and outputs from `first` on, as far as there are any."""
    b = row + gl.arange(0, total.shape[0], layout=gl.SliceLayout(1, LAYOUT))
    e = first + gl.arange(0, total.shape[1], layout=gl.SliceLayout(0, LAYOUT))
    inside = (b < rows)[:, None] & (e < outputs)[None, :]
    gl.store(y + (b[:, None] * outputs + e[None, :]), total.to(y.dtype.element_ty), mask=inside)


@gluon.jit
def store_stream(
    total, residual, gain, y, new_residual, new_squares, row, tile, rows, outputs, TILE: gl.constexpr,
    LAYOUT: gl.constexpr,
):  # fmt: skip
    """r + sum is the stream, times the next norm's gain what the next product reads; its squares are summed by rows."""
    new = residual + total
    store_rows(new_residual, new, row, tile * TILE, rows, outputs, LAYOUT)
    store_rows(y, new * gain[None, :], row, tile * TILE, rows, outputs, LAYOUT)
    b = row + gl.arange(0, total.shape[0], layout=gl.SliceLayout(1, LAYOUT))
    gl.store(new_squares + (tile * rows + b), gl.sum(new * new, axis=1), mask=b < rows)
