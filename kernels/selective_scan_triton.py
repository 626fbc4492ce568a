"""Triton kernels of `selective_scan`: one thread per channel, a chunk of time steps at a time in its registers.

A program walks over the chunks of 32 channels of one sequence; within a chunk it takes the states one by one. So a
tile (T,D) has time in registers and channels across the lanes: the recurrence needs no exchange between threads, and
exponentials, N per step and channel, are computed once. The states between chunks wait in memory.

The backward first walks forward once more and keeps the states between chunks, N / T float32 per step and channel,
until it is done. It then takes the chunks from the last to the first: per state the decays and states again, and the
gradient g_t = C_t dy_t + a_t+1 g_t+1 in reverse. Gradients of B and C are sums over channels: every program leaves the
sum over its 32, and those are added in a fixed order, as are the sequences' gradients of A, D and the bias of delta.
Results are reproducible bit by bit. Everything between load and store is float32.

B and C are first laid out time last, (B,N,L) in float32, so that a thread loads four steps at once.
"""

# mypy: allow-untyped-defs

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

CHUNK = 16
CHANNELS = 32  # one warp: sums over the channels of a program stay within it
LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def _row(x_TD, t: tl.constexpr):
    """Row t. Time lies in registers, so that comparison and sum (of integers: x + 0 = x) are resolved in compiling."""
    time = tl.arange(0, x_TD.shape[0])[:, None]
    bits = tl.where(time == t, x_TD.to(tl.int32, bitcast=True), 0)
    return tl.sum(bits, 0).to(tl.float32, bitcast=True)


@triton.jit
def _set_row(x_TD, t: tl.constexpr, row_D):
    return tl.where(tl.arange(0, x_TD.shape[0])[:, None] == t, row_D[None, :], x_TD)


@triton.jit
def _states(decay_TD, input_TD, state_D, T: tl.constexpr):
    """h_t = a_t h_t-1 + b_t from the state before -> those before each step, those after each, the last."""
    before_TD = decay_TD
    after_TD = decay_TD
    for t in tl.static_range(T):
        before_TD = _set_row(before_TD, t, state_D)
        state_D = _row(decay_TD, t) * state_D + _row(input_TD, t)
        after_TD = _set_row(after_TD, t, state_D)
    return before_TD, after_TD, state_D


@triton.jit
def _state_gradients(decay_TD, direct_TD, carry_D, T: tl.constexpr):
    """g_t = c_t + a_t+1 g_t+1 -> g, and a_0 g_0, the gradient of the state before; `carry_D` comes from after."""
    gradient_TD = decay_TD
    for i in tl.static_range(T):
        g_D = _row(direct_TD, T - 1 - i) + carry_D
        gradient_TD = _set_row(gradient_TD, T - 1 - i, g_D)
        carry_D = _row(decay_TD, T - 1 - i) * g_D
    return gradient_TD, carry_D


@triton.jit
def _softplus(x):
    """max(x, 0) + log(1 + e), e = exp(-|x|), by the series of 2 artanh(e / (2 + e)): exact for small e too."""
    e = tl.exp2(tl.abs(x) * -LOG2E)
    s = e / (2.0 + e)
    w = s * s
    series = 1.0 / 13 + w * (1.0 / 15)
    series = 1.0 / 9 + w * (1.0 / 11 + w * series)
    series = 1.0 / 5 + w * (1.0 / 7 + w * series)
    series = 1.0 + w * (1.0 / 3 + w * series)
    return tl.maximum(x, 0.0) + 2.0 * s * series


@triton.jit
def _sigmoid(x):
    return 1.0 / (1.0 + tl.exp2(x * -LOG2E))


@triton.jit
def _step_size(delta_TD, bias_D, mask_TD, SOFTPLUS: tl.constexpr):
    """The step size, 0 outside the sequence: there the state stays as it is."""
    delta_TD = delta_TD.to(tl.float32) + bias_D[None, :]
    if SOFTPLUS:
        delta_TD = _softplus(delta_TD)
    return tl.where(mask_TD, delta_TD, 0.0)


