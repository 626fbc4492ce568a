"""Backward kernel of the selective scan: tiles of time steps from the last to the first.

Per tile: the states again, from the one before it that the forward kept, left in registers; then, in reverse, their
gradient g_t = C_t dy_t + a_t+1 g_t+1, which gives A's: delta_t a_t g_t h_t-1. The gradients of states and of A stay in
registers throughout. Sums over states change places in shared memory, by four steps; those over channels stand in
`selective_scan_sums_gluon`. COPIES: the next tile's inputs are copied to shared memory on the way back
(`selective_scan_copies_gluon`); otherwise they are loaded before the sums, when states no longer take registers.
"""

# mypy: allow-untyped-defs, disable-error-code="assignment,var-annotated"

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import async_copy

from .selective_scan_copies_gluon import ask, kept_rows, room, take, widened
from .selective_scan_sums_gluon import (
    add_sums,
    gathered,
    last_first,
    no_sums,
    room_for_sums,
    store_sums,
    sum_of,
    sums_layout,
    sums_places,
)
from .selective_scan_tiles_gluon import (
    COLUMNS,
    LANES,
    LOG2E,
    QUAD,
    ROWS,
    T,
    asked_inside,
    barrier,
    columns,
    columns_layout,
    decay,
    load_columns,
    load_constant,
    load_either,
    load_rows,
    load_slots,
    packed_tiles,
    parts_layout,
    parts_places,
    power_of_two,
    rates,
    rows_inside,
    sigmoid,
    state_places,
    states_layout,
    step_and_slope,
    step_size,
    store_parts,
    sum_of_lanes,
    tile_layout,
)


