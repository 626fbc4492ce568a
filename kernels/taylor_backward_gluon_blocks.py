"""Features and states of the sweeps backward of taylor_attention: products of halves. Hopper, key width 16, 64 values.

phi(x) is kept as the three products of its halves a = x[:8], b = x[8:]: a a, a b (counted twice by the query), b b; 64
features each, formed in the registers of the matrix units' first operand. Linear and constant terms are products with
v^T. No coefficient is stored.
"""

# mypy: allow-untyped-defs

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mma_v2, warpgroup_mma

from .taylor_gluon_states import KEY_SUM, MOMENTS, REST
from .taylor_gluon_tiles import BF16, OPERAND, SQUARE, T

NARROW = gl.constexpr(gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 16, 16]))
SMALL = gl.constexpr(gl.NVMMADistributedLayout([2, 0], [1, 4], [16, 8]))
SMALL_A = gl.constexpr(gl.DotOperandLayout(0, SMALL.value, 2))
SMALL_B = gl.constexpr(gl.DotOperandLayout(1, SMALL.value, 2))
# Layouts of (token, i, j) and (i, j, token) that become OPERAND when i, j or token are flattened away: products of two
# loads of eight columns are then formed where the matrix units read them.
QUERY_PRODUCTS = gl.constexpr(
    gl.DistributedLinearLayout(
        [[0, 0, 1], [8, 0, 0], [0, 1, 0], [0, 2, 0], [0, 4, 0]],
        [[0, 0, 2], [0, 0, 4], [1, 0, 0], [2, 0, 0], [4, 0, 0]],
        [[16, 0, 0], [32, 0, 0]],
        [],
        [64, 8, 8],
    )
)
KEY_PRODUCTS = gl.constexpr(
    gl.DistributedLinearLayout(
        [[0, 0, 1], [1, 0, 0], [0, 0, 8], [0, 0, 16], [0, 0, 32]],
        [[0, 0, 2], [0, 0, 4], [0, 1, 0], [0, 2, 0], [0, 4, 0]],
        [[2, 0, 0], [4, 0, 0]],
        [],
        [8, 8, 64],
    )
)


@gluon.jit
def _operand(products):
    return gl.convert_layout(products.reshape([64, 64]), OPERAND, assert_trivial=True)


@gluon.jit
def _query_features(q):
    """phi(q) as three operands (token, feature)."""
    a, b = q.slice(0, 8, dim=1), q.slice(8, 8, dim=1)
    a_i = gl.expand_dims(a.load(gl.SliceLayout(2, QUERY_PRODUCTS)), 2)
    a_j = gl.expand_dims(a.load(gl.SliceLayout(1, QUERY_PRODUCTS)), 1)
    b_i = gl.expand_dims(b.load(gl.SliceLayout(2, QUERY_PRODUCTS)), 2)
    b_j = gl.expand_dims(b.load(gl.SliceLayout(1, QUERY_PRODUCTS)), 1)
    return _operand(a_i * a_j), _operand(a_i * (b_j * 2.0).to(BF16)), _operand(b_i * b_j)


@gluon.jit
def _key_features(k):
    """phi(k)^T as three operands (feature, token)."""
    transposed = k.permute((1, 0))
    a, b = transposed.slice(0, 8, dim=0), transposed.slice(8, 8, dim=0)
    a_i = gl.expand_dims(a.load(gl.SliceLayout(1, KEY_PRODUCTS)), 1)
    a_j = gl.expand_dims(a.load(gl.SliceLayout(0, KEY_PRODUCTS)), 0)
    b_i = gl.expand_dims(b.load(gl.SliceLayout(1, KEY_PRODUCTS)), 1)
    b_j = gl.expand_dims(b.load(gl.SliceLayout(0, KEY_PRODUCTS)), 0)
    return _operand(a_i * a_j), _operand(a_i * b_j), _operand(b_i * b_j)


@gluon.jit
def _zero_state():
    square = gl.zeros([64, 64], gl.float32, layout=SQUARE)
    narrow = gl.zeros([64, 16], gl.float32, layout=NARROW)
    small = gl.zeros([16, 16], gl.float32, layout=SMALL)
    return square, square, square, narrow, narrow, small, small


@gluon.jit
def _square_places(i, j):
    """Where the values of x_i x_j begin in a slot."""
    turn = (j - i + 16) % 16
    feature = gl.where(turn < 8, 16 * turn + i, 16 * (16 - turn) + j)
    # Products of opposites are among the rest.
    return 64 * gl.where(turn == 8, 144 + i, feature)


@gluon.jit
def _load_square(slot, first_i: gl.constexpr, first_j: gl.constexpr):
    row, value = gl.arange(0, 64, layout=gl.SliceLayout(1, SQUARE)), gl.arange(0, 64, layout=gl.SliceLayout(0, SQUARE))
    return gl.load(slot + _square_places(first_i + row // 8, first_j + row % 8)[:, None] + value[None, :])


@gluon.jit
def _load_state(slot):
    """The state of a slot, in blocks."""
    value, key = gl.arange(0, 64, layout=gl.SliceLayout(1, NARROW)), gl.arange(0, 16, layout=gl.SliceLayout(0, NARROW))
    i, j = gl.arange(0, 16, layout=gl.SliceLayout(1, SMALL)), gl.arange(0, 16, layout=gl.SliceLayout(0, SMALL))
    s_0, s_1, s_2 = _load_square(slot, 0, 0), _load_square(slot, 0, 8), _load_square(slot, 8, 8)
    rest = slot + REST + value[:, None]
    linear = gl.load(rest + 64 * key[None, :])
    constant = gl.load(rest + 64 * 24 + 0 * key[None, :], mask=(key == 0)[None, :], other=0.0)
    moments = gl.load(slot + MOMENTS + i[:, None] * 16 + j[None, :])
    key_sum = 0.25 * gl.load(slot + KEY_SUM + i[:, None] * 0 + j[None, :])
    return s_0, s_1, s_2, linear, constant, moments, key_sum


@gluon.jit
def _fill_ones(tile):
    """Ones in the first of 16 columns: a factor that picks or sums, where nothing but matrix units will do."""
    layout: gl.constexpr = gl.BlockedLayout([1, 8], [16, 2], [4, 1], [1, 0])
    column = gl.arange(0, 16, layout=gl.SliceLayout(0, layout))
    zeros = gl.zeros([T, 16], gl.float32, layout=layout)
    tile.store((zeros + gl.where(column == 0, 1.0, 0.0)[None, :]).to(BF16))


@gluon.jit
def _add_keys(k, v, ones, f_0, f_1, f_2, s_0, s_1, s_2, linear, constant):
    """Starts state += phi(k)^T v."""
    v_transposed = v.permute((1, 0))
    linear = warpgroup_mma(v_transposed, k, linear, is_async=True)
    constant = warpgroup_mma(v_transposed, ones, constant, is_async=True)
    s_0 = warpgroup_mma(f_0, v, s_0, is_async=True)
    s_1 = warpgroup_mma(f_1, v, s_1, is_async=True)
    s_2 = warpgroup_mma(f_2, v, s_2, is_async=True)
    return s_0, s_1, s_2, linear, constant


@gluon.jit
def _key_moments(k, moments, key_sum):
    k_transposed, k_rows = k.permute((1, 0)).load(SMALL_A), k.load(SMALL_B)
    ones = gl.full([16, k.shape[0]], 1.0, BF16, layout=SMALL_A)
    return mma_v2(k_transposed, k_rows, moments), mma_v2(ones, k_rows, key_sum)