# `one` is 1, the stride of channels. A compiler that knew it would find aligned channels to load several at once, and
# spread time over the lanes; so it only learns that they are neighbours.
@triton.jit(do_not_specialize=["one", "L", "chunks", "row_u", "row_delta", "row_z"])
def _forward(
    u, delta, A, BC, D_skip, z, bias, y, state, kept, L, chunks, channels, one,
    row_u, row_delta, row_z, batch_u, batch_delta, batch_z,
    N: tl.constexpr, T: tl.constexpr, BLOCK_D: tl.constexpr, SOFTPLUS: tl.constexpr, HAS_D: tl.constexpr,
    HAS_Z: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_STATE: tl.constexpr, KEEP: tl.constexpr, OUTPUT: tl.constexpr,
):  # fmt: skip
    """y and the last state (B,N,D), or (OUTPUT false) only the states before every chunk, kept (B,chunks,N,D)."""
    d = tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D)
    column = tl.max_contiguous(d * one, BLOCK_D)
    b = tl.program_id(1).to(tl.int64)
    t = tl.arange(0, T)
    inside = d < channels
    bias_D = tl.zeros([BLOCK_D], tl.float32)
    skip_D = tl.zeros([BLOCK_D], tl.float32)
    if HAS_BIAS:
        bias_D = tl.load(bias + column, mask=inside, other=0.0).to(tl.float32)
    if HAS_D:
        skip_D = tl.load(D_skip + column, mask=inside, other=0.0).to(tl.float32)
    padded = chunks * T
    u += b * batch_u
    delta += b * batch_delta
    if HAS_Z:
        z += b * batch_z
    y += b * L * channels
    state += b * N * channels
    kept += b * chunks * N * channels
    B = BC + b * N * padded
    C = B + tl.num_programs(1).to(tl.int64) * N * padded
    mask_TD = (t < L)[:, None] & inside[None, :]
    next_delta_TD = tl.load(delta + t[:, None] * row_delta + column[None, :], mask=mask_TD, other=0.0)
    next_u_TD = tl.load(u + t[:, None] * row_u + column[None, :], mask=mask_TD, other=0.0)
    for chunk in range(chunks):
        start = chunk * T
        mask_TD = (start + t < L)[:, None] & inside[None, :]
        u_TD = next_u_TD.to(tl.float32)
        step_TD = _step_size(next_delta_TD, bias_D, mask_TD, SOFTPLUS)
        x_TD = step_TD * u_TD
        u += T * row_u
        delta += T * row_delta
        ahead_TD = (start + T + t < L)[:, None] & inside[None, :]
        next_delta_TD = tl.load(delta + t[:, None] * row_delta + column[None, :], mask=ahead_TD, other=0.0)
        next_u_TD = tl.load(u + t[:, None] * row_u + column[None, :], mask=ahead_TD, other=0.0)
        y_TD = skip_D[None, :] * u_TD
        if HAS_Z and OUTPUT:
            z_TD = tl.load(z + t[:, None] * row_z + column[None, :], mask=mask_TD, other=0.0).to(tl.float32)
            z += T * row_z
        for n in range(N):
            known = inside if HAS_STATE else inside & (start > 0)
            state_D = tl.load(state + n * channels + column, mask=known, other=0.0)
            A_D = tl.load(A + n * channels + column, mask=inside, other=0.0) * LOG2E
            B_T = tl.load(B + n * padded + start + t)
            if KEEP:
                tl.store(kept + n * channels + column, state_D, mask=inside)
            decay_TD = tl.exp2(step_TD * A_D[None, :])
            _, after_TD, state_D = _states(decay_TD, x_TD * B_T[:, None], state_D, T)
            tl.store(state + n * channels + column, state_D, mask=inside)
            if OUTPUT:
                y_TD += after_TD * tl.load(C + n * padded + start + t)[:, None]
        kept += N * channels
        if OUTPUT:
            if HAS_Z:
                y_TD *= z_TD * _sigmoid(z_TD)
            tl.store(y + t[:, None] * channels + column[None, :], y_TD.to(y.dtype.element_ty), mask=mask_TD)
            y += T * channels