@gluon.jit
def _load_tile(
    u, delta, B, C, z, open_y, dy, kept, tile, slot, tt, tn, d, n, n3, d3, L, row_B: gl.constexpr,
    row_C: gl.constexpr, channels: gl.constexpr, row_u: gl.constexpr, row_delta: gl.constexpr, row_z: gl.constexpr,
    row_dy: gl.constexpr, N: gl.constexpr, SN: gl.constexpr, BLOCK_D: gl.constexpr, HAS_Z: gl.constexpr,
    ASKED: gl.constexpr,
):  # fmt: skip
    """Of a sequence's tile: delta, u, dy, z and y before the gate (or dy), B and C, as in memory; the states before."""
    GROUP: gl.constexpr = LANES * SN
    t = tile * T
    delta_TD = load_rows(delta, t + tt, d, L, row_delta, channels, BLOCK_D)
    u_TD = load_rows(u, t + tt, d, L, row_u, channels, BLOCK_D)
    dy_TD = load_either(dy, t + tt, slot, d, L, row_dy, channels, BLOCK_D, ASKED)
    z_TD = dy_TD
    y_TD = dy_TD
    if HAS_Z:
        z_TD = load_either(z, t + tt, slot, d, L, row_z, channels, BLOCK_D, ASKED)
        y_TD = load_either(open_y, t + tt, slot, d, L, channels, channels, BLOCK_D, ASKED)
    B_TN = load_columns(B, t + tn, n, L, row_B, N, n.shape[0])
    C_TN = load_columns(C, t + tn, n, L, row_C, N, n.shape[0])
    inside = d3 >= 0
    if channels % BLOCK_D != 0:
        inside = d3 < channels
    states_G = ()
    for i in gl.static_range((N + GROUP - 1) // GROUP):
        n_i = n3 + i * GROUP
        here = kept + (tile * N + n_i).to(gl.int64) * channels + d3
        states_G += (gl.load(here, mask=inside & (n_i < N), other=0.0),)
    return delta_TD, u_TD, dy_TD, z_TD, y_TD, B_TN, C_TN, states_G


@gluon.jit
def _before_gate(given, places_TD, inside_TD, HAS_Z: gl.constexpr):
    """The gradient of y before the gate, from that behind it, z and y; that of z is stored."""
    dy_TD, z_TD, y_TD = given
    dy_TD = dy_TD.to(gl.float32)
    if HAS_Z:
        z_TD = z_TD.to(gl.float32)
        gate_TD = sigmoid(z_TD)
        dz_TD = dy_TD * gate_TD * (1.0 + z_TD * (1.0 - gate_TD)) * y_TD.to(gl.float32)
        gl.store(places_TD, dz_TD.to(places_TD.dtype.element_ty), mask=inside_TD)
        dy_TD *= z_TD * gate_TD
    return dy_TD


@gluon.jit
def _way_back(
    step_shared, x_shared, dy_shared, B_shared, C_shared, dx_shared, dstep_shared, A_G, carry_G, dA_G, states, decays,
    group: gl.constexpr, SN: gl.constexpr, BLOCK_D: gl.constexpr, WARPS: gl.constexpr, EXACT: gl.constexpr,
    BATCH: gl.constexpr, DECAYS: gl.constexpr, OUTPUTS: gl.constexpr,
):  # fmt: skip
    """Of BATCH groups, from a tile's end to its begin: the states' gradient before it, A's, and the sums for B and C.

    What belongs to single steps and channels is left in shared memory. Without OUTPUTS dy is zero, and so are C's sums.
    """
    PLACES: gl.constexpr = power_of_two(len(A_G))
    SPLIT: gl.constexpr = [LANES, SN, 8 * WARPS, BLOCK_D // (8 * WARPS)]
    S3: gl.constexpr = states_layout(BLOCK_D, SN, WARPS)
    DN: gl.constexpr = gl.SliceLayout(0, S3)
    carry = ()
    dA = ()
    dB = ()
    dC = ()
    for i in gl.static_range(group, group + BATCH):
        carry += (carry_G[i],)
        dA += (dA_G[i],)
        dB += (no_sums(SN, WARPS),)
        dC += (no_sums(SN, WARPS),)
    for quad in gl.static_range(T // QUAD - 1, -1, -1):
        dB_rows = ()
        dC_rows = ()
        dx_rows = ()
        dstep_rows = ()
        for s in gl.static_range(quad * QUAD + QUAD - 1, quad * QUAD - 1, -1):
            step_D = gl.expand_dims(step_shared.slice(s, 1).load(DN), 0)
            x_D = gl.expand_dims(x_shared.slice(s, 1).load(DN), 0)
            if OUTPUTS:
                dy_D = gl.expand_dims(dy_shared.slice(s, 1).load(DN), 0)
            dx_parts = ()
            dstep_parts = ()
            before = ()
            summed = ()
            for j in gl.static_range(BATCH):
                g = carry[j]
                if OUTPUTS:
                    g += dy_D * C_shared.slice(s * PLACES + group + j, 1, 2).load(S3)
                dB_rows += (gl.sum(gl.reshape(g * x_D, SPLIT), 3),)
                if OUTPUTS:
                    dC_rows += (gl.sum(gl.reshape(states[s * BATCH + BATCH + j] * dy_D, SPLIT), 3),)
                dx_parts += (gl.sum(g * B_shared.slice(s * PLACES + group + j, 1, 2).load(S3), 1),)
                if DECAYS:
                    g *= decays[s * BATCH + j]
                else:
                    g *= decay(step_D, A_G[group + j])
                before += (g,)
                g *= states[s * BATCH + j]
                dstep_parts += (gl.sum(g * A_G[group + j], 1),)
                summed += (dA[j] + g * step_D,)
            carry = before
            dA = summed
            dx_rows += (sum_of(dx_parts),)
            dstep_rows += (sum_of(dstep_parts),)
        more_dB = ()
        more_dC = ()
        for j in gl.static_range(BATCH):
            more_dB += (add_sums(dB[j], last_first(dB_rows, j, BATCH), quad, SN, WARPS, EXACT),)
            if OUTPUTS:
                more_dC += (add_sums(dC[j], last_first(dC_rows, j, BATCH), quad, SN, WARPS, EXACT),)
        dB = more_dB
        if OUTPUTS:
            dC = more_dC
        store_parts(dx_shared, quad * QUAD, last_first(dx_rows, 0, 1))
        store_parts(dstep_shared, quad * QUAD, last_first(dstep_rows, 0, 1))
    return carry, dA, dB, dC


@gluon.jit(do_not_specialize=["L", "tiles", "slots", "span"])
def backward(
    u, delta, A, B, C, D_skip, z, bias, kept, open_y, asked, dy, dlast, du, ddelta, dz, dconstants, dBC, dstate,
    L, tiles, slots, span, batch_u, batch_delta, batch_B, batch_C, batch_z, batch_dy, starts,
    channels: gl.constexpr, ALIGNED: gl.constexpr, row_B: gl.constexpr, row_C: gl.constexpr, row_u: gl.constexpr,
    row_delta: gl.constexpr, row_z: gl.constexpr, row_dy: gl.constexpr, row_dz: gl.constexpr, N: gl.constexpr,
    SN: gl.constexpr, BLOCK_D: gl.constexpr, WARPS: gl.constexpr, SOFTPLUS: gl.constexpr, LOG_A: gl.constexpr,
    HAS_D: gl.constexpr, HAS_Z: gl.constexpr, HAS_BIAS: gl.constexpr, HAS_DLAST: gl.constexpr, STATE_N: gl.constexpr,
    STATE_D: gl.constexpr, EXACT: gl.constexpr, BATCH: gl.constexpr, DECAYS: gl.constexpr, ASKED: gl.constexpr,
    COPIES: gl.constexpr, PACKED: gl.constexpr,
):  # fmt: skip
    """dBC (blocks,B,8 tiles,2,WIDTH): sums over this program's channels; kept (B,tiles,N,D).

    BATCH groups of states walk together; their DECAYS are kept for the way back, or computed again. Segments are `span`
    tiles. `dlast` has the gradient of the state after each, (B,slots), with strides STATE_N and STATE_D. dconstants
    (B,slots,N+2,D): gradients of A, D and the bias. dstate (B,N,D): of the initial state. ASKED: as in the forward, for
    dy and dz too; in tiles without such tokens dy is zero, and C's sums are. PACKED: as there.
    """
    GROUP: gl.constexpr = LANES * SN
    GROUPS: gl.constexpr = (N + GROUP - 1) // GROUP
    PLACES: gl.constexpr = power_of_two(GROUPS)
    WIDTH: gl.constexpr = GROUPS * GROUP
    S3: gl.constexpr = states_layout(BLOCK_D, SN, WARPS)
    TD: gl.constexpr = tile_layout(BLOCK_D, WARPS)
    TN: gl.constexpr = columns_layout(PLACES * GROUP, WARPS)
    LSD: gl.constexpr = parts_layout(BLOCK_D, WARPS)
    SUMS: gl.constexpr = sums_layout(SN, WARPS)
    DN: gl.constexpr = gl.SliceLayout(0, S3)
    KEPT: gl.constexpr = kept_rows(BLOCK_D, SN, WARPS)
    first = gl.program_id(0) * BLOCK_D
    b = gl.program_id(1).to(gl.int64)
    segment = gl.program_id(2)
    slot = b * slots + segment
    d = first + gl.arange(0, BLOCK_D, gl.SliceLayout(0, TD))
    n = gl.arange(0, PLACES * GROUP, gl.SliceLayout(0, TN))
    tt = gl.arange(0, T, gl.SliceLayout(1, TD))
    tn = gl.arange(0, T, gl.SliceLayout(1, TN))
    bias_D = load_constant(bias, d, channels, HAS_BIAS)
    skip_D = load_constant(D_skip, d, channels, HAS_D)
    u += b * batch_u
    delta += b * batch_delta
    B = gl.multiple_of(B + b * batch_B, ALIGNED)
    C = gl.multiple_of(C + b * batch_C, ALIGNED)
    if ASKED:
        asked += b * L
    else:
        dy += b * batch_dy
        if HAS_Z:
            z += b * batch_z
            open_y += b * L * channels
            dz += b * L * row_dz
    du += b * L * channels
    ddelta += b * L * channels
    dconstants += slot * (N + 2) * channels
    dstate += b * N * channels
    kept += b * tiles * N * channels
    dBC += (gl.program_id(0) * gl.num_programs(1).to(gl.int64) + b) * tiles * (T * 2 * WIDTH)
    sums = dBC + sums_places(WIDTH, SN, SUMS)
    n3, d3 = state_places(first, SN, BLOCK_D, S3)
    inside = d3 >= 0
    if channels % BLOCK_D != 0:
        inside = d3 < channels
    A_G = ()
    dA_G = ()
    carry_G = ()
    for i in gl.static_range(GROUPS):
        n_i = n3 + i * GROUP
        A2 = rates(gl.load(A + d3 * N + n_i, mask=inside & (n_i < N), other=0.0), LOG_A)
        A_G += (A2,)
        dA_G += (gl.zeros([LANES, SN, BLOCK_D], gl.float32, S3),)
        if HAS_DLAST:
            here = dlast + slot * (N * channels) + n_i * STATE_N + d3 * STATE_D
            carry_G += (gl.load(here, mask=inside & (n_i < N), other=0.0).to(gl.float32),)
        else:
            carry_G += (gl.zeros([LANES, SN, BLOCK_D], gl.float32, S3),)
    step_shared = gl.allocate_shared_memory(gl.float32, [T, BLOCK_D], ROWS)
    x_shared = gl.allocate_shared_memory(gl.float32, [T, BLOCK_D], ROWS)
    dy_shared = gl.allocate_shared_memory(gl.float32, [T, BLOCK_D], ROWS)
    u_shared = gl.allocate_shared_memory(gl.float32, [T, BLOCK_D], ROWS)
    slope_shared = gl.allocate_shared_memory(gl.float32, [T, BLOCK_D], ROWS)
    B_shared = gl.allocate_shared_memory(gl.float32, [LANES, SN, T * PLACES], COLUMNS)
    C_shared = gl.allocate_shared_memory(gl.float32, [LANES, SN, T * PLACES], COLUMNS)
    dx_shared = gl.allocate_shared_memory(gl.float32, [T, LANES, BLOCK_D], parts_places(BLOCK_D))
    dstep_shared = gl.allocate_shared_memory(gl.float32, [T, LANES, BLOCK_D], parts_places(BLOCK_D))
    sums_shared = ()
    for _ in gl.static_range(BATCH):
        sums_shared += (room_for_sums(SN, WARPS),)
    dD_TD = gl.zeros([T, BLOCK_D], gl.float32, TD)
    dbias_TD = gl.zeros([T, BLOCK_D], gl.float32, TD)
    begin = segment * span
    end = gl.minimum(begin + span, tiles)
    if PACKED:
        begin, end = packed_tiles(starts, segment)
    tile = end - 1
    slot_T = load_slots(asked, tile * T + tt, L, ASKED)
    next_slot_T = load_slots(asked, gl.maximum(tile - 1, begin) * T + tt, L, ASKED)
    if ASKED:
        # In all lanes of every warp: their maximum takes one instruction, and nobody waits for another warp.
        tw = gl.arange(0, 32, gl.BlockedLayout([1], [32], [WARPS], [0])) % T
        any_asked = gl.max(load_slots(asked, tile * T + tw, L, ASKED), 0) >= 0
        next_slots = load_slots(asked, gl.maximum(tile - 1, begin) * T + tw, L, ASKED)
    if COPIES:
        places = room(u, delta, B, C, z, open_y, dy, SN, GROUPS, BLOCK_D, WARPS, HAS_Z)
        ask(
            places, u, delta, B, C, z, open_y, dy, kept, tile, slot_T, tt, tn, d, n, first, L, row_B, row_C, channels,
            row_u, row_delta, row_z, row_dy, N, SN, BLOCK_D, WARPS, HAS_Z, ASKED,
        )  # fmt: skip
        async_copy.wait_group(0)
    else:
        next_tile = _load_tile(
            u, delta, B, C, z, open_y, dy, kept, tile, slot_T, tt, tn, d, n, n3, d3, L, row_B, row_C, channels,
            row_u, row_delta, row_z, row_dy, N, SN, BLOCK_D, HAS_Z, ASKED,
        )  # fmt: skip
    for _ in range(begin, end):
        t = tile * T
        inside_TD = rows_inside(t + tt, d, L, channels, BLOCK_D)
        if COPIES:
            if ASKED:
                delta_TD, u_TD, B_TN = widened(places[0], TD), widened(places[1], TD), widened(places[5], TN)
            else:
                delta_TD, u_TD, dy_TD, z_TD, y_TD, B_TN, C_TN = take(places, TD, TN)
        else:
            delta_TD, u_TD, dy_TD, z_TD, y_TD, B_TN, C_TN, states_G = next_tile
        B_shared.store(columns(B_TN, SN))
        if not ASKED:
            C_shared.store(columns(C_TN, SN))
        u_TD = u_TD.to(gl.float32)
        u_shared.store(u_TD)
        if not ASKED:
            dy_TD = dy_TD.to(gl.float32)
        if SOFTPLUS:
            step_TD, slope_TD = step_and_slope(delta_TD, bias_D[None, :], inside_TD)
            slope_shared.store(slope_TD)
        else:
            step_TD = step_size(delta_TD, bias_D[None, :], inside_TD, SOFTPLUS)
        step_shared.store(step_TD)
        x_shared.store(step_TD * u_TD)
        if ASKED:
            if any_asked:
                if COPIES:
                    given = widened(places[2], TD), widened(places[3], TD), widened(places[4], TD)
                    C_shared.store(columns(widened(places[6], TN), SN))
                else:
                    given = dy_TD, z_TD, y_TD
                    C_shared.store(columns(C_TN, SN))
                dz_places = dz + slot_T[:, None].to(gl.int64) * row_dz + d[None, :]
                open_TD = _before_gate(given, dz_places, asked_inside(slot_T, d, channels, BLOCK_D), HAS_Z)
                dy_shared.store(open_TD)
                dD_TD += open_TD * u_TD
            else:
                dy_shared.store(gl.zeros([T, BLOCK_D], gl.float32, TD))
        else:
            dz_places = dz + (t + tt)[:, None].to(gl.int64) * row_dz + d[None, :]
            dy_TD = _before_gate((dy_TD, z_TD, y_TD), dz_places, inside_TD, HAS_Z)
            dy_shared.store(dy_TD)
            dD_TD += dy_TD * u_TD
        here_TD = (t + tt)[:, None].to(gl.int64) * channels + d[None, :]
        new_carry = ()
        new_dA = ()
        for group in gl.static_range(0, GROUPS, BATCH):
            states = ()
            for i in gl.static_range(group, group + BATCH):
                if COPIES:
                    kept_i = places[7][i].load(KEPT)
                    states += (gl.reshape(kept_i, [LANES, SN, BLOCK_D]),)
                else:
                    states += (states_G[i],)
            decays = ()
            for s in gl.static_range(T):
                step_D = gl.expand_dims(step_shared.slice(s, 1).load(DN), 0)
                x_D = gl.expand_dims(x_shared.slice(s, 1).load(DN), 0)
                for j in gl.static_range(BATCH):
                    a = decay(step_D, A_G[group + j])
                    added = x_D * B_shared.slice(s * PLACES + group + j, 1, 2).load(S3)
                    states += (a * states[s * BATCH + j] + added,)
                    decays += (a,)
            barrier()  # what follows is read again, and computed again, instead of taking registers all the while
            if COPIES and group + BATCH == GROUPS:  # nobody reads this tile's any more
                following = gl.maximum(tile - 1, begin)  # after the last tile, that one again
                ask(
                    places, u, delta, B, C, z, open_y, dy, kept, following, next_slot_T, tt, tn, d, n, first, L,
                    row_B, row_C, channels, row_u, row_delta, row_z, row_dy, N, SN, BLOCK_D, WARPS, HAS_Z, ASKED,
                )  # fmt: skip
            if not ASKED or any_asked:
                carry, dA, dB, dC = _way_back(
                    step_shared, x_shared, dy_shared, B_shared, C_shared, dx_shared, dstep_shared, A_G, carry_G, dA_G,
                    states, decays, group, SN, BLOCK_D, WARPS, EXACT, BATCH, DECAYS, True,
                )  # fmt: skip
            else:
                carry, dA, dB, dC = _way_back(
                    step_shared, x_shared, dy_shared, B_shared, C_shared, dx_shared, dstep_shared, A_G, carry_G, dA_G,
                    states, decays, group, SN, BLOCK_D, WARPS, EXACT, BATCH, DECAYS, False,
                )  # fmt: skip
            for j in gl.static_range(BATCH):
                store_sums(sums_shared[j], dB[j], dC[j], SN, WARPS)
            if group + BATCH == GROUPS:  # states no longer take registers
                tile = gl.maximum(tile - 1, begin)  # after the last tile, that one again
                slot_T = next_slot_T
                next_slot_T = load_slots(asked, gl.maximum(tile - 1, begin) * T + tt, L, ASKED)
                if ASKED:
                    any_asked = gl.max(next_slots, 0) >= 0
                    next_slots = load_slots(asked, gl.maximum(tile - 1, begin) * T + tw, L, ASKED)
                if COPIES:
                    async_copy.wait_group(0)
                else:
                    next_tile = _load_tile(
                        u, delta, B, C, z, open_y, dy, kept, tile, slot_T, tt, tn, d, n, n3, d3, L, row_B, row_C,
                        channels, row_u, row_delta, row_z, row_dy, N, SN, BLOCK_D, HAS_Z, ASKED,
                    )  # fmt: skip
            for j in gl.static_range(BATCH):
                gl.store(sums + (t * 2 * WIDTH + (group + j) * GROUP), gathered(sums_shared[j], SN, WARPS, EXACT))
            if group == 0:
                dx_TD = sum_of_lanes(dx_shared, LSD, TD)
                dstep_TD = sum_of_lanes(dstep_shared, LSD, TD)
            else:
                dx_TD += sum_of_lanes(dx_shared, LSD, TD)
                dstep_TD += sum_of_lanes(dstep_shared, LSD, TD)
            new_carry += carry
            new_dA += dA
        carry_G = new_carry
        dA_G = new_dA
        dstep_TD *= 1.0 / LOG2E
        dstep_TD += dx_TD * u_shared.load(TD)
        if SOFTPLUS:
            dstep_TD *= slope_shared.load(TD)
        else:
            dstep_TD = gl.where(inside_TD, dstep_TD, 0.0)
        dbias_TD += dstep_TD
        dx_TD = dx_TD * step_shared.load(TD) + skip_D[None, :] * dy_shared.load(TD)
        gl.store(du + here_TD, dx_TD.to(du.dtype.element_ty), mask=inside_TD)
        gl.store(ddelta + here_TD, dstep_TD.to(ddelta.dtype.element_ty), mask=inside_TD)
    for i in gl.static_range(GROUPS):
        n_i = n3 + i * GROUP
        gl.store(dstate + n_i * channels + d3, carry_G[i], mask=inside & (n_i < N) & (segment == 0))
        gl.store(dconstants + n_i * channels + d3, dA_G[i], mask=inside & (n_i < N))
    gl.store(dconstants + N * channels + d, gl.sum(dD_TD, 0), mask=d < channels)
    gl.store(dconstants + (N + 1) * channels + d, gl.sum(dbias_TD, 0), mask=d < channels)
