"""`rotary` in Triton: a program turns heads of one token, of q or of k. The backward turns back by the same kernel."""

# mypy: allow-untyped-defs

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .dense_rows import dense_rows
from .rotary import Angles

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
LARGEST_HEAD = 512
HEADS = 16  # of a program, at most


@triton.jit
def angles_kernel(position, cos, sin, each, RATE: tl.constexpr, R: tl.constexpr, BLOCK: tl.constexpr):
    """The angles of one position. RATE = -2 log2(base) / width; frequencies, and angles, are rounded to float32."""
    token = tl.program_id(0).to(tl.int64)
    r = tl.arange(0, BLOCK)
    frequency_R = tl.exp2(r.to(tl.float64) * RATE).to(tl.float32)
    angle_R = tl.load(position + token * each).to(tl.float32) * frequency_R
    tl.store(cos + token * R + r, tl.cos(angle_R), mask=r < R)
    tl.store(sin + token * R + r, tl.sin(angle_R), mask=r < R)


@triton.jit
def turn_heads(x, y, cos_R, sin_R, heads, head_x, K: tl.constexpr, HALF: tl.constexpr, BLOCK_R: tl.constexpr,
                BLOCK_H: tl.constexpr, REST: tl.constexpr):  # fmt: skip
    """Heads of one token at x, head_x apart, to y, where they follow each other."""
    h = (tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H))[:, None]
    r = tl.arange(0, BLOCK_R)[None, :]
    inside = (h < heads) & (r < HALF)
    first = tl.load(x + h * head_x + r, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(x + h * head_x + HALF + r, mask=inside, other=0.0).to(tl.float32)
    tl.store(y + h * K + r, (first * cos_R - second * sin_R).to(y.dtype.element_ty), mask=inside)
    tl.store(y + h * K + HALF + r, (first * sin_R + second * cos_R).to(y.dtype.element_ty), mask=inside)
    if REST > 0:
        c = 2 * HALF + tl.arange(0, REST)[None, :]
        inside = (h < heads) & (c < K)
        tl.store(y + h * K + c, tl.load(x + h * head_x + c, mask=inside, other=0.0), mask=inside)


@triton.jit
def rotary_kernel(
    q, k, cos, sin, q_out, k_out, length, q_heads, k_heads, q_batch, q_row, q_head, k_batch, k_row, k_head,
    cos_row, sin_row,
    K: tl.constexpr, HALF: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_H: tl.constexpr, REST: tl.constexpr,
    BACK: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    b, t = token // length, token % length
    r = tl.arange(0, BLOCK_R)
    cos_R = tl.load(cos + t * cos_row + r, mask=r < HALF, other=0.0).to(tl.float32)[None, :]
    sin_R = tl.load(sin + t * sin_row + r, mask=r < HALF, other=0.0).to(tl.float32)[None, :]
    if BACK:
        sin_R = -sin_R
    if tl.program_id(2) == 0:
        x, y = q + b * q_batch + t * q_row, q_out + token * q_heads * K
        turn_heads(x, y, cos_R, sin_R, q_heads, q_head, K, HALF, BLOCK_R, BLOCK_H, REST)
    else:
        x, y = k + b * k_batch + t * k_row, k_out + token * k_heads * K
        turn_heads(x, y, cos_R, sin_R, k_heads, k_head, K, HALF, BLOCK_R, BLOCK_H, REST)


@torch.library.custom_op("basedbench::rotary_angles", mutates_args=())
def angles_operator(position: Tensor, width: int, base: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines (L,R), float32."""
    cos, sin = angles(position, width, base)
    if cos.numel():
        pairs = cos.shape[1]
        angles_kernel[(len(position),)](
            position, cos, sin, position.stride(0), RATE=-2 * math.log2(base) / width, R=pairs,
            BLOCK=triton.next_power_of_2(pairs), num_warps=1,
        )  # fmt: skip
    return cos, sin


@angles_operator.register_fake
def angles(position: Tensor, width: int, base: float) -> tuple[Tensor, Tensor]:
    """The angles, not yet written."""
    shape = len(position), (width + 1) // 2
    return position.new_empty(shape, dtype=torch.float32), position.new_empty(shape, dtype=torch.float32)


@torch.library.custom_op("basedbench::rotary", mutates_args=())
def rotary_operator(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, back: bool) -> tuple[Tensor, Tensor]:
    """q (B,L,H,K) and k (B,L,G,K) turned by the angles of their tokens, or back."""
    q_out, k_out = outputs(q, k, cos, sin, back)
    q, k, cos, sin = (dense_rows(x) for x in (q, k, cos, sin))
    batch, length, heads, width = q.shape
    half, most = cos.shape[-1], max(heads, k.shape[2])
    block = min(HEADS, triton.next_power_of_2(most))
    rotary_kernel[(batch * length, triton.cdiv(most, block), 2)](
        q, k, cos, sin, q_out, k_out, length, heads, k.shape[2], *q.stride()[:3], *k.stride()[:3], cos.stride(0),
        sin.stride(0), K=width, HALF=half, BLOCK_R=triton.next_power_of_2(half), BLOCK_H=block,
        REST=triton.next_power_of_2(width - 2 * half) if width > 2 * half else 0, BACK=back,
    )  # fmt: skip
    return q_out, k_out


@rotary_operator.register_fake
def outputs(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, back: bool) -> tuple[Tensor, Tensor]:
    """The outputs, not yet written."""
    return q.new_empty(q.shape), k.new_empty(k.shape)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    _, _, *angles, ctx.back = inputs
    ctx.save_for_backward(*angles)


def _gradients(ctx: Any, dq: Tensor, dk: Tensor) -> tuple[Tensor | None, ...]:
    return *rotary_operator(dq, dk, *ctx.saved_tensors, not ctx.back), None, None, None


rotary_operator.register_autograd(_gradients, setup_context=_keep)


def unsupported(q_xHK: Tensor, k_xGK: Tensor, angles_LR: Angles) -> str | None:
    """Why the kernel does not take these inputs, or None if it does."""
    if any(x.dtype not in DTYPES for x in (q_xHK, k_xGK, *angles_LR)):
        return "inputs must be float32, float16 or bfloat16"
    if q_xHK.dim() not in (3, 4) or any(x.requires_grad for x in angles_LR):
        return "q must be (B,L,H,K) or (B,H,K), the angles without gradient"
    if not q_xHK.numel() or not k_xGK.numel() or not angles_LR[0].numel() or q_xHK.shape[-1] > LARGEST_HEAD:
        return f"there must be something to turn, in heads no wider than {LARGEST_HEAD}"
    return None


def rotary(q_xHK: Tensor, k_xGK: Tensor, angles_LR: Angles) -> tuple[Tensor, Tensor]:
    """`rotary.reference` by the kernel above."""
    if q_xHK.dim() == 4:
        q, k = rotary_operator(q_xHK, k_xGK, *angles_LR, False)
        return q, k
    q, k = rotary_operator(q_xHK.unsqueeze(0), k_xGK.unsqueeze(0), *angles_LR, False)
    return q.squeeze(0), k.squeeze(0)
