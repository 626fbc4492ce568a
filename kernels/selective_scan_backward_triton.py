"""Backward kernel of the selective scan: chunks of time steps in a thread's registers, states one by one.

Chunks go from the last to the first. Per state: decays and states of the chunk again, from the state before it that the
forward kept; then the gradient g_t = C_t dy_t + a_t+1 g_t+1 in reverse. What is carried between chunks, per state and
channel, waits in memory (L2), and is loaded one state ahead.
"""

# mypy: allow-untyped-defs, disable-error-code="assignment"

import triton
import triton.language as tl

from .selective_scan_tiles_triton import (
    LOG2E,
    channels_inside,
    load_constant,
    row,
    set_row,
    sigmoid,
    step_size,
    steps_inside,
    sums_over_lanes,
)


@triton.jit
def _states(decay_TD, input_TD, state_D, T: tl.constexpr):
    """h_t = a_t h_t-1 + b_t from the state before -> the states before each step, and after each."""
    before_TD = decay_TD
    after_TD = decay_TD
    for t in tl.static_range(T):
        before_TD = set_row(before_TD, t, state_D)
        state_D = row(decay_TD, t) * state_D + row(input_TD, t)
        after_TD = set_row(after_TD, t, state_D)
    return before_TD, after_TD


@triton.jit
def _state_gradients(decay_TD, direct_TD, carry_D, T: tl.constexpr):
    """g_t = c_t + a_t+1 g_t+1; `carry_D` comes from after."""
    g_D = row(direct_TD, T - 1) + carry_D
    gradient_TD = set_row(direct_TD, T - 1, g_D)
    for i in tl.static_range(1, T):
        g_D = row(decay_TD, T - i) * g_D + row(direct_TD, T - 1 - i)
        gradient_TD = set_row(gradient_TD, T - 1 - i, g_D)
    return gradient_TD


@triton.jit
def _sums_over_channels(x_TD, y_TD, lane, T: tl.constexpr, DEPTH: tl.constexpr):
    """The sums of x's rows, then of y's, over the channels: as rows of `sums_over_lanes`."""
    rows = ()
    for t in tl.static_range(T):
        rows += (row(x_TD, t),)
    for t in tl.static_range(T):
        rows += (row(y_TD, t),)
    return sums_over_lanes(rows, lane, DEPTH)


