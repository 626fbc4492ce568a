"""Selective scan, the recurrence of Mamba.

    h_t = exp(delta_t A) h_t-1 + delta_t B_t u_t        y_t = C_t h_t + D u_t, times silu(z_t)

per channel d with N states: A (D,N) negative, B and C (B,L,N) shared by the channels. Source: Mamba, arXiv 2312.00752,
equations 2 to 4 and algorithm 2 (zero-order hold for A, Euler for B, as its code does). float32 (float64 for float64
inputs).

The reference walks the sequence in blocks of time steps: within a block all but h = a h + b is done for all steps at
once. Only the states between blocks are stored; the backward recomputes a block, then walks it in reverse. States are
kept as (N,D), channels innermost, so that every operation runs over long contiguous rows.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .costs import total_bytes, total_flops
from .differentiated import once_differentiable
from .gluon_modules import usable
from .precision import accumulation_dtype, negative_exp, without_autocast
from .rounding import accumulated, store
from .shapes import checked_shapes

# Elements in a block's (T,B,N,D) tensors. On a CPU they should stay in the cache; on a GPU launches are what costs.
BLOCK_ELEMENTS = {"cpu": 2**19}
OTHER_BLOCK_ELEMENTS = 2**24


def _block_length(x_LBD: Tensor, states: int) -> int:
    length, batch, channels = x_LBD.shape
    elements = BLOCK_ELEMENTS.get(x_LBD.device.type, OTHER_BLOCK_ELEMENTS)
    return max(1, min(length, elements // max(1, batch * channels * states)))


def _walk(
    x_TBD: Tensor, delta_TBD: Tensor, A_ND: Tensor, B_TBN: Tensor, h_BND: Tensor, decay_TBND: Tensor, h_TBND: Tensor
) -> None:
    """Fill in the decays exp(delta A) and the states of one block, from the state before it."""
    torch.mul(delta_TBD.unsqueeze(2), A_ND, out=decay_TBND).exp_()
    torch.mul(B_TBN.unsqueeze(-1), x_TBD.unsqueeze(2), out=h_TBND)
    for a, h in zip(decay_TBND.unbind(), h_TBND.unbind(), strict=True):
        h.addcmul_(a, h_BND)
        h_BND = h


def _dot(a: Tensor, b: Tensor, dim: int, scratch: Tensor, out: Tensor) -> None:
    """sum(a b) over `dim`: a plain product and sum, faster here than batched matrix-vector products, and never TF32."""
    torch.sum(torch.mul(a, b, out=scratch), dim, out=out)


class _Scan(torch.autograd.Function):
    """(x = delta u, delta, A, B, C, h_0) -> (y = C h, h_L), time first: x (L,B,D), A (N,D), B, C (L,B,N), h (B,N,D)."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, h: Tensor
    ) -> tuple[Tensor, Tensor]:
        block = _block_length(x, A.shape[0])
        y, starts = torch.empty_like(x), []
        buffers = x.new_empty(2, block, *h.shape)
        for t in range(0, x.shape[0], block):
            part = slice(t, t + block)
            decay, states = buffers[:, : len(x[part])]
            starts.append(h)
            _walk(x[part], delta[part], A, B[part], h, decay, states)
            h = states[-1].clone()
            _dot(states, C[part].unsqueeze(-1), 2, scratch=decay, out=y[part])
        ctx.save_for_backward(x, delta, A, B, C, *starts)
        ctx.block = block
        return y, h

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor, grad_h: Tensor) -> tuple[Tensor, ...]:
        x, delta, A, B, C, *starts = ctx.saved_tensors
        dx, ddelta, dB, dC = (torch.empty_like(tensor) for tensor in (x, delta, B, C))
        dA, carry, grad_y = torch.zeros_like(A), grad_h, grad_y.contiguous()
        buffers = x.new_empty(4, ctx.block, *grad_h.shape)
        for index in reversed(range(len(starts))):
            part = slice(index * ctx.block, (index + 1) * ctx.block)
            decay, states, g, scratch = buffers[:, : len(x[part])]
            _walk(x[part], delta[part], A, B[part], starts[index], decay, states)
            _dot(states, grad_y[part].unsqueeze(2), 3, scratch, out=dC[part])
            torch.mul(C[part].unsqueeze(-1), grad_y[part].unsqueeze(2), out=g)
            _walk_back(decay, g, carry)
            _dot(g, x[part].unsqueeze(2), 3, scratch, out=dB[part])
            _dot(g, B[part].unsqueeze(-1), 2, scratch, out=dx[part])
            g *= decay
            carry = g[0].clone()
            g[1:] *= states[:-1]
            g[0] *= starts[index]  # now dloss/d(delta_t A)
            _dot(g, A, 2, scratch, out=ddelta[part])
            dA += torch.mul(g, delta[part].unsqueeze(2), out=scratch).sum((0, 1))
        return dx, ddelta, dA, dB, dC, carry


def _walk_back(decay_TBND: Tensor, g_TBND: Tensor, carry_BND: Tensor) -> None:
    """From the gradients through y alone to the whole dloss/dh_t, given the one that comes from after the block."""
    decays, gradients = decay_TBND.unbind(), g_TBND.unbind()
    gradients[-1].add_(carry_BND)
    for t in range(len(gradients) - 1, 0, -1):
        gradients[t - 1].addcmul_(decays[t], gradients[t])


