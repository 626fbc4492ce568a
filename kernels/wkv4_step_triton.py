"""One decode step of `wkv4` in one launch: the state passes through registers once."""

# mypy: allow-untyped-defs

import torch
import triton
import triton.language as tl
from torch import Tensor

from .dense_rows import dense_rows
from .differentiated import differentiated

BLOCK, WARPS = 512, 4


@triton.jit
def wkv4_step_kernel(k, v, w, u, state, y, row_k, row_v, D, BLOCK: tl.constexpr):
    """State (B,3,D) in place; the output from the state before the token, with the token's bonus."""
    d = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    b = tl.program_id(0).to(tl.int64)
    inside = d < D
    state += b * 3 * D + d
    sum_D = tl.load(state, mask=inside, other=0.0)
    weights_D = tl.load(state + D, mask=inside, other=1.0)
    peak_D = tl.load(state + 2 * D, mask=inside, other=0.0)
    k_D = tl.load(k + b * row_k + d, mask=inside, other=0.0).to(tl.float32)
    v_D = tl.load(v + b * row_v + d, mask=inside, other=0.0).to(tl.float32)
    now_D = k_D + tl.load(u + d, mask=inside, other=0.0).to(tl.float32)
    most_D = tl.maximum(peak_D, now_D)
    before_D, token_D = tl.exp(peak_D - most_D), tl.exp(now_D - most_D)
    y_D = (sum_D * before_D + token_D * v_D) / (weights_D * before_D + token_D)
    tl.store(y + b * D + d, y_D.to(y.dtype.element_ty), mask=inside)
    peak_D += tl.load(w + d, mask=inside, other=0.0).to(tl.float32)
    most_D = tl.maximum(peak_D, k_D)
    before_D, token_D = tl.exp(peak_D - most_D), tl.exp(k_D - most_D)
    tl.store(state, sum_D * before_D + token_D * v_D, mask=inside)
    tl.store(state + D, weights_D * before_D + token_D, mask=inside)
    tl.store(state + 2 * D, most_D, mask=inside)


@torch.library.custom_op("basedbench::wkv4_step", mutates_args=("state",))
def step(k: Tensor, v: Tensor, w: Tensor, u: Tensor, state: Tensor) -> Tensor:
    """y (B,D) in the dtype of v; `state` (B,3,D), contiguous, takes the token in."""
    k, v = dense_rows(k), dense_rows(v)
    batch, channels = v.shape
    y = v.new_empty(v.shape)
    wkv4_step_kernel[(batch, triton.cdiv(channels, BLOCK))](
        k, v, w.contiguous(), u.contiguous(), state, y, k.stride(0), v.stride(0), channels, BLOCK=BLOCK, num_warps=WARPS
    )
    return y


@step.register_fake
def _(k, v, w, u, state):
    return v.new_empty(v.shape)


def supported(k_BD: Tensor, v_BD: Tensor, w_D: Tensor, u_D: Tensor, state_B3D: Tensor) -> bool:
    """Whether the kernel takes these inputs: it has no gradient and writes into the state where it lies."""
    given = k_BD, v_BD, w_D, u_D
    return (
        not differentiated(*given, state_B3D)
        and state_B3D.dtype == torch.float32
        and state_B3D.is_contiguous()
        and state_B3D.numel() > 0
        and all(x.dtype in (torch.float32, torch.float16, torch.bfloat16) for x in given)
    )
