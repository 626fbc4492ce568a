"""What the Triton kernels of linear_attention share: the one form that output and gradients have.

With u = dy / z, z the normaliser and delta = u . y, all are sums out_r = sum_c w_rc z_c with w from s = x_r . y_c:

    KIND     out   x        y        z        w
    output   y     phi(q)   phi(k)   v        s, and y is divided by the sum of w     c <= r
    query    dq    dy       v        phi(k)   s / z_r - delta_r, dq times phi'(q)     c <= r
    value    dv    phi(k)   phi(q)   dy       s / z_c                                 c >= r (REVERSE)
    key      dk    v        dy       phi(q)   s / z_c - delta_c, dk times phi'(k)     c >= r (REVERSE)

What lies before a tile of tokens comes through a state (X,Z), sum_c y_c^T z_c, and a vector that stands for the
normaliser: sum phi(k), in reverse -sum delta_c phi(q_c). In memory both are the operator's state, (K,V+1) a sequence;
in reverse the gradient by it. 1 / z goes to phi(q), which is rounded anyway, so that dy enters the products as it is.

Without NORMALISE nothing is divided. With DECAY pair (r, c) is weighted by scale 2^(rate |r - c|), one rate a head;
scale is part of the state, so it stands with the keys: in what the state takes up, or in reverse in what is read.

Precision and operands are those of `taylor_tiles`, products those of `delta_rule_tiles_triton`.
"""

# mypy: allow-untyped-defs

import triton
import triton.language as tl

from .delta_rule_tiles_triton import LOG2E, product
from .taylor_tiles import load_tile, operand

EPSILON = tl.constexpr(1e-12)


@triton.jit
def feature(x, MAP: tl.constexpr):
    """phi(x), in float32 unless x is its own feature. NaN stays NaN."""
    if MAP != "none":
        x = x.to(tl.float32)
    if MAP == "pos_elu":
        x = tl.where(x > 0.0, x + 1.0, tl.exp2(x * LOG2E))
    elif MAP == "relu":
        x = tl.where(x < EPSILON, EPSILON, x)
    elif MAP == "square":
        x = x * x
    return x


@triton.jit
def slope(x, MAP: tl.constexpr):
    """phi'(x)."""
    x = x.to(tl.float32)
    if MAP == "pos_elu":
        x = tl.where(x > 0.0, 1.0, tl.exp2(x * LOG2E))
    elif MAP == "relu":
        x = tl.where(x < EPSILON, 0.0, 1.0)
    else:
        tl.static_assert(MAP == "square")
        x = 2.0 * x
    return x


@triton.jit
def load_features(
    pointer, stride, rows, columns, length, WIDTH: tl.constexpr, PADDED: tl.constexpr, EVEN: tl.constexpr,
    MAP: tl.constexpr,
):  # fmt: skip
    """phi of a tile; zero beyond the length and the width, where phi(0) need not be."""
    x = feature(load_tile(pointer, stride, rows, columns, length, WIDTH, PADDED, EVEN), MAP)
    if MAP != "none":
        if not EVEN:
            x = tl.where((rows < length)[:, None], x, 0.0)
        if WIDTH != PADDED:
            x = tl.where((columns < WIDTH)[None, :], x, 0.0)
    return x


@triton.jit
def scores(x, y, accumulator, PRECISION: tl.constexpr):
    """accumulator + x y^T for two tiles of inputs; 16-bit inputs multiply exactly as they are."""
    if x.dtype == tl.float32:
        return product(operand(x, PRECISION), tl.trans(operand(y, PRECISION)), accumulator, PRECISION)
    return tl.dot(x, tl.trans(y), accumulator)


