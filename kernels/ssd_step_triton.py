"""The decode step of ssd: one pass over the state, read and written once, in place.

Memory bound: 8 P N bytes per head in float32. A program takes some channels of one head with all of their states, for y
needs a sum over those. Every thread owns the entries it reads, so that nobody reads what another one has already
written; tiles have at least 16 entries a thread. In place, hence never autotuned.
"""

# mypy: allow-untyped-defs

import torch
import triton
import triton.language as tl
from torch import Tensor

from .dense_rows import dense_rows
from .dependents import dependent
from .dependents_triton import follow
from .differentiated import differentiated
from .exponentials_triton import LOG2E, sigmoid
from .rounding import STATE_DTYPES
from .rounding_triton import counted, stored
from .ssd_tiles_triton import load_scalar, softplus

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@triton.jit(do_not_specialize=["heads", "per_group"])
def step_kernel(
    x_pointer, dt_pointer, A_pointer, B_pointer, C_pointer, D_pointer, z_pointer, bias_pointer, state_pointer,
    count, y_pointer,
    x_batch, x_head, dt_batch, dt_head, B_batch, B_group, C_batch, C_group, z_batch, z_head, heads, per_group,
    P: tl.constexpr, N: tl.constexpr, PB: tl.constexpr, BN: tl.constexpr,
    HAS_D: tl.constexpr, HAS_Z: tl.constexpr, HAS_BIAS: tl.constexpr, SOFTPLUS: tl.constexpr, LOG_A: tl.constexpr,
    HAS_COUNT: tl.constexpr, EARLY: tl.constexpr = False,
):  # fmt: skip
    BLOCKS: tl.constexpr = (P + PB - 1) // PB
    program = tl.program_id(0)
    sequence = program // BLOCKS
    batch, head = (sequence // heads).to(tl.int64), sequence % heads
    group = head // per_group
    channels, states = program % BLOCKS * PB + tl.arange(0, PB), tl.arange(0, BN)
    place = channels[:, None] * N + states[None, :]
    inside = (channels < P)[:, None] & (states < N)[None, :]
    state_pointer += sequence.to(tl.int64) * (P * N)
    state = tl.load(state_pointer + place, mask=inside, other=0.0).to(tl.float32)
    follow(EARLY)
    x = tl.load(x_pointer + batch * x_batch + head * x_head + channels, mask=channels < P, other=0.0).to(tl.float32)
    B = tl.load(B_pointer + batch * B_batch + group * B_group + states, mask=states < N, other=0.0).to(tl.float32)
    C = tl.load(C_pointer + batch * C_batch + group * C_group + states, mask=states < N, other=0.0).to(tl.float32)
    dt = tl.load(dt_pointer + batch * dt_batch + head * dt_head).to(tl.float32)
    dt += load_scalar(bias_pointer, head, HAS_BIAS)
    if SOFTPLUS:
        dt = softplus(dt)
    A = tl.load(A_pointer + head).to(tl.float32)
    if LOG_A:  # log(-A) is given
        A = -tl.exp(A)
    decay = tl.exp2(dt * A * LOG2E)
    state = state * decay + (x * dt)[:, None] * B[None, :]
    row = head * P + channels
    kept = stored(state, row, 0, counted(count, batch, HAS_COUNT), N, state_pointer.dtype.element_ty)
    tl.store(state_pointer + place, kept, mask=inside)
    y = tl.sum(state * C[None, :], 1) + x * load_scalar(D_pointer, head, HAS_D)
    if HAS_Z:
        z = tl.load(z_pointer + batch * z_batch + head * z_head + channels, mask=channels < P, other=0.0)
        y *= z.to(tl.float32) * sigmoid(z.to(tl.float32))
    place = sequence.to(tl.int64) * P + channels
    tl.store(y_pointer + place, y.to(y_pointer.dtype.element_ty), mask=channels < P)


def _shape(width: int, states: int) -> dict[str, int]:
    """Channels of a program: 2048 entries if there are as many, and 16 a thread."""
    block = max(2, triton.next_power_of_2(states))
    channels = min(triton.next_power_of_2(width), max(1, 2048 // block))
    return {"PB": channels, "BN": block, "num_warps": min(4, max(1, channels * block // 512))}


@torch.library.custom_op("basedbench::ssd_step", mutates_args=("state",))
def step(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    state: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    softplus: bool,
    log_A: bool = False,
    count: Tensor | None = None,
) -> Tensor:
    """y (B,H,P) in the dtype of x; `state` (B,H,P,N), contiguous, takes the token in."""
    x, B, C = (dense_rows(part) for part in (x, B, C))
    z = dense_rows(z)
    A, D, dt_bias = (
        A.contiguous(),
        D if D is None else D.contiguous(),
        dt_bias if dt_bias is None else dt_bias.contiguous(),
    )
    batch, heads, width = x.shape
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    shape = _shape(width, B.shape[-1])
    gate = x if z is None else z
    step_kernel[(batch * heads * triton.cdiv(width, shape["PB"]),)](
        x, dt, A, B, C, A if D is None else D, gate, A if dt_bias is None else dt_bias, state, count, y,
        *x.stride()[:2], *dt.stride(), *B.stride()[:2], *C.stride()[:2], *gate.stride()[:2], heads,
        heads // B.shape[1], P=width, N=B.shape[-1], HAS_D=D is not None, HAS_Z=z is not None,
        HAS_BIAS=dt_bias is not None, SOFTPLUS=softplus, LOG_A=log_A, HAS_COUNT=count is not None,
        **shape, **dependent(),
    )  # fmt: skip
    return y


@step.register_fake
def _(x, dt, A, B, C, state, D, z, dt_bias, softplus, log_A=False, count=None):
    return x.new_empty(x.shape)


def unsupported(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, state: Tensor, *more: Tensor | None
) -> str | None:
    """Why the kernel does not take these inputs (`more`: D, z, the bias of dt), or None if it does."""
    given = [tensor for tensor in (x, dt, A, B, C, *more) if tensor is not None]
    if state.dtype not in STATE_DTYPES or not state.is_contiguous():
        return "the state must be float32 or bfloat16, and contiguous"
    if any(tensor.dtype not in DTYPES for tensor in given):
        return "inputs must be float32, float16 or bfloat16"
    if x.shape[-1] > 256 or B.shape[-1] > 1024 or x.numel() == 0 or B.numel() == 0:
        return "head width must be at most 256, states at most 1024"
    if x.shape[1] % B.shape[1]:
        return "groups must divide the heads"
    if differentiated(*given, state):
        return "a step has no gradient"
    return None
