"""SSD, the recurrence of Mamba-2: a scalar decay per head, so that a chunk is a few matrix products.

    h_t = exp(dt_t A) h_t-1 + dt_t x_t B_t^T        y_t = h_t C_t + D x_t, times silu(z_t)

per head with a state h (P,N); A (H,) negative; B and C (B,L,G,N) shared by the H / G heads of a group. Source: Mamba-2,
arXiv 2405.21060, section 6 and listing 1.

Inside a chunk y = (C B^T * decay) (dt x) with decay_ij = exp(sum_j<m<=i dt_m A); between chunks the state is carried.
float32 (float64 for float64 inputs).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .chunked import accumulation_dtype


def _segment_sums(a: Tensor) -> Tensor:
    """(..., T) -> (..., T, T): entry ij = sum of a over j < m <= i, -inf above the diagonal."""
    total = a.cumsum(-1)
    sums = total.unsqueeze(-1) - total.unsqueeze(-2)
    future = torch.ones(sums.shape[-2:], dtype=torch.bool, device=a.device).triu(1)
    return sums.masked_fill(future, float("-inf"))


def _chunk(
    x_BHTP: Tensor, a_BHT: Tensor, B_BGTN: Tensor, C_BGTN: Tensor, state_BHPN: Tensor | None, need_state: bool
) -> tuple[Tensor, Tensor | None]:
    """One chunk of x = dt x and a = dt A: outputs (B,H,T,P) and the state after it. Heads are split as (G, H / G)."""
    groups = B_BGTN.shape[1]
    x, a = (tensor.unflatten(1, (groups, -1)) for tensor in (x_BHTP, a_BHT))
    B, C = B_BGTN.unsqueeze(2), C_BGTN.unsqueeze(2)
    y = (C @ B.transpose(-1, -2) * _segment_sums(a).exp()) @ x
    total = a.cumsum(-1)
    state = None if state_BHPN is None else state_BHPN.unflatten(1, (groups, -1))
    if state is not None:
        y = y + total.exp().unsqueeze(-1) * (C @ state.transpose(-1, -2))
    if not need_state:
        return y.flatten(1, 2), None
    left = (total[..., -1:] - total).exp()
    update = (x * left.unsqueeze(-1)).transpose(-1, -2) @ B
    state = update if state is None else total[..., -1, None, None].exp() * state + update
    return y.flatten(1, 2), state.flatten(1, 2)


def _step_sizes(dt: Tensor, bias_H: Tensor | None, softplus: bool, dtype: torch.dtype) -> Tensor:
    dt = dt.to(dtype)
    dt = dt if bias_H is None else dt + bias_H.to(dtype)
    return F.softplus(dt) if softplus else dt


def _output(y: Tensor, x: Tensor, D_H: Tensor | None, z: Tensor | None) -> Tensor:
    y = y if D_H is None else y + x * D_H.to(y.dtype).unsqueeze(-1)
    return y if z is None else y * F.silu(z.to(y.dtype))


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
    dtype, length = accumulation_dtype(x_BLHP.dtype), x_BLHP.shape[1]
    x = x_BLHP.to(dtype)
    dt = _step_sizes(dt_BLH, dt_bias_H, dt_softplus, dtype)
    dtx, a = (x * dt.unsqueeze(-1)).transpose(1, 2), (dt * A_H.to(dtype)).transpose(1, 2)
    B, C = (tensor.to(dtype).transpose(1, 2) for tensor in (B_BLGN, C_BLGN))
    state = None if initial_state is None else initial_state.to(dtype)
    outputs = []
    for start in range(0, length, chunk):
        part = slice(start, start + chunk)
        need_state = return_state or start + chunk < length
        y, state = _chunk(dtx[:, :, part], a[:, :, part], B[:, :, part], C[:, :, part], state, need_state)
        outputs.append(y)
    y = outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=2)
    y = _output(y.transpose(1, 2), x, D_H, z_BLHP).to(x_BLHP.dtype)
    return (y, state) if return_state else y


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
    """Mamba-2's scan: x, z (B,L,H,P), dt (B,L,H), A (H,), B, C (B,L,G,N) -> y (B,L,H,P), last state (B,H,P,N) on request.

    The step size is dt + dt_bias, through softplus if `dt_softplus`. `initial_state` continues a sequence.
    Raises ValueError if the groups do not divide the heads.
    """
    return reference(
        x_BLHP,
        dt_BLH,
        A_H,
        B_BLGN,
        C_BLGN,
        D_H=D_H,
        z_BLHP=z_BLHP,
        dt_bias_H=dt_bias_H,
        dt_softplus=dt_softplus,
        initial_state=initial_state,
        return_state=return_state,
        chunk=chunk,
    )


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
) -> Tensor:
    """One decode step. Updates `state_BHPN` in place; returns y (B,H,P) in the dtype of x."""
    dtype = state_BHPN.dtype
    x = x_BHP.to(dtype)
    dt = _step_sizes(dt_BH, dt_bias_H, dt_softplus, dtype)
    repeats = x.shape[1] // B_BGN.shape[1]
    B_BHN, C_BHN = (tensor.to(dtype).repeat_interleave(repeats, dim=1) for tensor in (B_BGN, C_BGN))
    state_BHPN *= (dt * A_H.to(dtype)).exp()[..., None, None]
    state_BHPN += (x * dt.unsqueeze(-1)).unsqueeze(-1) * B_BHN.unsqueeze(2)
    y = (state_BHPN @ C_BHN.unsqueeze(-1)).squeeze(-1)
    return _output(y, x, D_H, z_BHP).to(x_BHP.dtype)