@triton.jit
def weights(
    s, rows, columns, inverse, delta, rate, scale, KIND: tl.constexpr, REVERSE: tl.constexpr,
    NORMALISE: tl.constexpr, DECAY: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """w of the pairs of rows and columns, zero for those that do not meet. inverse, delta: of the queries.

    WHOLE: delta of KIND query is left to `without_mean`.
    """
    if NORMALISE:
        if KIND == "query" and WHOLE:
            s = s * inverse[:, None]
        elif KIND == "query":
            s = s * inverse[:, None] - delta[:, None]
        elif KIND == "value":
            s = s * inverse[None, :]
        elif KIND == "key":
            s = s * inverse[None, :] - delta[None, :]
    distance = rows[:, None] - columns[None, :]
    if REVERSE:
        distance = -distance
    if DECAY:
        s *= tl.exp2(tl.abs(distance).to(tl.float32) * rate) * scale
    return tl.where(distance >= 0, s, 0.0)


@triton.jit
def decay_of_rows(rows, begin, end, rate, scale, READ: tl.constexpr, REVERSE: tl.constexpr):
    """Decay between the tokens of [begin, end) and the state that they read, or the one that takes them up.

    A token reads a state from before `begin` after its own decay, and a state takes it up without.
    """
    steps = tl.maximum(end - 1 - rows, 0) if READ == REVERSE else rows - begin + 1
    factor = tl.exp2(steps.to(tl.float32) * rate)
    if READ == REVERSE:
        factor *= scale
    return factor


@triton.jit
def read_state(
    found, inverse, delta, vector, rows, begin, end, rate, scale, KIND: tl.constexpr, REVERSE: tl.constexpr,
    NORMALISE: tl.constexpr, DECAY: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """What the state adds to the rows, from found = x state."""
    if NORMALISE:
        if KIND == "query" and WHOLE:
            found = found * inverse[:, None]
        elif KIND == "query":
            found = found * inverse[:, None] - delta[:, None] * vector[None, :]
        elif KIND == "key":
            found = found + vector[None, :]
    if DECAY:
        found *= decay_of_rows(rows, begin, end, rate, scale, True, REVERSE)[:, None]
    return found


@triton.jit
def add_weighted(found, w, z, KIND: tl.constexpr, NORMALISE: tl.constexpr, PRECISION: tl.constexpr):
    """found + w z. What w of KIND key is made of cancels: in bf16 it comes in two parts, high and low."""
    high = operand(w, PRECISION)
    z = operand(z, PRECISION)
    found = product(high, z, found, PRECISION)
    if KIND == "key" and NORMALISE and PRECISION == "bf16":
        found = product(operand(w - high.to(tl.float32), PRECISION), z, found, PRECISION)
    return found


@triton.jit
def met(rows, columns, z, passed, PRECISION: tl.constexpr):
    """passed + the sum of z over the columns up to each row; PRECISION is tf32 or finer."""
    ones = tl.where(rows[:, None] >= columns[None, :], 1.0, 0.0)
    return product(ones, operand(z, PRECISION), passed, PRECISION)


@triton.jit
def without_mean(found, passed, q):
    """(dq, delta) from found = sum_c u . v_c phi(k_c) and passed = sum_c phi(k_c), q the features of the rows.

    delta = u . y is phi(q) . found / z, and z is phi(q) . passed. From y, which has been rounded, or by the z of
    features that products did not round, it would not cancel what it has to: dq is the small difference of two sums,
    for features have a mean.
    """
    q = q.to(tl.float32)
    delta = tl.sum(q * found, 1) / (tl.sum(q * passed, 1) + EPSILON)
    return found - delta[:, None] * passed, delta


@triton.jit
def weighted(
    x, inverse, rows, begin, end, rate, scale, REVERSE: tl.constexpr, NORMALISE: tl.constexpr, DECAY: tl.constexpr
):  # fmt: skip
    """phi(k), or in reverse phi(q), as the state takes it up."""
    if REVERSE and NORMALISE:
        x = x.to(tl.float32) * inverse[:, None]
    if DECAY:
        x = x.to(tl.float32) * decay_of_rows(rows, begin, end, rate, scale, False, REVERSE)[:, None]
    return x


@triton.jit
def state_decay(begin, end, rate, DECAY: tl.constexpr):
    """What a state has lost from one end of a run of tokens to the other."""
    decay = 1.0
    if DECAY:
        decay = tl.exp2((end - begin).to(tl.float32) * rate)
    return decay


@triton.jit
def load_rate(rates, head, DECAY: tl.constexpr):
    """The logarithm of the head's decay, to base 2."""
    rate = 0.0
    if DECAY:
        rate = tl.load(rates + head)
    return rate


@triton.jit
def store_rows(pointer, x, offset, heads, rows, columns, length, WIDTH: tl.constexpr):
    """Rows of a dense (B,L,H,.)."""
    place = pointer + offset + rows.to(tl.int64)[:, None] * (heads * WIDTH) + columns[None, :]
    inside = (rows < length)[:, None] & (columns < WIDTH)[None, :]
    tl.store(place, x.to(pointer.dtype.element_ty), mask=inside)
