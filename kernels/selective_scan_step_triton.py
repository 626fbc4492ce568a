"""One decode step of the selective scan: the state passes through registers once, all else happens on the way."""

# mypy: allow-untyped-defs

import torch
import triton
import triton.language as tl
from torch import Tensor

from .dense_rows import dense_rows
from .dependents import dependent
from .dependents_triton import follow
from .differentiated import differentiated
from .rounding import STATE_DTYPES
from .rounding_triton import counted, stored
from .selective_scan_tiles_triton import LOG2E, load_constant, sigmoid, softplus

ELEMENTS = 2048  # of the state in a program: 16 per thread
WARPS = 4


@triton.jit
def step_kernel(
    u, delta, A, B, C, D_skip, z, bias, state, count, y, channels, row_u, row_delta, row_z, row_B, row_C,
    N: tl.constexpr, STATES: tl.constexpr, BLOCK_D: tl.constexpr, SOFTPLUS: tl.constexpr, HAS_D: tl.constexpr,
    HAS_Z: tl.constexpr, HAS_BIAS: tl.constexpr, LOG_A: tl.constexpr, HAS_COUNT: tl.constexpr,
    EARLY: tl.constexpr = False,
):  # fmt: skip
    """State (B,D,N) in place; LOG_A: A holds log(-A).

    A tile has at least as many elements as threads, so that each element has one owner.
    """
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    n = tl.arange(0, STATES)
    b = tl.program_id(0).to(tl.int64)
    inside = d < channels
    inside_DN = inside[:, None] & (n < N)[None, :]
    place_DN = d[:, None] * N + n[None, :]
    state += b * channels * N
    state_DN = tl.load(state + place_DN, mask=inside_DN, other=0.0).to(tl.float32)
    A_DN = tl.load(A + place_DN, mask=inside_DN, other=0.0).to(tl.float32)
    if LOG_A:
        A_DN = -tl.exp(A_DN)
    A_DN *= LOG2E
    follow(EARLY)
    B_N = tl.load(B + b * row_B + n, mask=n < N, other=0.0).to(tl.float32)
    C_N = tl.load(C + b * row_C + n, mask=n < N, other=0.0).to(tl.float32)
    u_D = tl.load(u + b * row_u + d, mask=inside, other=0.0).to(tl.float32)
    step_D = tl.load(delta + b * row_delta + d, mask=inside, other=0.0).to(tl.float32)
    step_D += load_constant(bias, d, inside, HAS_BIAS)
    if SOFTPLUS:
        step_D = softplus(step_D)
    state_DN = tl.exp2(step_D[:, None] * A_DN) * state_DN + (step_D * u_D)[:, None] * B_N[None, :]
    kept_DN = stored(state_DN, d, 0, counted(count, b, HAS_COUNT), N, state.dtype.element_ty)
    tl.store(state + place_DN, kept_DN, mask=inside_DN)
    y_D = tl.sum(state_DN * C_N[None, :], 1) + load_constant(D_skip, d, inside, HAS_D) * u_D
    if HAS_Z:
        z_D = tl.load(z + b * row_z + d, mask=inside, other=0.0).to(tl.float32)
        y_D *= z_D * sigmoid(z_D)
    tl.store(y + b * channels + d, y_D.to(y.dtype.element_ty), mask=inside)


@torch.library.custom_op("basedbench::selective_scan_step", mutates_args=("state",))
def step(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, state: Tensor, D: Tensor | None, z: Tensor | None,
    bias: Tensor | None, softplus: bool, log_A: bool = False, count: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """y (B,D) in the dtype of u; `state` (B,D,N), contiguous, takes the token in."""
    gated = z is not None
    u, delta, B, C, z = (dense_rows(x) for x in (u, delta, B, C, u if z is None else z))
    D, bias = (None if x is None else x.contiguous() for x in (D, bias))
    batch, channels, states = state.shape
    padded = max(2, triton.next_power_of_2(states))
    block = max(1, ELEMENTS // padded)
    y = u.new_empty(u.shape)
    step_kernel[(batch, triton.cdiv(channels, block))](
        u, delta, A.contiguous(), B, C, D, z, bias, state, count, y, channels,
        *(x.stride(0) for x in (u, delta, z, B, C)),
        N=states, STATES=padded, BLOCK_D=block, SOFTPLUS=softplus, HAS_D=D is not None, HAS_Z=gated,
        HAS_BIAS=bias is not None, LOG_A=log_A, HAS_COUNT=count is not None, num_warps=WARPS, **dependent(),
    )  # fmt: skip
    return y


@step.register_fake
def _(u, delta, A, B, C, state, D, z, bias, softplus, log_A=False, count=None):
    return u.new_empty(u.shape)


def supported(
    u_BD: Tensor, delta_BD: Tensor, A_DN: Tensor, B_BN: Tensor, C_BN: Tensor, state_BDN: Tensor, *others: Tensor | None
) -> bool:
    """Whether the kernel takes these inputs: it has no gradient and writes into the state where it lies."""
    given = [x for x in (u_BD, delta_BD, A_DN, B_BN, C_BN, state_BDN, *others) if x is not None]
    if differentiated(*given):
        return False
    known = (torch.float32, torch.float16, torch.bfloat16)
    return (
        state_BDN.dtype in STATE_DTYPES
        and state_BDN.is_contiguous()
        and state_BDN.numel() > 0
        and state_BDN.shape[2] <= ELEMENTS // 4
        and all(x.dtype in known for x in given)
    )
