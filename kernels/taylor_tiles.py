"""What the Triton kernels of taylor_attention share: tiles, their precision, and the state between segments.

A sequence is cut into segments. Inside a segment attention is quadratic, T x T tiles of weights that never reach
memory; what comes from other segments goes through a state, one per segment, laid out for the matrix units:

    rows    the key's dimensions are cut into blocks of 8. Each pair of blocks (a <= b) is 64 rows, sum_t x_ai x_bj w_t;
            PAIRS of them, then BL rows of sum_t [x_i, 1] w_t (i = K is the constant)
    moments (BL,BL), sum_t g_t [x, 1]^T [x, 1]: the normaliser of all queries without a single feature

Forward: x = k, w = v, g = 1. Backward, from the end: x = q, w = dy / z, g = -delta. No coefficient is stored; weights
1 + s + s^2 / 2 are put together from the parts in float32.

Precision is "bf16", "tf32" or "tf32x3": what the operands of a product are rounded to (accumulation is float32).
float16 inputs take tf32x3: their weights pass 65504 soon, and one tf32 product would cost half of float16's accuracy.
"""

# mypy: allow-untyped-defs

import triton
import triton.language as tl


@triton.jit
def operand(x, PRECISION: tl.constexpr):
    """x rounded to nearest as an operand of the matrix units, which would cut tf32 off; NaN stays NaN.

    Numbers of 16 bits are tf32 as they are.
    """
    if PRECISION == "bf16":
        rounded = x.to(tl.bfloat16)
    elif PRECISION == "tf32" and x.dtype == tl.float32:
        bits = (x.to(tl.int32, bitcast=True) + 0x1000) & -0x2000
        rounded = tl.where(x == x, bits.to(tl.float32, bitcast=True), x)
    else:
        rounded = x.to(tl.float32)
    return rounded


@triton.jit
def product(x, y, accumulator, PRECISION: tl.constexpr):
    """accumulator + x y for operands."""
    if PRECISION == "tf32x3":
        return tl.dot(x, y, accumulator, input_precision="tf32x3")
    return tl.dot(x, y, accumulator, input_precision="tf32")


@triton.jit
def scores(x, y, PRECISION: tl.constexpr):
    """x y^T for two tiles of inputs, (T,K) each; 16-bit inputs multiply exactly as they are."""
    if x.dtype == tl.float32:
        nothing = tl.zeros([x.shape[0], y.shape[0]], tl.float32)
        return product(operand(x, PRECISION), tl.trans(operand(y, PRECISION)), nothing, PRECISION)
    return tl.dot(x, tl.trans(y))


@triton.jit
def load_tile(pointer, stride, rows, columns, length, WIDTH: tl.constexpr, PADDED: tl.constexpr, EVEN: tl.constexpr):
    """Rows x columns, zero beyond `length` and WIDTH. Masks cost asynchronous copies: EVEN lengths have none."""
    place = pointer + rows[:, None] * stride + columns[None, :]
    if EVEN:
        if WIDTH == PADDED:
            return tl.load(place)
        return tl.load(place, mask=(columns < WIDTH)[None, :], other=0.0)
    if WIDTH == PADDED:
        return tl.load(place, mask=(rows < length)[:, None], other=0.0)
    return tl.load(place, mask=(rows < length)[:, None] & (columns < WIDTH)[None, :], other=0.0)


@triton.jit
def load_vector(pointer, rows, length, EVEN: tl.constexpr):
    if EVEN:
        return tl.load(pointer + rows)
    return tl.load(pointer + rows, mask=rows < length, other=0.0)


@triton.jit
def block_of_sequence(length, T: tl.constexpr):
    """(sequence, first row) of this program: one axis, for the others end at 65,535."""
    program, blocks = tl.program_id(0), tl.cdiv(length, T)
    return program // blocks, (program % blocks) * T


@triton.jit
def head_offset(sequence, heads, batch_stride, head_stride):
    """Offset of one sequence, numbered batch x heads, in a (B,L,H,.) tensor of any strides."""
    batch = sequence // heads
    return batch.to(tl.int64) * batch_stride + (sequence - batch * heads).to(tl.int64) * head_stride


@triton.jit
def pair(index):
    """Pair of blocks (a <= b) behind its number b (b + 1) / 2 + a, for up to 4 blocks."""
    b = tl.where(index >= 1, 1, 0) + tl.where(index >= 3, 1, 0) + tl.where(index >= 6, 1, 0)
    return index - b * (b + 1) // 2, b


