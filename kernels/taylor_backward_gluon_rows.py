"""Features, states and tiles of the sweeps for dq and dk of taylor_attention. Hopper, key width 16, up to 64 values.

phi(x) is the three products of the halves a = x[:8], b = x[8:]: a a, a b, b b, 64 features each, no coefficient. They
are made by rows, two threads a token, and kept in shared memory as second operands: no register waits for a product, so
that an update may begin as soon as the state before it has been copied. The state is S^T, values by features.
"""

# mypy: allow-untyped-defs, disable-error-code="assignment"
# ruff: noqa: RUF005 (Triton's tuples cannot be unpacked)

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, warpgroup_mma

from .taylor_gluon_states import KEY_SUM, MOMENTS, REST
from .taylor_gluon_tiles import (
    BF16,
    KEYS_SHARED,
    KEYS_TILE,
    OPERAND,
    SQUARE,
    VALUES_SHARED,
    VALUES_TILE,
    T,
    _allocate_barriers,
    _fetch,
    _rounded,
)

NARROW = gl.constexpr(gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 16, 16]))
NARROW_OPERAND = gl.constexpr(gl.DotOperandLayout(0, NARROW.value, 2))
SMALL = gl.constexpr(gl.NVMMADistributedLayout([2, 0], [1, 4], [16, 8]))
SMALL_A = gl.constexpr(gl.DotOperandLayout(0, SMALL.value, 2))
SMALL_B = gl.constexpr(gl.DotOperandLayout(1, SMALL.value, 2))
SIXTEEN = gl.constexpr(gl.BlockedLayout([1, 8], [16, 2], [4, 1], [1, 0]))
# (token, i, j), SQUARE when i and j are flattened: what a thread has of G = w S^T.
QUERY_PRODUCTS = gl.constexpr(
    gl.DistributedLinearLayout(
        [[0, 0, 1], [8, 0, 0], [0, 1, 0], [0, 2, 0], [0, 4, 0]],
        [[0, 0, 2], [0, 0, 4], [1, 0, 0], [2, 0, 0], [4, 0, 0]],
        [[16, 0, 0], [32, 0, 0]],
        [],
        [64, 8, 8],
    )
)
# (token, i, j): a thread has half of the i and all j of a token.
PRODUCTS = gl.constexpr(
    gl.DistributedLinearLayout(
        [[0, 0, 1], [0, 0, 2], [0, 0, 4], [0, 1, 0], [0, 2, 0]],
        [[1, 0, 0], [2, 0, 0], [4, 0, 0], [8, 0, 0], [16, 0, 0]],
        [[32, 0, 0], [0, 4, 0]],
        [],
        [64, 8, 8],
    )
)


@gluon.jit
def _allocate_squares():
    """Three times one buffer, for `_at`."""
    square_0 = gl.allocate_shared_memory(BF16, [1, 64, 64], VALUES_SHARED)
    square_1 = gl.allocate_shared_memory(BF16, [1, 64, 64], VALUES_SHARED)
    return square_0, square_1, gl.allocate_shared_memory(BF16, [1, 64, 64], VALUES_SHARED)


@gluon.jit
def _allocate_narrow(rows: gl.constexpr):
    return gl.allocate_shared_memory(BF16, [1, rows, 16], KEYS_SHARED)


@gluon.jit
def _at(tiles, step):
    """The only buffer of each, by an index that is zero, which the compiler does not know.

    Descriptors of operands are then computed where they are used, in uniform registers. Known before the loop, some
    fifty of them take registers that there are not, and come back from memory ahead of each product.
    """
    found = ()
    for i in gl.static_range(len(tiles)):
        found = found + (tiles[i].index(step >> 24),)
    return found


@gluon.jit
def _scaled(x, scale):
    return (x.to(gl.float32) * scale[:, None]).to(BF16)


@gluon.jit
def _store_features(x, features, scale, SCALED: gl.constexpr):
    """phi of 64 rows, (token, feature), times a scale of each row if SCALED."""
    a, b = x.slice(0, 8, dim=1), x.slice(8, 8, dim=1)
    a_i, b_i = a.load(gl.SliceLayout(2, PRODUCTS)), b.load(gl.SliceLayout(2, PRODUCTS))
    if SCALED:
        a_i, b_i = _scaled(a_i, scale), _scaled(b_i, scale)
    a_i, b_i = gl.expand_dims(a_i, 2), gl.expand_dims(b_i, 2)
    a_j = gl.expand_dims(a.load(gl.SliceLayout(1, PRODUCTS)), 1)
    b_j = gl.expand_dims(b.load(gl.SliceLayout(1, PRODUCTS)), 1)
    features[0].store((a_i * a_j).reshape([T, 64]))
    features[1].store((a_i * b_j).reshape([T, 64]))
    features[2].store((b_i * b_j).reshape([T, 64]))