def _step_sizes(delta: Tensor, bias_D: Tensor | None, softplus: bool, dtype: torch.dtype) -> Tensor:
    delta = delta.to(dtype)
    delta = delta if bias_D is None else delta + bias_D.to(dtype)
    return F.softplus(delta) if softplus else delta


def _output(y: Tensor, u: Tensor, D_D: Tensor | None, z: Tensor | None) -> Tensor:
    y = y if D_D is None else y + u * D_D.to(y.dtype)
    return y if z is None else y * F.silu(z.to(y.dtype))


@without_autocast
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
    x, step, B, C = (tensor.to(dtype).transpose(0, 1).contiguous() for tensor in (delta * u, delta, B_BLN, C_BLN))
    y, h = _Scan.apply(x, step, A_DN.to(dtype).t().contiguous(), B, C, h)
    y = _output(y.transpose(0, 1), u, D_D, z_BLD).to(u_BLD.dtype)
    return (y, h.transpose(1, 2).contiguous()) if return_state else y


@checked_shapes(initial_state="BDN")
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
    """Mamba's scan: u, delta, z (B,L,D), A (D,N), B, C (B,L,N) -> y (B,L,D), and the last state (B,D,N) if asked for.

    The step size is delta + delta_bias, through softplus if `delta_softplus`. `initial_state` continues a sequence. On
    CUDA the Triton kernels compute it, except in float64.
    """
    options: dict[str, Any] = {
        "D_D": D_D,
        "z_BLD": z_BLD,
        "delta_bias_D": delta_bias_D,
        "delta_softplus": delta_softplus,
        "initial_state": initial_state,
        "return_state": return_state,
    }
    if u_BLD.is_cuda and usable("selective_scan_triton", "selective_scan"):
        from . import selective_scan_triton as fused

        if fused.supported(u_BLD, A_DN, delta_BLD, B_BLN, C_BLN, D_D, z_BLD, delta_bias_D, initial_state):
            return fused.selective_scan(u_BLD, delta_BLD, A_DN, B_BLN, C_BLN, **options)
    return reference(u_BLD, delta_BLD, A_DN, B_BLN, C_BLN, **options)


@checked_shapes()
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
    log_A: bool = False,
    count_B: Tensor | None = None,
) -> Tensor:
    """One decode step. Updates `state_BDN` in place, of 32 bits or bfloat16 (`rounding`); y (B,D) in the dtype of u.

    With `log_A`, `A_DN` holds log(-A), as models keep it: its exponential costs no launch of its own.
    `count_B` (B,) int32, the tokens before this one, makes a state in bfloat16 be rounded another way each time.

    On CUDA a Triton kernel computes it, except for gradients, and states in float64 or not contiguous.
    """
    tensors = (u_BD, delta_BD, A_DN, B_BN, C_BN, state_BDN, D_D, z_BD, delta_bias_D)
    if u_BD.is_cuda:
        from . import selective_scan_step_triton as fused

        if fused.supported(*tensors):
            return fused.step(*tensors, delta_softplus, log_A, count_B)
    return step_reference(*tensors, delta_softplus, log_A, count_B)


@without_autocast
def step_reference(
    u_BD: Tensor,
    delta_BD: Tensor,
    A_DN: Tensor,
    B_BN: Tensor,
    C_BN: Tensor,
    state_BDN: Tensor,
    D_D: Tensor | None = None,
    z_BD: Tensor | None = None,
    delta_bias_D: Tensor | None = None,
    delta_softplus: bool = False,
    log_A: bool = False,
    count_B: Tensor | None = None,
) -> Tensor:
    """`selective_scan_step` in PyTorch."""
    h_BDN = accumulated(state_BDN)
    dtype = h_BDN.dtype
    A_DN = negative_exp(A_DN) if log_A else A_DN
    u = u_BD.to(dtype)
    delta = _step_sizes(delta_BD, delta_bias_D, delta_softplus, dtype)
    h_BDN *= (delta.unsqueeze(-1) * A_DN.to(dtype)).exp()
    h_BDN += (delta * u).unsqueeze(-1) * B_BN.to(dtype).unsqueeze(1)
    store(state_BDN, h_BDN, count_B)
    y = (h_BDN @ C_BN.to(dtype).unsqueeze(-1)).squeeze(-1)
    return _output(y, u, D_D, z_BD).to(u_BD.dtype)


def flops(
    *,
    batch: int,
    length: int,
    channels: int,
    states: int,
    gate: bool = True,
    state: bool = False,
    backward: bool = False,
) -> int:
    """Per token-channel 7 N + 3, and 4 for the gate.

    Seven per state: delta A, exp, x B, a h + b (2), C h (2). Three for x = delta u and D u.
    """
    forward = batch * length * channels * (7 * states + 3 + (4 if gate else 0))
    return total_flops(forward, backward=backward)


def bytes_moved(
    *,
    batch: int,
    length: int,
    channels: int,
    states: int,
    gate: bool = True,
    element_bytes: int = 2,
    state: bool = False,
    backward: bool = False,
) -> int:
    """u, delta, B, C (and z) in, A, D and delta's bias in float32, y out; with `state` D N in and out per sequence."""
    tokens = batch * length
    inputs = tokens * ((3 if gate else 2) * channels + 2 * states)
    return total_bytes(
        inputs,
        tokens * channels,
        wide=channels * (states + 2),
        state=batch * channels * states if state else 0,
        element_bytes=element_bytes,
        backward=backward,
    )