@triton.jit
def query_state(
    x, x_pointer, stride, rows, length, state, pairs, scale,
    K: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, PAIRS: tl.constexpr, EVEN: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """phi(x) . state, (T,V): what another segment adds to the numerator (or to dv).

    `pairs` is PAIRS at run time: a loop known to run once is unrolled, and then Triton 3.6 computed wrong gradients for
    K = 8 on an H200 (its assembler is known to take the products' descriptors from wrong registers).
    """
    T: tl.constexpr = x.shape[0]
    eight, features, values, keys = tl.arange(0, 8), tl.arange(0, 64), tl.arange(0, BV), tl.arange(0, BK)
    acc = tl.zeros([T, BV], tl.float32)
    for index in tl.range(pairs):
        a, b = pair(index)
        xa = load_tile(x_pointer + a * 8, stride, rows, eight, length, 8, 8, EVEN)
        xb = load_tile(x_pointer + b * 8, stride, rows, eight, length, 8, 8, EVEN)
        block = operand(tl.load(state + (index * 64 + features)[:, None] * BV + values[None, :]), PRECISION)
        # An off-diagonal pair stands for both of its orders; twice a number is exact.
        xa = operand(xa, PRECISION) * tl.where(a == b, 1.0, 2.0).to(block.dtype)
        squares = tl.reshape(xa[:, :, None] * operand(xb, PRECISION)[:, None, :], [T, 64])
        acc = product(operand(squares, PRECISION), block, acc, PRECISION)
    linear = state + PAIRS * 64 * BV
    acc = acc * (0.5 * scale)
    rows_k = tl.load(linear + keys[:, None] * BV + values[None, :], mask=(keys < K)[:, None], other=0.0)
    acc = product(operand(x, PRECISION), operand(rows_k, PRECISION), acc, PRECISION) * scale
    return acc + tl.load(linear + K * BV + values).to(tl.float32)[None, :]


@triton.jit
def query_moments(
    x, moments, scale, K: tl.constexpr, BK: tl.constexpr, BL: tl.constexpr, PRECISION: tl.constexpr
):  # fmt: skip
    """sum of the weights 1 + s + s^2 / 2 over another segment, (T,)."""
    T: tl.constexpr = x.shape[0]
    second, first = load_moments(moments, K, BK, BL)
    weighted = product(operand(x, PRECISION), operand(second, PRECISION), tl.zeros([T, BK], tl.float32), PRECISION)
    total = tl.sum((0.5 * scale * weighted + first[None, :]) * x.to(tl.float32), 1)
    return scale * total + tl.load(moments + K * BL + K)


@triton.jit
def load_moments(moments, K: tl.constexpr, BK: tl.constexpr, BL: tl.constexpr):
    """(BK,BK) and (BK,): sum g x^T x and sum g x."""
    keys = tl.arange(0, BK)
    place = moments + keys[:, None] * BL + keys[None, :]
    second = tl.load(place, mask=(keys < K)[:, None] & (keys < K)[None, :], other=0.0)
    return second, tl.load(moments + K * BL + keys, mask=keys < K, other=0.0)


@triton.jit
def differentiate_state(
    x, w, factor, weight, x_pointer, stride, rows, length, state, moments, pairs, scale,
    K: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, BL: tl.constexpr, PAIRS: tl.constexpr, EVEN: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradient of factor * w . (phi(x) state) + weight * (sum of weights) by x, over scale: (T,BK); w is an operand.

    Row (i, j) of a pair adds G_ij x_bj to dimension a i and G_ij x_ai to b j, G = w state^T. The sums over j and over i
    are products with a 0/1 matrix: they stay in the matrix units.
    """
    T: tl.constexpr = x.shape[0]
    features, values, keys = tl.arange(0, 64), tl.arange(0, BV), tl.arange(0, BK)
    second, first = load_moments(moments, K, BK, BL)
    nothing = tl.zeros([T, BK], tl.float32)
    acc = weight[:, None] * product(operand(x, PRECISION), operand(second, PRECISION), nothing, PRECISION)
    for index in tl.range(pairs):
        a, b = pair(index)
        block = operand(tl.load(state + (index * 64 + features)[:, None] * BV + values[None, :]), PRECISION)
        gradient = product(w, tl.trans(block), tl.zeros([T, 64], tl.float32), PRECISION) * factor[:, None]
        low, high = a * 8 + features // 8, b * 8 + features % 8
        x_high = load_tile(x_pointer, stride, rows, high, length, 8, 8, EVEN).to(tl.float32)
        into_low = (low[:, None] == keys[None, :]).to(block.dtype)
        acc = product(operand(gradient * x_high, PRECISION), into_low, acc, PRECISION)
        if a != b:
            x_low = load_tile(x_pointer, stride, rows, low, length, 8, 8, EVEN).to(tl.float32)
            into_high = (high[:, None] == keys[None, :]).to(block.dtype)
            acc = product(operand(gradient * x_low, PRECISION), into_high, acc, PRECISION)
    linear = state + PAIRS * 64 * BV
    rows_k = tl.load(linear + keys[:, None] * BV + values[None, :], mask=(keys < K)[:, None], other=0.0)
    linear_part = product(w, tl.trans(operand(rows_k, PRECISION)), nothing, PRECISION)
    return acc * scale + factor[:, None] * linear_part + weight[:, None] * first[None, :]
