"""Backward kernel of the selective scan: tiles of time steps from the last to the first.

Per tile: the states again, from the one before it that the forward kept, with a_t and a_t h_t-1 left in registers; then
the gradient g_t = C_t dy_t + a_t+1 g_t+1 in reverse. The gradients of states and of A stay in registers throughout.
Sums over states and over channels are taken as far as a thread goes, then change places in shared memory, once a tile.
"""

# mypy: allow-untyped-defs, disable-error-code="assignment,var-annotated"

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from .selective_scan_tiles_gluon import (
    COLUMNS,
    LANES,
    LOG2E,
    ROWS,
    T,
    barrier,
    channels_layout,
    columns,
    columns_layout,
    joined,
    load_columns,
    load_constant,
    load_rows,
    parts_layout,
    power_of_two,
    rows_inside,
    sigmoid,
    stacked,
    state_places,
    states_layout,
    step_size,
    tile_layout,
)


@gluon.jit
def _sum_of_lanes(rows, LSD: gl.constexpr, TD: gl.constexpr):
    """Partial sums over a thread's states, step by step (LANES,D) -> (T,D)."""
    return gl.convert_layout(gl.sum(gl.convert_layout(stacked(rows), LSD), 0), TD, assert_trivial=True)


@gluon.jit
def _sum_of_channels(rows, LSC: gl.constexpr, TN: gl.constexpr, SN: gl.constexpr):
    """Partial sums over a thread's channels, step by step (LANES,SN,threads) -> (T,N)."""
    parts = gl.reshape(joined(rows), [LANES, SN, rows[0].shape[2], T])
    total = gl.permute(gl.sum(gl.convert_layout(parts, LSC), 2), (2, 0, 1))
    return gl.convert_layout(gl.reshape(total, [T, LANES * SN]), TN)


@gluon.jit
def _reversed(rows):
    turned = ()
    for i in gl.static_range(len(rows)):
        turned += (rows[len(rows) - 1 - i],)
    return turned


@gluon.jit
def _added(rows, more):
    """Sums, one by one; `rows` may be none yet."""
    total = ()
    for i in gl.static_range(len(more)):
        if len(rows) == 0:
            total += (more[i],)
        else:
            total += (rows[i] + more[i],)
    return total


