"""Selective scan, the recurrence of Mamba.

    h_t = exp(delta_t A) h_t-1 + delta_t B_t u_t        y_t = C_t h_t + D u_t, times silu(z_t)

per channel d with N states: A (D,N) negative, B and C (B,L,N) shared by the channels. Source: Mamba, arXiv 2312.00752,
equations 2 to 4 and algorithm 2 (zero-order hold for A, Euler for B, as its code does).

The reference walks the sequence in blocks of time steps: inside a block everything but h = a h + b is done for all steps at
once. Only the states between blocks are stored; the backward recomputes a block, then walks it in reverse. States are kept
as (N,D), channels innermost, so that every operation runs over long contiguous rows. float32 (float64 for float64 inputs).
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from .chunked import accumulation_dtype

# Elements of one block's (T,B,N,D) tensors. On a CPU they should stay in the cache; on a GPU launches are what costs.
BLOCK_ELEMENTS = {"cpu": 2**18, "cuda": 2**25}


def _block_length(x_BLD: Tensor, states: int) -> int:
    per_step = x_BLD.shape[0] * x_BLD.shape[2] * states
    return max(1, min(x_BLD.shape[1], BLOCK_ELEMENTS.get(x_BLD.device.type, 2**25) // per_step))


def _decay(delta_TBD: Tensor, A_ND: Tensor) -> Tensor:
    return (delta_TBD.unsqueeze(2) * A_ND).exp_()


def _states(decay_TBND: Tensor, x_TBD: Tensor, B_TBN: Tensor, h_BND: Tensor) -> Tensor:
    """All states of a block (T,B,N,D), from the state before it."""
    h_TBND = B_TBN.unsqueeze(-1) * x_TBD.unsqueeze(2)
    for a, h in zip(decay_TBND, h_TBND, strict=True):
        h.addcmul_(a, h_BND)
        h_BND = h
    return h_TBND


class _Scan(torch.autograd.Function):
    """(x = delta u, delta, A, B, C, h_0) -> (y = C h, h_L), time first: x, delta (L,B,D), A (N,D), B, C (L,B,N), h (B,N,D)."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, h: Tensor, block: int
    ) -> tuple[Tensor, Tensor]:
        y, starts = torch.empty_like(x), []
        for t in range(0, x.shape[0], block):
            part = slice(t, t + block)
            starts.append(h)
            states = _states(_decay(delta[part], A), x[part], B[part], h)
            torch.matmul(C[part].unsqueeze(-2), states, out=y[part].unsqueeze(-2))
            h = states[-1].clone()
        ctx.save_for_backward(x, delta, A, B, C, *starts)
        ctx.block = block
        return y, h

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor, grad_h: Tensor) -> tuple[Tensor | None, ...]:
        x, delta, A, B, C, *starts = ctx.saved_tensors
        dx, ddelta, dA, dB, dC = (torch.zeros_like(tensor) for tensor in (x, delta, A, B, C))
        carry = grad_h
        for index in reversed(range(len(starts))):
            part = slice(index * ctx.block, (index + 1) * ctx.block)
            decay = _decay(delta[part], A)
            states = _states(decay, x[part], B[part], starts[index])
            dC[part] = (states @ grad_y[part].unsqueeze(-1)).squeeze(-1)
            g = C[part].unsqueeze(-1) * grad_y[part].unsqueeze(2)  # becomes dloss/dh_t
            g[-1] += carry
            for t in range(g.shape[0] - 1, 0, -1):
                g[t - 1].addcmul_(decay[t], g[t])
            dB[part] = (g @ x[part].unsqueeze(-1)).squeeze(-1)
            dx[part] = (B[part].unsqueeze(-2) @ g).squeeze(-2)
            carried = g.mul_(decay)  # dloss/dh_t decay_t
            carry = carried[0].clone()
            carried[1:] *= states[:-1]
            carried[0] *= starts[index]  # now dloss/d(delta_t A)
            ddelta[part] = (carried * A).sum(2)
            dA += (carried * delta[part].unsqueeze(2)).sum((0, 1))
        return dx, ddelta, dA, dB, dC, carry, None