@triton.jit(do_not_specialize=["one", "L", "chunks", "row_u", "row_delta", "row_z", "row_dy"])
def _backward(
    u, delta, A, BC, D_skip, z, bias, kept, dy, du, ddelta, dz, dA, dBC, dD, dbias, dstate, L, chunks, channels, one,
    row_u, row_delta, row_z, row_dy, batch_u, batch_delta, batch_z, batch_dy,
    N: tl.constexpr, T: tl.constexpr, BLOCK_D: tl.constexpr, SOFTPLUS: tl.constexpr, HAS_D: tl.constexpr,
    HAS_Z: tl.constexpr, HAS_BIAS: tl.constexpr,
):  # fmt: skip
    """dstate (B,N,D) comes as the last state's gradient and leaves as the first's; dA (B,N,D) comes as zeros.

    dBC (2,blocks,B,N,chunks*T): sums over the channels of this program; dD, dbias (B,D).
    """
    d = tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D)
    column = tl.max_contiguous(d * one, BLOCK_D)
    b = tl.program_id(1).to(tl.int64)
    batch = tl.num_programs(1).to(tl.int64)
    t = tl.arange(0, T)
    inside = d < channels
    bias_D = tl.zeros([BLOCK_D], tl.float32)
    skip_D = tl.zeros([BLOCK_D], tl.float32)
    if HAS_BIAS:
        bias_D = tl.load(bias + column, mask=inside, other=0.0).to(tl.float32)
    if HAS_D:
        skip_D = tl.load(D_skip + column, mask=inside, other=0.0).to(tl.float32)
    padded = chunks * T
    last = (chunks - 1).to(tl.int64)
    u += b * batch_u + last * T * row_u
    delta += b * batch_delta + last * T * row_delta
    if HAS_Z:
        z += b * batch_z + last * T * row_z
    dy += b * batch_dy + last * T * row_dy
    du += (b * L + last * T) * channels
    ddelta += (b * L + last * T) * channels
    dz += (b * L + last * T) * channels
    kept += (b * chunks + last) * N * channels
    dA += b * N * channels
    dstate += b * N * channels
    B = BC + b * N * padded
    C = B + batch * N * padded
    dB = dBC + (tl.program_id(0) * batch + b) * N * padded
    dC = dB + tl.num_programs(0) * batch * N * padded
    dD_D = tl.zeros([BLOCK_D], tl.float32)
    dbias_D = tl.zeros([BLOCK_D], tl.float32)
    for i in range(chunks):
        start = (chunks - 1 - i) * T
        mask_TD = (start + t < L)[:, None] & inside[None, :]
        u_TD = tl.load(u + t[:, None] * row_u + column[None, :], mask=mask_TD, other=0.0).to(tl.float32)
        raw_TD = tl.load(delta + t[:, None] * row_delta + column[None, :], mask=mask_TD, other=0.0)
        dy_TD = tl.load(dy + t[:, None] * row_dy + column[None, :], mask=mask_TD, other=0.0).to(tl.float32)
        step_TD = _step_size(raw_TD, bias_D, mask_TD, SOFTPLUS)
        x_TD = step_TD * u_TD
        if HAS_Z:
            z_TD = tl.load(z + t[:, None] * row_z + column[None, :], mask=mask_TD, other=0.0).to(tl.float32)
            dy_TD *= z_TD * _sigmoid(z_TD)
        y_TD = skip_D[None, :] * u_TD
        dx_TD = tl.zeros([T, BLOCK_D], tl.float32)
        dstep_TD = tl.zeros([T, BLOCK_D], tl.float32)
        for n in range(N):
            state_D = tl.load(kept + n * channels + column, mask=inside, other=0.0)
            carry_D = tl.load(dstate + n * channels + column, mask=inside, other=0.0)
            dA_D = tl.load(dA + n * channels + column, mask=inside, other=0.0)
            A_D = tl.load(A + n * channels + column, mask=inside, other=0.0)
            B_T = tl.load(B + n * padded + start + t)
            C_T = tl.load(C + n * padded + start + t)
            decay_TD = tl.exp2(step_TD * (A_D * LOG2E)[None, :])
            before_TD, after_TD, state_D = _states(decay_TD, x_TD * B_T[:, None], state_D, T)
            if HAS_Z:
                y_TD += after_TD * C_T[:, None]
            tl.store(dC + n * padded + start + t, tl.sum(after_TD * dy_TD, 1))
            g_TD, carry_D = _state_gradients(decay_TD, dy_TD * C_T[:, None], carry_D, T)
            tl.store(dstate + n * channels + column, carry_D, mask=inside)
            tl.store(dB + n * padded + start + t, tl.sum(g_TD * x_TD, 1))
            dx_TD += g_TD * B_T[:, None]
            g_TD *= decay_TD * before_TD
            dstep_TD += g_TD * A_D[None, :]
            tl.store(dA + n * channels + column, dA_D + tl.sum(g_TD * step_TD, 0), mask=inside)
        # Read again what would otherwise have taken registers during the loop.
        u_TD = tl.load(u + t[:, None] * row_u + column[None, :], mask=mask_TD, other=0.0).to(tl.float32)
        out_TD = t[:, None] * channels + column[None, :]
        if HAS_Z:
            z_TD = tl.load(z + t[:, None] * row_z + column[None, :], mask=mask_TD, other=0.0).to(tl.float32)
            dz_TD = tl.load(dy + t[:, None] * row_dy + column[None, :], mask=mask_TD, other=0.0).to(tl.float32)
            gate_TD = _sigmoid(z_TD)
            dz_TD *= y_TD * gate_TD * (1.0 + z_TD * (1.0 - gate_TD))
            tl.store(dz + out_TD, dz_TD.to(dz.dtype.element_ty), mask=mask_TD)
        dstep_TD += dx_TD * u_TD
        if SOFTPLUS:
            raw_TD = tl.load(delta + t[:, None] * row_delta + column[None, :], mask=mask_TD, other=0.0)
            dstep_TD *= _sigmoid(raw_TD.to(tl.float32) + bias_D[None, :])
        dstep_TD = tl.where(mask_TD, dstep_TD, 0.0)
        dD_D += tl.sum(dy_TD * u_TD, 0)
        dbias_D += tl.sum(dstep_TD, 0)
        dx_TD = dx_TD * step_TD + skip_D[None, :] * dy_TD
        tl.store(du + out_TD, dx_TD.to(du.dtype.element_ty), mask=mask_TD)
        tl.store(ddelta + out_TD, dstep_TD.to(ddelta.dtype.element_ty), mask=mask_TD)
        u -= T * row_u
        delta -= T * row_delta
        if HAS_Z:
            z -= T * row_z
        dy -= T * row_dy
        du -= T * channels
        ddelta -= T * channels
        dz -= T * channels
        kept -= N * channels
    if HAS_D:
        tl.store(dD + b * channels + column, dD_D, mask=inside)
    if HAS_BIAS:
        tl.store(dbias + b * channels + column, dbias_D, mask=inside)


