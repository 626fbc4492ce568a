"""Forward kernel of the selective scan: a thread walks along one channel with its states in registers.

All states of a step are independent of each other, so that one warp alone can keep the special function unit busy.
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
)


@triton.jit(do_not_specialize=["one", "L", "chunks"])
def forward(
    u, delta, A, BC, D_skip, z, bias, initial, y, last, kept, L, chunks, one,
    batch_u, batch_delta, batch_z,
    channels: tl.constexpr, row_u: tl.constexpr, row_delta: tl.constexpr, row_z: tl.constexpr,
    N: tl.constexpr, GROUP: tl.constexpr, T: tl.constexpr, BLOCK_D: tl.constexpr, WHOLE: tl.constexpr,
    KEEP_EVERY: tl.constexpr, SOFTPLUS: tl.constexpr, HAS_D: tl.constexpr, HAS_Z: tl.constexpr, HAS_BIAS: tl.constexpr,
    HAS_STATE: tl.constexpr, STATE: tl.constexpr,
):  # fmt: skip
    """y, and the last state (B,D,N). KEEP_EVERY: also kept (B,chunks/KEEP_EVERY,N,D), the state before some chunks.

    BC is (B,L,2,N), B and C after each other in float32, states padded to a multiple of GROUP and steps of T.
    """
    GROUPS: tl.constexpr = (N + GROUP - 1) // GROUP
    WIDTH: tl.constexpr = GROUPS * GROUP
    d = tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D)
    column = tl.max_contiguous(d * one, BLOCK_D)
    b = tl.program_id(1).to(tl.int64)
    t = tl.arange(0, T)
    g = tl.arange(0, GROUP)
    inside = channels_inside(d, channels, BLOCK_D)
    bias_D = load_constant(bias, column, inside, HAS_BIAS)
    skip_D = load_constant(D_skip, column, inside, HAS_D)
    u += b * batch_u
    delta += b * batch_delta
    if HAS_Z:
        z += b * batch_z
    BC += b * chunks * (T * 2 * WIDTH)
    y += b * L * channels
    if KEEP_EVERY:
        kept += b * tl.cdiv(chunks, KEEP_EVERY) * N * channels
    A_GND = ()
    h_GND = ()
    for i in tl.static_range(GROUPS):
        n = i * GROUP + g
        mask_ND = inside[None, :] & (n < N)[:, None]
        A_GND += (tl.load(A + n[:, None] * channels + column[None, :], mask=mask_ND, other=0.0) * LOG2E,)
        if HAS_STATE:
            state = initial + b * channels * N + column[None, :] * N + n[:, None]
            h_GND += (tl.load(state, mask=mask_ND, other=0.0).to(tl.float32),)
        else:
            h_GND += (tl.zeros([GROUP, BLOCK_D], tl.float32),)
    mask_TD = steps_inside(t, L, WHOLE)[:, None] & inside[None, :]
    next_delta_TD = tl.load(delta + t[:, None] * row_delta + column[None, :], mask=mask_TD, other=0.0)
    next_u_TD = tl.load(u + t[:, None] * row_u + column[None, :], mask=mask_TD, other=0.0)
    for chunk in range(chunks):
        start = chunk * T
        mask_TD = steps_inside(start + t, L, WHOLE)[:, None] & inside[None, :]
        u_TD = next_u_TD.to(tl.float32)
        step_TD = step_size(next_delta_TD, bias_D[None, :], mask_TD, SOFTPLUS)
        x_TD = step_TD * u_TD
        u += T * row_u
        delta += T * row_delta
        ahead_TD = (start + T + t < L)[:, None] & inside[None, :]
        next_delta_TD = tl.load(delta + t[:, None] * row_delta + column[None, :], mask=ahead_TD, other=0.0)
        next_u_TD = tl.load(u + t[:, None] * row_u + column[None, :], mask=ahead_TD, other=0.0)
        if HAS_Z:
            z_TD = tl.load(z + t[:, None] * row_z + column[None, :], mask=mask_TD, other=0.0).to(tl.float32)
            z += T * row_z
        if KEEP_EVERY:
            kept_here = chunk % KEEP_EVERY == 0
            if kept_here:
                for i in tl.static_range(GROUPS):
                    n = i * GROUP + g
                    mask_ND = inside[None, :] & (n < N)[:, None]
                    tl.store(kept + n[:, None] * channels + column[None, :], h_GND[i], mask=mask_ND)
                kept += N * channels
        y_TD = skip_D[None, :] * u_TD
        for s in tl.static_range(T):
            step_D = row(step_TD, s)
            x_D = row(x_TD, s)
            y_D = row(y_TD, s)
            new_GND = ()
            for i in tl.static_range(GROUPS):
                here = BC + s * 2 * WIDTH + i * GROUP + g
                B_N = tl.load(here)
                C_N = tl.load(here + WIDTH)
                h_ND = tl.exp2(step_D[None, :] * A_GND[i]) * h_GND[i] + x_D[None, :] * B_N[:, None]
                y_D += tl.sum(h_ND * C_N[:, None], 0)
                new_GND += (h_ND,)
            h_GND = new_GND
            y_TD = set_row(y_TD, s, y_D)
        BC += T * 2 * WIDTH
        if HAS_Z:
            y_TD *= z_TD * sigmoid(z_TD)
        tl.store(y + t[:, None] * channels + column[None, :], y_TD.to(y.dtype.element_ty), mask=mask_TD)
        y += T * channels
    if STATE:
        for i in tl.static_range(GROUPS):
            n = i * GROUP + g
            mask_ND = inside[None, :] & (n < N)[:, None]
            tl.store(last + b * channels * N + column[None, :] * N + n[:, None], h_GND[i], mask=mask_ND)
