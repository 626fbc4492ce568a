"""Forward kernel of the selective scan, over whole sequences or over segments of them side by side."""

# mypy: allow-untyped-defs, disable-error-code="assignment"

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from .selective_scan_tiles_gluon import (
    COLUMNS,
    LANES,
    QUAD,
    ROWS,
    T,
    asked_inside,
    columns,
    columns_layout,
    decay,
    load_columns,
    load_constant,
    load_either,
    load_rows,
    load_slots,
    not_before,
    packed_tiles,
    pairs_layout,
    pairs_of,
    parts_layout,
    parts_places,
    power_of_two,
    rates,
    rows_inside,
    sigmoid,
    state_places,
    states_layout,
    step_size,
    store_parts,
    sum_of_lanes,
    taken_apart,
    tile_layout,
)


@gluon.jit
def _load_ahead(
    delta, u, B, C, t, first, L, row_delta: gl.constexpr, row_u: gl.constexpr, row_B: gl.constexpr,
    row_C: gl.constexpr, channels: gl.constexpr, BLOCK_D: gl.constexpr, N: gl.constexpr, WIDTH: gl.constexpr,
    PAIRS: gl.constexpr,
):  # fmt: skip
    """delta, u, B and C of a tile as in memory; in PAIRS, half as many numbers of 32 bits."""
    EACH: gl.constexpr = 2 if PAIRS else 1
    TD: gl.constexpr = pairs_layout(tile_layout(BLOCK_D)) if PAIRS else tile_layout(BLOCK_D)
    TN: gl.constexpr = pairs_layout(columns_layout(WIDTH)) if PAIRS else columns_layout(WIDTH)
    if PAIRS:
        delta, u, B, C = pairs_of(delta), pairs_of(u), pairs_of(B), pairs_of(C)
    t_D = t + gl.arange(0, T, gl.SliceLayout(1, TD))
    t_N = t + gl.arange(0, T, gl.SliceLayout(1, TN))
    d = first // EACH + gl.arange(0, BLOCK_D // EACH, gl.SliceLayout(0, TD))
    n = gl.arange(0, WIDTH // EACH, gl.SliceLayout(0, TN))
    delta_TD = load_rows(delta, t_D, d, L, row_delta // EACH, channels // EACH, BLOCK_D // EACH)
    u_TD = load_rows(u, t_D, d, L, row_u // EACH, channels // EACH, BLOCK_D // EACH)
    B_TN = load_columns(B, t_N, n, L, row_B // EACH, N // EACH, WIDTH // EACH)
    C_TN = load_columns(C, t_N, n, L, row_C // EACH, N // EACH, WIDTH // EACH)
    return delta_TD, u_TD, B_TN, C_TN


@gluon.jit
def _walked(
    here, step_shared, x_shared, B_shared, C_shared, y_shared, A_G, h_G, n3, d3_inside, channels: gl.constexpr,
    N: gl.constexpr, SN: gl.constexpr, BLOCK_D: gl.constexpr, KEEP: gl.constexpr, OUTPUTS: gl.constexpr,
):  # fmt: skip
    """The states behind a tile; with OUTPUTS, the parts of y in shared memory. KEEP: those before it are stored."""
    GROUP: gl.constexpr = LANES * SN
    PLACES: gl.constexpr = power_of_two(len(A_G))
    S3: gl.constexpr = states_layout(BLOCK_D, SN)
    DN: gl.constexpr = gl.SliceLayout(0, S3)
    if KEEP:
        for i in gl.static_range(len(A_G)):
            kept_n = n3 + i * GROUP
            gl.store(here + kept_n * channels, h_G[i], mask=(kept_n < N) & d3_inside)
    rows = ()
    for s in gl.static_range(T):
        step_D = gl.expand_dims(step_shared.slice(s, 1).load(DN), 0)
        x_D = gl.expand_dims(x_shared.slice(s, 1).load(DN), 0)
        new_G = ()
        for i in gl.static_range(len(A_G)):
            B_N = B_shared.slice(s * PLACES + i, 1, 2).load(S3)
            h = decay(step_D, A_G[i]) * h_G[i] + x_D * B_N
            new_G += (h,)
            if OUTPUTS:
                part = gl.sum(h * C_shared.slice(s * PLACES + i, 1, 2).load(S3), 1)
                if i == 0:
                    y_LD = part
                else:
                    y_LD += part
        h_G = new_G
        if OUTPUTS:
            rows += (y_LD,)
            if len(rows) == QUAD:  # more would take registers
                store_parts(y_shared, s + 1 - QUAD, rows)
                rows = ()
    return h_G


@gluon.jit
def _answered(
    z, y, open_y, here, t, slot_T, d, L, inside_TD, u_TD, skip_D, step_shared, x_shared, B_shared, C_shared, y_shared,
    A_G, h_G, n3, d3_inside, row_z: gl.constexpr, channels: gl.constexpr, N: gl.constexpr, SN: gl.constexpr,
    BLOCK_D: gl.constexpr, KEEP: gl.constexpr, HAS_Z: gl.constexpr, ASKED: gl.constexpr,
):  # fmt: skip
    """A tile's outputs, written; the states behind it."""
    TD: gl.constexpr = tile_layout(BLOCK_D)
    LSD: gl.constexpr = parts_layout(BLOCK_D)
    if HAS_Z:
        z_TD = load_either(z, t, slot_T, d, L, row_z, channels, BLOCK_D, ASKED)
    h_G = _walked(
        here, step_shared, x_shared, B_shared, C_shared, y_shared, A_G, h_G, n3, d3_inside, channels, N, SN, BLOCK_D,
        KEEP, True,
    )  # fmt: skip
    y_TD = sum_of_lanes(y_shared, LSD, TD) + skip_D[None, :] * u_TD
    here_TD = t[:, None].to(gl.int64) * channels + d[None, :]
    if ASKED:
        here_TD = slot_T[:, None].to(gl.int64) * channels + d[None, :]
        inside_TD = asked_inside(slot_T, d, channels, BLOCK_D)
    if HAS_Z:
        if KEEP:
            gl.store(open_y + here_TD, y_TD.to(open_y.dtype.element_ty), mask=inside_TD)
        z_TD = not_before(z_TD).to(gl.float32)
        y_TD *= z_TD * sigmoid(z_TD)
    gl.store(y + here_TD, y_TD.to(y.dtype.element_ty), mask=inside_TD)
    return h_G


@gluon.jit(do_not_specialize=["L", "tiles", "slots", "span"])
def forward(
    u, delta, A, B, C, D_skip, z, bias, initial, asked, y, last, kept, open_y, L, tiles, slots, span,
    batch_u, batch_delta, batch_B, batch_C, batch_z, starts, channels: gl.constexpr,
    ALIGNED: gl.constexpr, row_B: gl.constexpr, row_C: gl.constexpr, row_u: gl.constexpr, row_delta: gl.constexpr,
    row_z: gl.constexpr,
    N: gl.constexpr, SN: gl.constexpr, BLOCK_D: gl.constexpr, KEEP: gl.constexpr, SOFTPLUS: gl.constexpr,
    LOG_A: gl.constexpr, HAS_D: gl.constexpr, HAS_Z: gl.constexpr, HAS_BIAS: gl.constexpr, HAS_STATE: gl.constexpr,
    STATE_N: gl.constexpr, STATE_D: gl.constexpr, STATE: gl.constexpr, ASKED: gl.constexpr, PAIRS: gl.constexpr,
    PACKED: gl.constexpr,
):  # fmt: skip
    """y, and the last state (B,D,N). KEEP: also kept (B,tiles,N,D), the states before tiles, and open_y, y before
    the gate.

    Segments are `span` tiles. `initial` has a state for each, (B,slots), with strides STATE_N and STATE_D. ASKED: z, y
    and open_y are rows of the tokens that `asked` (B,L) has a place for; tiles without any only pass states on. PACKED:
    of one row, whose segments are the examples that begin at `starts` (slots + 1), without states at their ends. Only
    tiles are counted from there: pointers that all programs share take no registers.
    """
    GROUP: gl.constexpr = LANES * SN
    GROUPS: gl.constexpr = (N + GROUP - 1) // GROUP
    PLACES: gl.constexpr = power_of_two(GROUPS)
    WIDTH: gl.constexpr = PLACES * GROUP
    S3: gl.constexpr = states_layout(BLOCK_D, SN)
    TD: gl.constexpr = tile_layout(BLOCK_D)
    TN: gl.constexpr = columns_layout(WIDTH)
    first = gl.program_id(0) * BLOCK_D
    b = gl.program_id(1).to(gl.int64)
    segment = gl.program_id(2)
    d = first + gl.arange(0, BLOCK_D, gl.SliceLayout(0, TD))
    tt = gl.arange(0, T, gl.SliceLayout(1, TD))
    bias_D = load_constant(bias, d, channels, HAS_BIAS)
    skip_D = load_constant(D_skip, d, channels, HAS_D)
    u += b * batch_u
    delta += b * batch_delta
    B = gl.multiple_of(B + b * batch_B, ALIGNED)
    C = gl.multiple_of(C + b * batch_C, ALIGNED)
    if ASKED:
        asked += b * L
    else:
        if HAS_Z:
            z += b * batch_z
        y += b * L * channels
        open_y += b * L * channels
    n3, d3 = state_places(first, SN, BLOCK_D, S3)
    d3_inside = d3 >= 0
    if channels % BLOCK_D != 0:
        d3_inside = d3 < channels
    A_G = ()
    h_G = ()
    for i in gl.static_range(GROUPS):
        n_i = n3 + i * GROUP
        inside = (n_i < N) & d3_inside
        A_G += (rates(gl.load(A + d3 * N + n_i, mask=inside, other=0.0), LOG_A),)
        if HAS_STATE:
            state = initial + (b * slots + segment) * (N * channels) + n_i * STATE_N + d3 * STATE_D
            h_G += (gl.load(state, mask=inside, other=0.0).to(gl.float32),)
        else:
            h_G += (gl.zeros([LANES, SN, BLOCK_D], gl.float32, S3),)
    step_shared = gl.allocate_shared_memory(gl.float32, [T, BLOCK_D], ROWS)
    x_shared = gl.allocate_shared_memory(gl.float32, [T, BLOCK_D], ROWS)
    B_shared = gl.allocate_shared_memory(gl.float32, [LANES, SN, T * PLACES], COLUMNS)
    C_shared = gl.allocate_shared_memory(gl.float32, [LANES, SN, T * PLACES], COLUMNS)
    y_shared = gl.allocate_shared_memory(gl.float32, [T, LANES, BLOCK_D], parts_places(BLOCK_D))
    begin = segment * span
    end = gl.minimum(begin + span, tiles)
    if PACKED:
        begin, end = packed_tiles(starts, segment)
    t = begin * T
    next_rows = _load_ahead(
        delta, u, B, C, t, first, L, row_delta, row_u, row_B, row_C, channels, BLOCK_D, N, WIDTH, PAIRS
    )  # fmt: skip
    next_slot_T = load_slots(asked, t + tt, L, ASKED)
    for tile in range(begin, end):
        t = tile * T
        inside_TD = rows_inside(t + tt, d, L, channels, BLOCK_D)
        delta_TD, u_TD, B_TN, C_TN = next_rows
        if PAIRS:
            delta_TD = taken_apart(delta_TD, delta.dtype.element_ty, TD)
            u_TD = taken_apart(u_TD, u.dtype.element_ty, TD)
            B_TN = taken_apart(B_TN, B.dtype.element_ty, TN)
            C_TN = taken_apart(C_TN, C.dtype.element_ty, TN)
        u_TD = u_TD.to(gl.float32)
        step_TD = step_size(delta_TD, bias_D[None, :], inside_TD, SOFTPLUS)
        step_shared.store(step_TD)
        x_shared.store(step_TD * u_TD)
        B_shared.store(columns(B_TN, SN))
        if not ASKED:
            C_shared.store(columns(C_TN, SN))
        t += T
        next_rows = _load_ahead(
            delta, u, B, C, t, first, L, row_delta, row_u, row_B, row_C, channels, BLOCK_D, N, WIDTH, PAIRS
        )  # fmt: skip
        slot_T = next_slot_T
        next_slot_T = load_slots(asked, t + tt, L, ASKED)
        here = kept + (b * tiles + tile) * (N * channels) + d3
        if ASKED:  # the maximum of all lanes' takes one instruction
            any_asked = gl.max(gl.reshape(slot_T[:, None] + (d * 0)[None, :], [T * BLOCK_D]), 0) >= 0
        if not ASKED or any_asked:
            if ASKED:
                C_shared.store(columns(C_TN, SN))
            h_G = _answered(
                z, y, open_y, here, t - T + tt, slot_T, d, L, inside_TD, u_TD, skip_D, step_shared, x_shared, B_shared,
                C_shared, y_shared, A_G, h_G, n3, d3_inside, row_z, channels, N, SN, BLOCK_D, KEEP, HAS_Z, ASKED,
            )  # fmt: skip
        else:
            h_G = _walked(
                here, step_shared, x_shared, B_shared, C_shared, y_shared, A_G, h_G, n3, d3_inside, channels, N, SN,
                BLOCK_D, KEEP, False,
            )  # fmt: skip
    if STATE:
        for i in gl.static_range(GROUPS):
            n_i = n3 + i * GROUP
            gl.store(last + b * (N * channels) + d3 * N + n_i, h_G[i], mask=(n_i < N) & d3_inside & (end == tiles))
