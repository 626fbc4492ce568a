"""What a segment of a selective scan leaves behind, from zeros: its last states, or the gradients before it.

With the sums of the segments' step sizes, all that a scan over segments needs: a segment's decays multiply to
exp(A sum delta).
"""

# mypy: allow-untyped-defs, disable-error-code="assignment"

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from .selective_scan_tiles_gluon import (
    COLUMNS,
    LANES,
    ROWS,
    T,
    columns,
    columns_layout,
    decay,
    load_columns,
    load_constant,
    load_rows,
    power_of_two,
    rates,
    rows_inside,
    sigmoid,
    state_places,
    states_layout,
    step_size,
    tile_layout,
)


@gluon.jit(do_not_specialize=["L", "tiles", "slots", "span"])
def ends(
    x, delta, A, B, z, bias, states, steps, L, tiles, slots, span, batch_x, batch_delta, batch_B, batch_z, row_B,
    channels: gl.constexpr, row_x: gl.constexpr, row_delta: gl.constexpr, row_z: gl.constexpr, N: gl.constexpr,
    SN: gl.constexpr, BLOCK_D: gl.constexpr, SOFTPLUS: gl.constexpr, LOG_A: gl.constexpr, HAS_Z: gl.constexpr,
    HAS_BIAS: gl.constexpr, REVERSE: gl.constexpr,
):  # fmt: skip
    """Of u and B, h = a h + delta u B, into the next segment's slot of states (B,slots,N,D); REVERSE: of dy silu(z) and
    C, g = a (g + dy C) from the end, into the slot before. Also steps (B,slots,D), of every segment that is walked.

    All segments but the last, or in REVERSE the first, have someone to tell.
    """
    GROUP: gl.constexpr = LANES * SN
    GROUPS: gl.constexpr = (N + GROUP - 1) // GROUP
    PLACES: gl.constexpr = power_of_two(GROUPS)
    WIDTH: gl.constexpr = PLACES * GROUP
    S3: gl.constexpr = states_layout(BLOCK_D, SN)
    TD: gl.constexpr = tile_layout(BLOCK_D)
    TN: gl.constexpr = columns_layout(WIDTH)
    DN: gl.constexpr = gl.SliceLayout(0, S3)
    first = gl.program_id(0) * BLOCK_D
    b = gl.program_id(1).to(gl.int64)
    segment = gl.program_id(2)
    slot = b * slots + segment + 1
    if REVERSE:
        segment += 1
        slot -= 1
    d = first + gl.arange(0, BLOCK_D, gl.SliceLayout(0, TD))
    n = gl.arange(0, WIDTH, gl.SliceLayout(0, TN))
    tt = gl.arange(0, T, gl.SliceLayout(1, TD))
    tn = gl.arange(0, T, gl.SliceLayout(1, TN))
    bias_D = load_constant(bias, d, channels, HAS_BIAS)
    x += b * batch_x
    delta += b * batch_delta
    B += b * batch_B
    if HAS_Z:
        z += b * batch_z
    n3, d3 = state_places(first, SN, BLOCK_D, S3)
    A_G = ()
    h_G = ()
    for i in gl.static_range(GROUPS):
        n_i = n3 + i * GROUP
        A2 = rates(gl.load(A + d3 * N + n_i, mask=(n_i < N) & (d3 < channels), other=0.0), LOG_A)
        A_G += (A2,)
        h_G += (gl.zeros([LANES, SN, BLOCK_D], gl.float32, S3),)
    step_shared = gl.allocate_shared_memory(gl.float32, [T, BLOCK_D], ROWS)
    x_shared = gl.allocate_shared_memory(gl.float32, [T, BLOCK_D], ROWS)
    B_shared = gl.allocate_shared_memory(gl.float32, [LANES, SN, T * PLACES], COLUMNS)
    begin = segment * span
    end = gl.minimum(begin + span, tiles)
    t = begin * T
    if REVERSE:
        t = (end - 1) * T
    next_delta_TD = load_rows(delta, t + tt, d, L, row_delta, channels, BLOCK_D)
    next_x_TD = load_rows(x, t + tt, d, L, row_x, channels, BLOCK_D)
    next_B_TN = load_columns(B, t + tn, n, L, row_B, N, WIDTH)
    if HAS_Z:
        next_z_TD = load_rows(z, t + tt, d, L, row_z, channels, BLOCK_D)
    total_TD = gl.zeros([T, BLOCK_D], gl.float32, TD)
    for _ in range(begin, end):
        inside_TD = rows_inside(t + tt, d, L, channels, BLOCK_D)
        step_TD = step_size(next_delta_TD, bias_D[None, :], inside_TD, SOFTPLUS)
        x_TD = next_x_TD.to(gl.float32)
        B_shared.store(columns(next_B_TN, SN))
        if HAS_Z:
            z_TD = next_z_TD.to(gl.float32)
            x_TD *= z_TD * sigmoid(z_TD)
        if REVERSE:
            t -= T  # not below 0: the first segment is not walked
        else:
            t += T
            x_TD *= step_TD
        next_delta_TD = load_rows(delta, t + tt, d, L, row_delta, channels, BLOCK_D)
        next_x_TD = load_rows(x, t + tt, d, L, row_x, channels, BLOCK_D)
        next_B_TN = load_columns(B, t + tn, n, L, row_B, N, WIDTH)
        if HAS_Z:
            next_z_TD = load_rows(z, t + tt, d, L, row_z, channels, BLOCK_D)
        step_shared.store(step_TD)
        x_shared.store(x_TD)
        total_TD += step_TD
        for r in gl.static_range(T):
            step_D = gl.expand_dims(step_shared.slice(T - 1 - r if REVERSE else r, 1).load(DN), 0)
            x_D = gl.expand_dims(x_shared.slice(T - 1 - r if REVERSE else r, 1).load(DN), 0)
            new_G = ()
            for i in gl.static_range(GROUPS):
                a = decay(step_D, A_G[i])
                added = x_D * B_shared.slice((T - 1 - r if REVERSE else r) * PLACES + i, 1, 2).load(S3)
                if REVERSE:
                    new_G += (a * (h_G[i] + added),)
                else:
                    new_G += (a * h_G[i] + added,)
            h_G = new_G
    gl.store(steps + (b * slots + segment) * channels + d, gl.sum(total_TD, 0), mask=d < channels)
    for i in gl.static_range(GROUPS):
        n_i = n3 + i * GROUP
        gl.store(states + (slot * N + n_i) * channels + d3, h_G[i], mask=(n_i < N) & (d3 < channels))