class _Inputs(NamedTuple):
    """An operator's inputs, in the layout that the kernels read."""

    u: Tensor
    delta: Tensor
    A_ND: Tensor
    BC_2BNL: Tensor
    D: Tensor | None
    z: Tensor | None
    bias: Tensor | None

    @property
    def shape(self) -> tuple[int, int, int, int, int]:
        """Batch, length, channels, states, chunks."""
        return (*self.u.shape, self.A_ND.shape[0], triton.cdiv(self.u.shape[1], CHUNK))  # type: ignore[return-value]

    @property
    def pointers(self) -> tuple[Tensor | None, ...]:
        return self.u, self.delta, self.A_ND, self.BC_2BNL, self.D, self.z, self.bias

    def strides(self, *more: Tensor) -> tuple[int, ...]:
        """Between time steps, then between sequences, of every (B,L,D) tensor."""
        tensors = (self.u, self.delta, self.u if self.z is None else self.z, *more)
        return *(x.stride(1) for x in tensors), *(x.stride(0) for x in tensors)

    @property
    def grid(self) -> tuple[int, int]:
        return triton.cdiv(self.u.shape[2], CHANNELS), self.u.shape[0]

    def constants(self, softplus: bool) -> dict[str, Any]:
        return {
            "N": self.A_ND.shape[0], "T": CHUNK, "BLOCK_D": CHANNELS, "SOFTPLUS": softplus, "HAS_D": self.D is not None,
            "HAS_Z": self.z is not None, "HAS_BIAS": self.bias is not None, "num_warps": 1,
        }  # fmt: skip