@gluon.jit(do_not_specialize=["L", "tiles", "slots", "span"])
def backward(
    u, delta, A, B, C, D_skip, z, bias, kept, dy, dlast, du, ddelta, dz, dconstants, dBC, dstate, L, tiles, slots, span,
    batch_u, batch_delta, batch_B, batch_C, batch_z, row_B, row_C, batch_dy,
    channels: gl.constexpr, row_u: gl.constexpr, row_delta: gl.constexpr, row_z: gl.constexpr, row_dy: gl.constexpr,
    N: gl.constexpr, SN: gl.constexpr, BLOCK_D: gl.constexpr, WARPS: gl.constexpr, SOFTPLUS: gl.constexpr,
    HAS_D: gl.constexpr, HAS_Z: gl.constexpr, HAS_BIAS: gl.constexpr, HAS_DLAST: gl.constexpr, STATE_N: gl.constexpr,
    STATE_D: gl.constexpr,
):  # fmt: skip
    """dBC (blocks,B,8 tiles,2,WIDTH): sums over this program's channels;
    kept (B,tiles,N,D).

    Segments are `span` tiles. `dlast` has the gradient of the state after each, (B,slots), with strides STATE_N and
    STATE_D. dconstants (B,slots,N+2,D): gradients of A, D and the bias. dstate (B,N,D): of the initial state.
    """
    GROUP: gl.constexpr = LANES * SN
    GROUPS: gl.constexpr = (N + GROUP - 1) // GROUP
    PLACES: gl.constexpr = power_of_two(GROUPS)
    WIDTH: gl.constexpr = GROUPS * GROUP
    SPLIT: gl.constexpr = [LANES, SN, 8 * WARPS, BLOCK_D // (8 * WARPS)]
    S3: gl.constexpr = states_layout(BLOCK_D, SN, WARPS)
    TD: gl.constexpr = tile_layout(BLOCK_D, WARPS)
    TN: gl.constexpr = columns_layout(SN, WARPS)
    LSD: gl.constexpr = parts_layout(BLOCK_D, WARPS)
    LSC: gl.constexpr = channels_layout(SN, WARPS)
    DN: gl.constexpr = gl.SliceLayout(0, S3)
    first = gl.program_id(0) * BLOCK_D
    b = gl.program_id(1).to(gl.int64)
    segment = gl.program_id(2)
    slot = b * slots + segment
    d = first + gl.arange(0, BLOCK_D, gl.SliceLayout(0, TD))
    n = gl.arange(0, PLACES * GROUP, gl.SliceLayout(0, TN))
    tg = gl.arange(0, GROUP, gl.SliceLayout(0, TN))
    tt = gl.arange(0, T, gl.SliceLayout(1, TD))
    tn = gl.arange(0, T, gl.SliceLayout(1, TN))
    bias_D = load_constant(bias, d, channels, HAS_BIAS)
    skip_D = load_constant(D_skip, d, channels, HAS_D)
    u += b * batch_u
    delta += b * batch_delta
    B += b * batch_B
    C += b * batch_C
    dy += b * batch_dy
    if HAS_Z:
        z += b * batch_z
        dz += b * L * channels
    du += b * L * channels
    ddelta += b * L * channels
    dconstants += slot * (N + 2) * channels
    dstate += b * N * channels
    dBC += (gl.program_id(0) * gl.num_programs(1).to(gl.int64) + b) * tiles * (T * 2 * WIDTH)
    n3, d3 = state_places(first, SN, BLOCK_D, S3)
    inside = d3 >= 0
    if channels % BLOCK_D != 0:
        inside = d3 < channels
    A_G = ()
    dA_G = ()
    carry_G = ()
    for i in gl.static_range(GROUPS):
        n_i = n3 + i * GROUP
        A2 = gl.load(A + d3 * N + n_i, mask=inside & (n_i < N), other=0.0).to(gl.float32) * LOG2E
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
    B_shared = gl.allocate_shared_memory(gl.float32, [LANES, SN, T * PLACES], COLUMNS)
    C_shared = gl.allocate_shared_memory(gl.float32, [LANES, SN, T * PLACES], COLUMNS)
    dD_TD = gl.zeros([T, BLOCK_D], gl.float32, TD)
    dbias_TD = gl.zeros([T, BLOCK_D], gl.float32, TD)
    begin = segment * span
    end = gl.minimum(begin + span, tiles)
    for walked in range(end - begin):
        tile = end - 1 - walked
        t = tile * T
        inside_TD = rows_inside(t + tt, d, L, channels, BLOCK_D)
        delta_TD = load_rows(delta, t + tt, d, L, row_delta, channels, BLOCK_D)
        u_TD = load_rows(u, t + tt, d, L, row_u, channels, BLOCK_D).to(gl.float32)
        dy_TD = load_rows(dy, t + tt, d, L, row_dy, channels, BLOCK_D).to(gl.float32)
        B_shared.store(columns(load_columns(B, t + tn, n, L, row_B, N, PLACES * GROUP), SN))
        C_shared.store(columns(load_columns(C, t + tn, n, L, row_C, N, PLACES * GROUP), SN))
        step_TD = step_size(delta_TD, bias_D[None, :], inside_TD, SOFTPLUS)
        step_shared.store(step_TD)
        x_shared.store(step_TD * u_TD)
        if HAS_Z:
            z_TD = load_rows(z, t + tt, d, L, row_z, channels, BLOCK_D).to(gl.float32)
            gate_TD = sigmoid(z_TD)
            dz_TD = dy_TD * gate_TD * (1.0 + z_TD * (1.0 - gate_TD))
            dy_TD *= z_TD * gate_TD
        dy_shared.store(dy_TD)
        here_TD = (t + tt)[:, None].to(gl.int64) * channels + d[None, :]
        y_rows = ()
        dx_rows = ()
        dstep_rows = ()
        new_carry = ()
        new_dA = ()
        for i in gl.static_range(GROUPS):
            n_i = n3 + i * GROUP
            h = gl.load(kept + ((b * tiles + tile) * N + n_i) * channels + d3, mask=inside & (n_i < N), other=0.0)
            A2 = A_G[i]
            carry = carry_G[i]
            dA = dA_G[i]
            decays = ()
            decayed = ()
            y_more = ()
            for s in gl.static_range(T):
                step_D = gl.expand_dims(step_shared.slice(s, 1).load(DN), 0)
                x_D = gl.expand_dims(x_shared.slice(s, 1).load(DN), 0)
                decay = gl.exp2(step_D * A2)
                p = decay * h
                h = p + x_D * B_shared.slice(s * PLACES + i, 1, 2).load(S3)
                if HAS_Z:
                    y_more += (gl.sum(h * C_shared.slice(s * PLACES + i, 1, 2).load(S3), 1),)
                decays += (decay,)
                decayed += (p,)
            y_rows = _added(y_rows, y_more)
            if HAS_Z and i == GROUPS - 1:
                dz_TD *= _sum_of_lanes(y_rows, LSD, TD) + skip_D[None, :] * u_TD
                gl.store(dz + here_TD, dz_TD.to(dz.dtype.element_ty), mask=inside_TD)
            barrier()  # what follows is read again, and computed again, instead of taking registers all the while
            dB_rows = ()
            dC_rows = ()
            dx_more = ()
            dstep_more = ()
            for r in gl.static_range(T):
                step_D = gl.expand_dims(step_shared.slice(T - 1 - r, 1).load(DN), 0)
                x_D = gl.expand_dims(x_shared.slice(T - 1 - r, 1).load(DN), 0)
                dy_D = gl.expand_dims(dy_shared.slice(T - 1 - r, 1).load(DN), 0)
                B_N = B_shared.slice((T - 1 - r) * PLACES + i, 1, 2).load(S3)
                g = carry + dy_D * C_shared.slice((T - 1 - r) * PLACES + i, 1, 2).load(S3)
                p = decayed[T - 1 - r]
                dC_rows += (gl.sum(gl.reshape((p + x_D * B_N) * dy_D, SPLIT), 3),)
                dB_rows += (gl.sum(gl.reshape(g * x_D, SPLIT), 3),)
                dx_more += (gl.sum(g * B_N, 1),)
                carry = g * decays[T - 1 - r]
                g *= p
                dstep_more += (gl.sum(g * A2, 1),)
                dA += g * step_D
            sums = dBC + (t + tn)[:, None].to(gl.int64) * (2 * WIDTH) + i * GROUP + tg[None, :]
            gl.store(sums, _sum_of_channels(_reversed(dB_rows), LSC, TN, SN))
            gl.store(sums + WIDTH, _sum_of_channels(_reversed(dC_rows), LSC, TN, SN))
            dx_rows = _added(dx_rows, dx_more)
            dstep_rows = _added(dstep_rows, dstep_more)
            new_carry += (carry,)
            new_dA += (dA,)
        carry_G = new_carry
        dA_G = new_dA
        dx_TD = _sum_of_lanes(_reversed(dx_rows), LSD, TD)
        dstep_TD = _sum_of_lanes(_reversed(dstep_rows), LSD, TD) * (1.0 / LOG2E) + dx_TD * u_TD
        if SOFTPLUS:
            dstep_TD *= sigmoid(delta_TD.to(gl.float32) + bias_D[None, :])
        dstep_TD = gl.where(inside_TD, dstep_TD, 0.0)
        dD_TD += dy_TD * u_TD
        dbias_TD += dstep_TD
        dx_TD = dx_TD * step_TD + skip_D[None, :] * dy_TD
        gl.store(du + here_TD, dx_TD.to(du.dtype.element_ty), mask=inside_TD)
        gl.store(ddelta + here_TD, dstep_TD.to(ddelta.dtype.element_ty), mask=inside_TD)
    for i in gl.static_range(GROUPS):
        n_i = n3 + i * GROUP
        gl.store(dstate + n_i * channels + d3, carry_G[i], mask=inside & (n_i < N) & (segment == 0))
        gl.store(dconstants + n_i * channels + d3, dA_G[i], mask=inside & (n_i < N))
    gl.store(dconstants + N * channels + d, gl.sum(dD_TD, 0), mask=d < channels)
    gl.store(dconstants + (N + 1) * channels + d, gl.sum(dbias_TD, 0), mask=d < channels)