def _step_sizes(delta: Tensor, bias_D: Tensor | None, softplus: bool, dtype: torch.dtype) -> Tensor:
    delta = delta.to(dtype)
    delta = delta if bias_D is None else delta + bias_D.to(dtype)
    return F.softplus(delta) if softplus else delta


def _output(y: Tensor, u: Tensor, D_D: Tensor | None, z: Tensor | None) -> Tensor:
    y = y if D_D is None else y + u * D_D.to(y.dtype)
    return y if z is None else y * F.silu(z.to(y.dtype))


def reference(
    u_BLD: Tensor,
    delta_BLD: Tensor,
    A_DN: Tensor,
    B_BLN: Tensor,
    C_BLN: Tensor,
    *,
    D_D: Tensor | None = None,
    z_BLD: Tensor | None = None,
    delta_bias_D: Tensor | None = None,
    delta_softplus: bool = False,
    initial_state: Tensor | None = None,
    return_state: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """`selective_scan` in PyTorch: differentiable once, any device."""
    dtype = accumulation_dtype(u_BLD.dtype)
    u = u_BLD.to(dtype)
    delta = _step_sizes(delta_BLD, delta_bias_D, delta_softplus, dtype)
    if initial_state is None:
        h = u.new_zeros(u.shape[0], A_DN.shape[1], u.shape[2])
    else:
        h = initial_state.to(dtype).transpose(1, 2)
    x, step, B, C = (tensor.to(dtype).transpose(0, 1) for tensor in (delta * u, delta, B_BLN, C_BLN))
    A = A_DN.to(dtype).t().contiguous()
    y, h = _Scan.apply(x, step, A, B, C, h, _block_length(u, A.shape[0]))
    y = _output(y.transpose(0, 1), u, D_D, z_BLD).to(u_BLD.dtype)
    return (y, h.transpose(1, 2)) if return_state else y


def selective_scan(
    u_BLD: Tensor,
    delta_BLD: Tensor,
    A_DN: Tensor,
    B_BLN: Tensor,
    C_BLN: Tensor,
    *,
    D_D: Tensor | None = None,
    z_BLD: Tensor | None = None,
    delta_bias_D: Tensor | None = None,
    delta_softplus: bool = False,
    initial_state: Tensor | None = None,
    return_state: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Mamba's scan: u, delta, z (B,L,D), A (D,N), B, C (B,L,N) -> y (B,L,D), and the last state (B,D,N) on request.

    The step size is delta + delta_bias, through softplus if `delta_softplus`. `initial_state` continues a sequence.
    """
    return reference(
        u_BLD,
        delta_BLD,
        A_DN,
        B_BLN,
        C_BLN,
        D_D=D_D,
        z_BLD=z_BLD,
        delta_bias_D=delta_bias_D,
        delta_softplus=delta_softplus,
        initial_state=initial_state,
        return_state=return_state,
    )


def selective_scan_step(
    u_BD: Tensor,
    delta_BD: Tensor,
    A_DN: Tensor,
    B_BN: Tensor,
    C_BN: Tensor,
    state_BDN: Tensor,
    *,
    D_D: Tensor | None = None,
    z_BD: Tensor | None = None,
    delta_bias_D: Tensor | None = None,
    delta_softplus: bool = False,
) -> Tensor:
    """One decode step. Updates `state_BDN` in place; returns y (B,D) in the dtype of u."""
    dtype = state_BDN.dtype
    u = u_BD.to(dtype)
    delta = _step_sizes(delta_BD, delta_bias_D, delta_softplus, dtype)
    state_BDN *= (delta.unsqueeze(-1) * A_DN.to(dtype)).exp()
    state_BDN += (delta * u).unsqueeze(-1) * B_BN.to(dtype).unsqueeze(1)
    y = (state_BDN @ C_BN.to(dtype).unsqueeze(-1)).squeeze(-1)
    return _output(y, u, D_D, z_BD).to(u_BD.dtype)
