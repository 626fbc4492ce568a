"""SSD, the recurrence of Mamba-2: a scalar decay per head, so that a chunk is a few matrix products.

    h_t = exp(dt_t A) h_t-1 + dt_t x_t B_t^T        y_t = h_t C_t + D x_t, times silu(z_t)

per head with a state h (P,N); A (H,) negative; B and C (B,L,G,N) shared by the H / G heads of a group. Source: Mamba-2,
arXiv 2405.21060, section 6 and listing 1.

Inside a chunk y = (C B^T * decay) (dt x) with decay_ij = exp(sum_j<m<=i dt_m A); between chunks the state is carried.
float32 (float64 for float64 inputs).

On CUDA the Triton kernels compute what `ssd_triton.unsupported` has no reason against; the reference takes the rest:
float64, heads wider than 128 and more than 256 states.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .costs import total_bytes, total_flops
from .precision import accumulation_dtype, negative_exp, without_autocast
from .rounding import accumulated, store
from .shapes import checked_shapes

# The most of a head, for which single warps walk over sequences (`ssd_walk`); packed examples have no other kernels.
WALKED_STATES, WALKED_CHANNELS = 32, 64


def _decays(total: Tensor) -> Tensor:
    """Sums of a up to each token (..., T) -> (..., T, T): entry ij = exp(sum of a over j < m <= i), 0 for j > i."""
    sums = total.unsqueeze(-1) - total.unsqueeze(-2)
    future = torch.full(sums.shape[-2:], float("-inf"), dtype=sums.dtype, device=sums.device).triu(1)
    return sums.add_(future).exp_()  # hidden before exp: later ones could overflow, and inf * 0 spoils gradients


def _chunk(
    x: Tensor, a: Tensor, B: Tensor, C: Tensor, state: Tensor | None, *, need_state: bool
) -> tuple[Tensor, Tensor | None]:
    """One chunk of dt x (B,G,J,T,P), dt A (B,G,J,T), B, C (B,G,1,T,N), with J = H / G heads a group.

    Returns the outputs (B,G,J,T,P) and the state (B,G,J,P,N) after the chunk.
    """
    total = a.cumsum(-1)
    y = (C @ B.transpose(-1, -2) * _decays(total)) @ x
    if state is not None:
        y = y + total.exp().unsqueeze(-1) * (C @ state.transpose(-1, -2))
    if not need_state:
        return y, None
    left = (total[..., -1:] - total).exp()
    update = (x * left.unsqueeze(-1)).transpose(-1, -2) @ B
    return y, update if state is None else total[..., -1, None, None].exp() * state + update


def _scan(
    x_BLHP: Tensor, a_BLH: Tensor, B_BLGN: Tensor, C_BLGN: Tensor, state: Tensor | None, return_state: bool, chunk: int
) -> tuple[Tensor, Tensor | None]:
    """The loop over chunks. Returns y (B,L,H,P) and, if asked for, the last state (B,H,P,N)."""
    groups = B_BLGN.shape[2]
    x, a = (tensor.transpose(1, 2).unflatten(1, (groups, -1)) for tensor in (x_BLHP, a_BLH))
    B, C = (tensor.transpose(1, 2).unsqueeze(2) for tensor in (B_BLGN, C_BLGN))
    state = None if state is None else state.unflatten(1, (groups, -1))
    # Split at once: the gradient of a slice is as long as the sequence, and there would be one for every chunk.
    parts = [tensor.split(chunk, dim=3) for tensor in (x, a, B, C)]
    outputs: list[Tensor] = []
    for x_c, a_c, B_c, C_c in zip(*parts, strict=True):
        need_state = return_state or len(outputs) + 1 < len(parts[0])
        y, state = _chunk(x_c, a_c, B_c, C_c, state, need_state=need_state)
        outputs.append(y)
    y = outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=3)
    return y.flatten(1, 2).transpose(1, 2), None if state is None else state.flatten(1, 2)


def _step_sizes(dt: Tensor, bias_H: Tensor | None, softplus: bool, dtype: torch.dtype) -> Tensor:
    dt = dt.to(dtype)
    dt = dt if bias_H is None else dt + bias_H.to(dtype)
    return F.softplus(dt) if softplus else dt


def _output(y: Tensor, x: Tensor, D_H: Tensor | None, z: Tensor | None) -> Tensor:
    y = y if D_H is None else y + x * D_H.to(y.dtype).unsqueeze(-1)
    return y if z is None else y * F.silu(z.to(y.dtype))


@without_autocast
def reference(
    x_BLHP: Tensor,
    dt_BLH: Tensor,
    A_H: Tensor,
    B_BLGN: Tensor,
    C_BLGN: Tensor,
    *,
    D_H: Tensor | None = None,
    z_BLHP: Tensor | None = None,
    dt_bias_H: Tensor | None = None,
    dt_softplus: bool = False,
    initial_state: Tensor | None = None,
    return_state: bool = False,
    chunk: int = 64,
) -> Tensor | tuple[Tensor, Tensor]:
    """`ssd` in PyTorch: differentiable, any device."""
    if x_BLHP.shape[2] % B_BLGN.shape[2]:
        raise ValueError(f"{B_BLGN.shape[2]} groups do not divide {x_BLHP.shape[2]} heads")
    dtype = accumulation_dtype(x_BLHP.dtype)
    x, B, C = x_BLHP.to(dtype), B_BLGN.to(dtype), C_BLGN.to(dtype)
    dt = _step_sizes(dt_BLH, dt_bias_H, dt_softplus, dtype)
    state = None if initial_state is None else initial_state.to(dtype)
    y, state = _scan(x * dt.unsqueeze(-1), dt * A_H.to(dtype), B, C, state, return_state, chunk)
    y = _output(y, x, D_H, z_BLHP).to(x_BLHP.dtype)
    return (y, state) if return_state and state is not None else y


@checked_shapes(initial_state="BHPN")
def ssd(
    x_BLHP: Tensor,
    dt_BLH: Tensor,
    A_H: Tensor,
    B_BLGN: Tensor,
    C_BLGN: Tensor,
    *,
    D_H: Tensor | None = None,
    z_BLHP: Tensor | None = None,
    dt_bias_H: Tensor | None = None,
    dt_softplus: bool = False,
    initial_state: Tensor | None = None,
    return_state: bool = False,
    chunk: int = 64,
) -> Tensor | tuple[Tensor, Tensor]:
    """Mamba-2's scan: x, z (B,L,H,P), dt (B,L,H), A (H,), B, C (B,L,G,N) -> y (B,L,H,P), and the state (B,H,P,N).

    The step size is dt + dt_bias, through softplus if `dt_softplus`. `initial_state` continues a sequence.
    `chunk` is the reference's; the kernels choose for themselves.
    Raises ValueError if the groups do not divide the heads.
    """
    tensors = x_BLHP, dt_BLH, A_H, B_BLGN, C_BLGN
    options: dict[str, Any] = {
        "D_H": D_H,
        "z_BLHP": z_BLHP,
        "dt_bias_H": dt_bias_H,
        "dt_softplus": dt_softplus,
        "initial_state": initial_state,
        "return_state": return_state,
    }
    if x_BLHP.is_cuda:
        from . import ssd_triton as kernels

        if kernels.unsupported(*tensors, D_H, dt_bias_H, initial_state, z=z_BLHP) is None:
            return kernels.ssd(*tensors, **options)
    return reference(*tensors, **options, chunk=chunk)


@checked_shapes({"G divides H": lambda G, H: G > 0 and H % G == 0})
def ssd_step(
    x_BHP: Tensor,
    dt_BH: Tensor,
    A_H: Tensor,
    B_BGN: Tensor,
    C_BGN: Tensor,
    state_BHPN: Tensor,
    *,
    D_H: Tensor | None = None,
    z_BHP: Tensor | None = None,
    dt_bias_H: Tensor | None = None,
    dt_softplus: bool = False,
    log_A: bool = False,
    count_B: Tensor | None = None,
) -> Tensor:
    """One decode step. Updates `state_BHPN` in place, of 32 bits or bfloat16 (`rounding`); y (B,H,P) in the dtype of x.

    With `log_A`, `A_H` holds log(-A), as models keep it: its exponential costs no launch of its own.
    `count_B` (B,) int32, the tokens before this one, makes a state in bfloat16 be rounded another way each time.
    """
    tensors = x_BHP, dt_BH, A_H, B_BGN, C_BGN, state_BHPN
    if state_BHPN.is_cuda:
        from . import ssd_step_triton as kernels

        if kernels.unsupported(*tensors, D_H, z_BHP, dt_bias_H) is None:
            return kernels.step(*tensors, D_H, z_BHP, dt_bias_H, dt_softplus, log_A, count_B)
    return step_reference(
        *tensors,
        D_H=D_H,
        z_BHP=z_BHP,
        dt_bias_H=dt_bias_H,
        dt_softplus=dt_softplus,
        log_A=log_A,
        count_B=count_B,
    )


@without_autocast
def step_reference(
    x_BHP: Tensor,
    dt_BH: Tensor,
    A_H: Tensor,
    B_BGN: Tensor,
    C_BGN: Tensor,
    state_BHPN: Tensor,
    *,
    D_H: Tensor | None = None,
    z_BHP: Tensor | None = None,
    dt_bias_H: Tensor | None = None,
    dt_softplus: bool = False,
    log_A: bool = False,
    count_B: Tensor | None = None,
) -> Tensor:
    """`ssd_step` in PyTorch."""
    h_BHPN = accumulated(state_BHPN)
    dtype = h_BHPN.dtype
    A_H = negative_exp(A_H) if log_A else A_H
    x = x_BHP.to(dtype)
    dt = _step_sizes(dt_BH, dt_bias_H, dt_softplus, dtype)
    repeats = x.shape[1] // B_BGN.shape[1]
    B_BHN, C_BHN = (tensor.to(dtype).repeat_interleave(repeats, dim=1) for tensor in (B_BGN, C_BGN))
    h_BHPN *= (dt * A_H.to(dtype)).exp()[..., None, None]
    h_BHPN += (x * dt.unsqueeze(-1)).unsqueeze(-1) * B_BHN.unsqueeze(2)
    store(state_BHPN, h_BHPN, count_B)
    y = (h_BHPN @ C_BHN.unsqueeze(-1)).squeeze(-1)
    return _output(y, x, D_H, z_BHP).to(x_BHP.dtype)


def flops(
    *,
    batch: int,
    length: int,
    heads: int,
    head_dim: int,
    states: int,
    groups: int = 1,
    state: bool = False,
    backward: bool = False,
) -> int:
    """Per token-head the lesser of 4 P N (state updated, state read) and (L + 1) (N G / H + P) (quadratic)."""
    through_state = batch * length * heads * 4 * head_dim * states
    quadratic = batch * length * (length + 1) * (states * groups + head_dim * heads)
    return total_flops(through_state if state else min(through_state, quadratic), backward=backward)


def bytes_moved(
    *,
    batch: int,
    length: int,
    heads: int,
    head_dim: int,
    states: int,
    groups: int = 1,
    gate: bool = True,
    element_bytes: int = 2,
    state: bool = False,
    backward: bool = False,
) -> int:
    """x, dt, B, C (and z) in, A, D and dt's bias in float32, y out; with `state` P N in and out per head."""
    tokens, width = batch * length, heads * head_dim
    inputs = tokens * ((2 if gate else 1) * width + heads + 2 * groups * states)
    return total_bytes(
        inputs,
        tokens * width,
        wide=3 * heads,
        state=batch * width * states if state else 0,
        element_bytes=element_bytes,
        backward=backward,
    )