@gluon.jit
def _zero_state():
    square, narrow = gl.zeros([64, 64], gl.float32, layout=SQUARE), gl.zeros([64, 16], gl.float32, layout=NARROW)
    small = gl.zeros([16, 16], gl.float32, layout=SMALL)
    return square, square, square, narrow, small, small


@gluon.jit
def _square_places(i, j):
    """Where the values of x_i x_j begin in a slot."""
    turn = (j - i + 16) % 16
    feature = gl.where(turn < 8, 16 * turn + i, 16 * (16 - turn) + j)
    # Products of opposites are among the rest.
    return 64 * gl.where(turn == 8, 144 + i, feature)


@gluon.jit
def _load_square(slot, first_i: gl.constexpr, first_j: gl.constexpr):
    value, column = (
        gl.arange(0, 64, layout=gl.SliceLayout(1, SQUARE)),
        gl.arange(0, 64, layout=gl.SliceLayout(0, SQUARE)),
    )
    return gl.load(slot + _square_places(first_i + column // 8, first_j + column % 8)[None, :] + value[:, None])


@gluon.jit
def _load_state(slot):
    """The state of a slot: squares, linear (value, key), moments and sum of keys."""
    value, key = gl.arange(0, 64, layout=gl.SliceLayout(1, NARROW)), gl.arange(0, 16, layout=gl.SliceLayout(0, NARROW))
    i, j = gl.arange(0, 16, layout=gl.SliceLayout(1, SMALL)), gl.arange(0, 16, layout=gl.SliceLayout(0, SMALL))
    linear = gl.load(slot + REST + value[:, None] + 64 * key[None, :])
    moments = gl.load(slot + MOMENTS + i[:, None] * 16 + j[None, :])
    key_sum = 0.25 * gl.load(slot + KEY_SUM + i[:, None] * 0 + j[None, :])
    s_0, s_1, s_2 = _load_square(slot, 0, 0), _load_square(slot, 0, 8), _load_square(slot, 8, 8)
    return s_0, s_1, s_2, linear, moments, key_sum


@gluon.jit
def _start_update(x, values, features, s_0, s_1, s_2, linear):
    """Starts state += values^T phi(x), four products. The last of the results must live until they have read it."""
    values = values.permute((1, 0)).load(OPERAND)
    linear = warpgroup_mma(gl.convert_layout(values, NARROW_OPERAND, assert_trivial=True), x, linear, is_async=True)
    s_0 = warpgroup_mma(values, features[0], s_0, is_async=True)
    s_1 = warpgroup_mma(values, features[1], s_1, is_async=True)
    s_2 = warpgroup_mma(values, features[2], s_2, is_async=True)
    return s_0, s_1, s_2, linear, values


@gluon.jit
def _start_gradient(values, square):
    """Starts G (token, feature)."""
    nothing = gl.zeros([T, 64], gl.float32, layout=SQUARE)
    return warpgroup_mma(values, square, nothing, use_acc=False, is_async=True)


@gluon.jit
def _copy_state(squares, narrow, s_0, s_1, s_2, linear, moments, key_sum):
    """bf16 copies as operands, each in an allocation of its own: else there would be barriers between them."""
    squares[0].store(s_0.to(BF16))
    squares[1].store(s_1.to(BF16))
    squares[2].store(s_2.to(BF16))
    narrow[0].store((linear * 4.0).to(BF16))
    narrow[1].store(moments.to(BF16))
    # Where `_two_parts` has a one.
    row = gl.arange(0, 16, layout=gl.SliceLayout(1, SMALL))
    narrow[2].store(gl.where((row == 2)[:, None], key_sum * 4.0, 0.0).to(BF16))


@gluon.jit
def _sum_over_first(gradient, x_i):
    """sum_i G_ij x_i: (token, j)."""
    gradient = gl.convert_layout(gradient.reshape([64, 8, 8]), QUERY_PRODUCTS, assert_trivial=True)
    return gl.sum(gradient * x_i.to(gl.float32), 1)


@gluon.jit
def _times_second(gradient, x_j):
    """G_ij x_j as an operand; `_fill_pick` adds over j."""
    gradient = gl.convert_layout(gradient.reshape([64, 8, 8]), QUERY_PRODUCTS, assert_trivial=True)
    products = (gradient * x_j.to(gl.float32)).reshape([64, 64])
    products = gl.convert_layout(products, SQUARE, assert_trivial=True).to(BF16)
    return gl.convert_layout(products, OPERAND, assert_trivial=True)


@gluon.jit
def _side_by_side(low, high):
    """(64,8) twice -> (64,16)."""
    both = gl.join(low, high).permute((0, 2, 1)).reshape([64, 16])
    return gl.convert_layout(both, NARROW, assert_trivial=True)


@gluon.jit
def _fill_pick(tile):
    """(64,16): feature (i, j) counts for column i."""
    row = gl.arange(0, 64, layout=gl.SliceLayout(1, SIXTEEN))
    column = gl.arange(0, 16, layout=gl.SliceLayout(0, SIXTEEN))
    tile.store(gl.where((row // 8)[:, None] == column[None, :], 1.0, 0.0).to(BF16))


@gluon.jit
def _fill_columns(tile, first, second, third):
    """The first three of 16 columns, the others zero."""
    column = gl.arange(0, 16, layout=gl.SliceLayout(0, SIXTEEN))
    values = gl.where(column == 0, first, gl.where(column == 1, second, gl.where(column == 2, third, 0.0)))
    tile.store((gl.zeros([T, 16], gl.float32, layout=SIXTEEN) + values[None, :]).to(BF16))


@gluon.jit
def _two_parts(tile, x):
    """x of each row in two parts, one in the third column, the others zero."""
    column = gl.arange(0, 16, layout=gl.SliceLayout(0, SIXTEEN))
    rounded = _rounded(x)
    rest = gl.where(column[None, :] == 1, (x - rounded)[:, None], gl.where(column == 2, 1.0, 0.0)[None, :])
    tile.store(gl.where(column[None, :] == 0, rounded[:, None], rest).to(BF16))


@gluon.jit
def _allocate_keys(STAGES: gl.constexpr):
    """Buffers of 64 x 16 and the barriers that announce them."""
    return gl.allocate_shared_memory(BF16, [STAGES, 1, 1, T, 16], KEYS_TILE), _allocate_barriers(STAGES)


@gluon.jit
def _allocate_values(STAGES: gl.constexpr):
    return gl.allocate_shared_memory(BF16, [STAGES, 1, 1, T, 64], VALUES_TILE), _allocate_barriers(STAGES)


@gluon.jit
def _expect(tiles, stage, width: gl.constexpr, pred):
    mbarrier.expect(tiles[1].index(stage), T * 2 * width, pred=pred)


@gluon.jit
def _await(tiles, stage, phase, width: gl.constexpr):
    mbarrier.wait(tiles[1].index(stage), phase)
    return tiles[0].index(stage).reshape([T, width])


@gluon.jit
def _start_fetch(tensor_map, tiles, stage, batch, head, row, pred):
    _fetch(tensor_map, tiles[0].index(stage), tiles[1].index(stage), batch, head, row, 0, pred)


@gluon.jit
def _expect_all(qs, ks, vs, dys, stage, pred):
    """All tiles of 64 tokens in one stage."""
    _expect(qs, stage, 16, pred)
    _expect(ks, stage, 16, pred)
    _expect(vs, stage, 64, pred)
    _expect(dys, stage, 64, pred)


@gluon.jit
def _fetch_all(q_map, k_map, v_map, dy_map, qs, ks, vs, dys, stage, batch, head, row, pred):
    _start_fetch(dy_map, dys, stage, batch, head, row, pred)
    _start_fetch(q_map, qs, stage, batch, head, row, pred)
    _start_fetch(k_map, ks, stage, batch, head, row, pred)
    _start_fetch(v_map, vs, stage, batch, head, row, pred)


@gluon.jit
def _first_of(half):
    """A half as (token, i), every lane of a row holding all eight."""
    return gl.expand_dims(half.load(gl.SliceLayout(2, QUERY_PRODUCTS)), 2)


@gluon.jit
def _second_of(half):
    """A half as (token, j), spread over four lanes."""
    return gl.expand_dims(half.load(gl.SliceLayout(1, QUERY_PRODUCTS)), 1)