@triton.jit(do_not_specialize=["one", "L", "chunks"])
def backward(
    u, delta, A, BC, D_skip, z, bias, kept, dy, dlast, du, ddelta, dz, dconstants, dBC, dstate, L, chunks, one,
    batch_u, batch_delta, batch_z, batch_dy,
    channels: tl.constexpr, row_u: tl.constexpr, row_delta: tl.constexpr, row_z: tl.constexpr, row_dy: tl.constexpr,
    N: tl.constexpr, T: tl.constexpr, BLOCK_D: tl.constexpr, WHOLE: tl.constexpr, DEPTH: tl.constexpr,
    SOFTPLUS: tl.constexpr, HAS_D: tl.constexpr, HAS_Z: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_DLAST: tl.constexpr,
):  # fmt: skip
    """BC (B,chunks,N,2,T); dBC (blocks,B,chunks,N,2,T), sums over this program's channels; kept (B,chunks,N,D).

    dconstants (B,N+2,D): gradients of A, D and the bias. dstate (B,N,D) leaves as the initial state's gradient.
    """
    d = tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D)
    column = tl.max_contiguous(d * one, BLOCK_D)
    b = tl.program_id(1).to(tl.int64)
    batch = tl.num_programs(1).to(tl.int64)
    t = tl.arange(0, T)
    lane = tl.arange(0, BLOCK_D)
    inside = channels_inside(d, channels, BLOCK_D)
    bias_D = load_constant(bias, column, inside, HAS_BIAS)
    skip_D = load_constant(D_skip, column, inside, HAS_D)
    last = (chunks - 1).to(tl.int64)
    u += b * batch_u + last * T * row_u
    delta += b * batch_delta + last * T * row_delta
    if HAS_Z:
        z += b * batch_z + last * T * row_z
        dz += (b * L + last * T) * channels
    dy += b * batch_dy + last * T * row_dy
    du += (b * L + last * T) * channels
    ddelta += (b * L + last * T) * channels
    kept += (b * chunks + last) * N * channels + column
    dA = dconstants + b * (N + 2) * channels + column
    dstate += b * N * channels + column
    A += column
    BC += (b * chunks + last) * (N * 2 * T)
    dBC += ((tl.program_id(0) * batch + b) * chunks + last) * (N * 2 * T)
    dD_D = tl.zeros([BLOCK_D], tl.float32)
    dbias_D = tl.zeros([BLOCK_D], tl.float32)
    for i in range(chunks):
        start = (chunks - 1 - i) * T
        carried = inside & (i > 0)
        mask_TD = steps_inside(start + t, L, WHOLE)[:, None] & inside[None, :]
        u_TD = tl.load(u + t[:, None] * row_u + column[None, :], mask=mask_TD, other=0.0).to(tl.float32)
        raw_TD = tl.load(delta + t[:, None] * row_delta + column[None, :], mask=mask_TD, other=0.0)
        dy_TD = tl.load(dy + t[:, None] * row_dy + column[None, :], mask=mask_TD, other=0.0).to(tl.float32)
        step_TD = step_size(raw_TD, bias_D[None, :], mask_TD, SOFTPLUS)
        x_TD = step_TD * u_TD
        if HAS_Z:
            z_TD = tl.load(z + t[:, None] * row_z + column[None, :], mask=mask_TD, other=0.0).to(tl.float32)
            dy_TD *= z_TD * sigmoid(z_TD)
        y_TD = skip_D[None, :] * u_TD
        dx_TD = tl.zeros([T, BLOCK_D], tl.float32)
        dstep_TD = tl.zeros([T, BLOCK_D], tl.float32)
        next_state_D = tl.load(kept, mask=inside, other=0.0)
        next_carry_D = tl.load(dstate, mask=carried, other=0.0)
        next_dA_D = tl.load(dA, mask=carried, other=0.0)
        next_A_D = tl.load(A, mask=inside, other=0.0)
        next_B_T = tl.load(BC + t)
        next_C_T = tl.load(BC + T + t)
        for n in range(N):
            state_D = next_state_D
            carry_D = next_carry_D
            dA_D = next_dA_D
            A_D = next_A_D
            B_T = next_B_T
            C_T = next_C_T
            m = tl.minimum(n + 1, N - 1)
            next_state_D = tl.load(kept + m * channels, mask=inside, other=0.0)
            next_carry_D = tl.load(dstate + m * channels, mask=carried, other=0.0)
            next_dA_D = tl.load(dA + m * channels, mask=carried, other=0.0)
            next_A_D = tl.load(A + m * channels, mask=inside, other=0.0)
            next_B_T = tl.load(BC + m * (2 * T) + t)
            next_C_T = tl.load(BC + m * (2 * T) + T + t)
            if HAS_DLAST:
                later = dlast + (b * channels + d) * N + n
                carry_D += tl.load(later, mask=inside & (i == 0), other=0.0).to(tl.float32)
            decay_TD = tl.exp2(step_TD * (A_D * LOG2E)[None, :])
            before_TD, after_TD = _states(decay_TD, x_TD * B_T[:, None], state_D, T)
            if HAS_Z:
                y_TD += after_TD * C_T[:, None]
            g_TD = _state_gradients(decay_TD, dy_TD * C_T[:, None], carry_D, T)
            sums = _sums_over_channels(g_TD * x_TD, after_TD * dy_TD, lane, T, DEPTH)
            dx_TD += g_TD * B_T[:, None]
            g_TD *= decay_TD
            tl.store(dstate + n * channels, row(g_TD, 0), mask=inside)
            g_TD *= before_TD
            dstep_TD += g_TD * A_D[None, :]
            tl.store(dA + n * channels, dA_D + tl.sum(g_TD * step_TD, 0), mask=inside)
            for r in tl.static_range(len(sums)):
                tl.store(dBC + n * (2 * T) + lane * 2 * T // BLOCK_D + r, sums[r])
        # Read again what would otherwise have taken registers during the loop.
        u_TD = tl.load(u + t[:, None] * row_u + column[None, :], mask=mask_TD, other=0.0).to(tl.float32)
        out_TD = t[:, None] * channels + column[None, :]
        if HAS_Z:
            z_TD = tl.load(z + t[:, None] * row_z + column[None, :], mask=mask_TD, other=0.0).to(tl.float32)
            dz_TD = tl.load(dy + t[:, None] * row_dy + column[None, :], mask=mask_TD, other=0.0).to(tl.float32)
            gate_TD = sigmoid(z_TD)
            dz_TD *= y_TD * gate_TD * (1.0 + z_TD * (1.0 - gate_TD))
            tl.store(dz + out_TD, dz_TD.to(dz.dtype.element_ty), mask=mask_TD)
            z -= T * row_z
            dz -= T * channels
        dstep_TD += dx_TD * u_TD
        if SOFTPLUS:
            raw_TD = tl.load(delta + t[:, None] * row_delta + column[None, :], mask=mask_TD, other=0.0)
            dstep_TD *= sigmoid(raw_TD.to(tl.float32) + bias_D[None, :])
        dstep_TD = tl.where(mask_TD, dstep_TD, 0.0)
        dD_D += tl.sum(dy_TD * u_TD, 0)
        dbias_D += tl.sum(dstep_TD, 0)
        dx_TD = dx_TD * step_TD + skip_D[None, :] * dy_TD
        tl.store(du + out_TD, dx_TD.to(du.dtype.element_ty), mask=mask_TD)
        tl.store(ddelta + out_TD, dstep_TD.to(ddelta.dtype.element_ty), mask=mask_TD)
        u -= T * row_u
        delta -= T * row_delta
        dy -= T * row_dy
        du -= T * channels
        ddelta -= T * channels
        kept -= N * channels
        BC -= N * 2 * T
        dBC -= N * 2 * T
    tl.store(dA + N * channels, dD_D, mask=inside)
    tl.store(dA + (N + 1) * channels, dbias_D, mask=inside)