def _rows(x: Tensor) -> Tensor:
    """Channels next to each other."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _prepare(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None, bias: Tensor | None
) -> _Inputs:
    batch, length, states = B.shape
    padded = triton.cdiv(length, CHUNK) * CHUNK
    make = torch.empty if padded == length else torch.zeros
    BC = make((2, batch, states, padded), dtype=torch.float32, device=u.device)
    BC[0, ..., :length].copy_(B.transpose(1, 2))
    BC[1, ..., :length].copy_(C.transpose(1, 2))
    A_ND = A.float().t().contiguous()
    constants = (None if x is None else x.contiguous() for x in (D, bias))
    D, bias = constants
    return _Inputs(_rows(u), _rows(delta), A_ND, BC, D, None if z is None else _rows(z), bias)


@torch.library.custom_op("basedbench::selective_scan", mutates_args=())
def forward_operator(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None, bias: Tensor | None,
    initial: Tensor | None, softplus: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """y (B,L,D), and the last state (B,N,D) in float32."""
    inputs = _prepare(u, delta, A, B, C, D, z, bias)
    y, state = outputs(u, delta, A, B, C, D, z, bias, initial, softplus)
    if initial is not None:
        state.copy_(initial.transpose(1, 2))
    _, length, channels, _, chunks = inputs.shape
    _forward[inputs.grid](
        *inputs.pointers, y, state, state, length, chunks, channels, 1, *inputs.strides(),
        HAS_STATE=initial is not None, KEEP=False, OUTPUT=True, **inputs.constants(softplus),
    )  # fmt: skip
    return y, state


@forward_operator.register_fake
def outputs(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None, bias: Tensor | None,
    initial: Tensor | None, softplus: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The outputs, not yet written."""
    batch, _, channels = u.shape
    return u.new_empty(u.shape), u.new_empty((batch, A.shape[1], channels), dtype=torch.float32)


def _states_between_chunks(inputs: _Inputs, initial: Tensor | None, softplus: bool) -> Tensor:
    """The states before every chunk, (B,chunks,N,D)."""
    batch, length, channels, states, chunks = inputs.shape
    kept = inputs.A_ND.new_empty(batch, chunks, states, channels)
    state = kept.new_empty(batch, states, channels)
    if initial is not None:
        state.copy_(initial.transpose(1, 2))
    _forward[inputs.grid](
        *inputs.pointers, state, state, kept, length, chunks, channels, 1, *inputs.strides(),
        HAS_STATE=initial is not None, KEEP=True, OUTPUT=False, **inputs.constants(softplus),
    )  # fmt: skip
    return kept


@torch.library.custom_op("basedbench::selective_scan_backward", mutates_args=())
def backward_operator(
    dy: Tensor, dlast: Tensor | None, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None,
    z: Tensor | None, bias: Tensor | None, initial: Tensor | None, softplus: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of u, delta, A, B, C, D, z, bias and the initial state; an empty tensor where there is no input."""
    inputs = _prepare(u, delta, A, B, C, D, z, bias)
    batch, length, channels, states, chunks = inputs.shape
    dy, kept = _rows(dy), _states_between_chunks(inputs, initial, softplus)
    du, ddelta, _, _, _, _, dz, _, _ = gradients(dy, dlast, u, delta, A, B, C, D, z, bias, initial, softplus)
    dstate = kept.new_zeros(batch, states, channels) if dlast is None else dlast.contiguous().clone()
    dA = torch.zeros_like(dstate)
    dBC = kept.new_empty(2, inputs.grid[0], batch, states, chunks * CHUNK)
    dconstants = kept.new_empty(2, batch, channels)
    _backward[inputs.grid](
        *inputs.pointers, kept, dy, du, ddelta, dz, dA, dBC, dconstants[0], dconstants[1], dstate, length, chunks,
        channels, 1, *inputs.strides(dy), **inputs.constants(softplus),
    )  # fmt: skip
    dB, dC = dBC[..., :length].sum(1).transpose(2, 3).unbind()
    dD, dbias = dconstants.sum(1).unbind()
    dinitial = dstate.transpose(1, 2)
    return (
        du, ddelta, dA.sum(0).t().to(A.dtype, copy=True).contiguous(), _as(dB, B), _as(dC, C), _as(dD, D), dz,
        _as(dbias, bias), _as(dinitial, initial),
    )  # fmt: skip


def _as(gradient: Tensor, x: Tensor | None) -> Tensor:
    """A new tensor in the dtype of x, or an empty one."""
    return gradient.new_empty(0) if x is None else torch.empty(x.shape, dtype=x.dtype, device=x.device).copy_(gradient)


@backward_operator.register_fake
def gradients(
    dy: Tensor, dlast: Tensor | None, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None,
    z: Tensor | None, bias: Tensor | None, initial: Tensor | None, softplus: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """The gradients, not yet written."""
    return tuple(  # type: ignore[return-value]
        u.new_empty(0) if x is None else x.new_empty(x.shape) for x in (u, delta, A, B, C, D, z, bias, initial)
    )


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.softplus = inputs
    ctx.save_for_backward(*tensors)
    ctx.set_materialize_grads(False)


def _gradients(ctx: Any, dy: Tensor | None, dlast: Tensor | None) -> tuple[Tensor | None, ...]:
    tensors = ctx.saved_tensors
    if dy is None:
        dy = torch.zeros_like(tensors[0])
    found = backward_operator(dy, dlast, *tensors, ctx.softplus)
    return *(None if x is None else gradient for x, gradient in zip(tensors, found, strict=True)), None


forward_operator.register_autograd(_gradients, setup_context=_keep)


def supported(u: Tensor, *others: Tensor | None) -> bool:
    """Whether the kernels take these inputs."""
    known = (torch.float32, torch.float16, torch.bfloat16)
    return u.numel() > 0 and all(x is None or x.dtype in known for x in (u, *others))


def selective_scan(
    u_BLD: Tensor, delta_BLD: Tensor, A_DN: Tensor, B_BLN: Tensor, C_BLN: Tensor, *, D_D: Tensor | None = None,
    z_BLD: Tensor | None = None, delta_bias_D: Tensor | None = None, delta_softplus: bool = False,
    initial_state: Tensor | None = None, return_state: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:  # fmt: skip
    """`selective_scan.reference` by the kernels above."""
    y, state_BND = forward_operator(
        u_BLD, delta_BLD, A_DN, B_BLN, C_BLN, D_D, z_BLD, delta_bias_D, initial_state, delta_softplus
    )
    return (y, state_BND.transpose(1, 2).contiguous()) if return_state else y
