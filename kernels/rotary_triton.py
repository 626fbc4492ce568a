"""`rotary` in Triton: a program turns heads of some tokens, of q or of k. The backward turns back by the same."""

# mypy: allow-untyped-defs

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .dense_rows import dense_rows
from .dependents import dependent
from .dependents_triton import follow
from .rotary import Angles

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
LARGEST_HEAD = 512
TILE = 1024  # pairs of a program: 8 a thread, 16 bytes of a 16-bit type
MOST_ROWS = 2**31 - TILE  # they are numbered by 32 bits


@triton.jit
def angles_kernel(
    position, cos, sin, each, RATE: tl.constexpr, R: tl.constexpr, BLOCK: tl.constexpr, EARLY: tl.constexpr = False
):
    """The angles of one position. RATE = -2 log2(base) / width; frequencies, and angles, are rounded to float32."""
    follow(EARLY)
    token = tl.program_id(0).to(tl.int64)
    r = tl.arange(0, BLOCK)
    frequency_R = tl.exp2(r.to(tl.float64) * RATE).to(tl.float32)
    angle_R = tl.load(position + token * each).to(tl.float32) * frequency_R
    tl.store(cos + token * R + r, tl.cos(angle_R), mask=r < R)
    tl.store(sin + token * R + r, tl.sin(angle_R), mask=r < R)


@triton.jit
def turn(x, y, cos, sin, exists, K: tl.constexpr, HALF: tl.constexpr, BLOCK_R: tl.constexpr, REST: tl.constexpr):
    """Heads at x (ROWS,1) to y by their angles' cosines and sines, (ROWS,BLOCK_R) or (1,BLOCK_R)."""
    r = tl.arange(0, BLOCK_R)[None, :]
    inside = exists
    if HALF < BLOCK_R:
        inside = exists & (r < HALF)
    first = tl.load(x + r, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(x + HALF + r, mask=inside, other=0.0).to(tl.float32)
    tl.store(y + r, (first * cos - second * sin).to(y.dtype.element_ty), mask=inside)
    tl.store(y + HALF + r, (first * sin + second * cos).to(y.dtype.element_ty), mask=inside)
    if REST > 0:
        c = 2 * HALF + tl.arange(0, REST)[None, :]
        tl.store(y + c, tl.load(x + c, mask=exists & (c < K), other=0.0), mask=exists & (c < K))


@triton.jit
def turn_rows(x, y, cos, sin, tile, rows, length, x_batch, x_row, x_head, cos_row, sin_row, H: tl.constexpr,
               K: tl.constexpr, HALF: tl.constexpr, BLOCK_R: tl.constexpr, ROWS: tl.constexpr, REST: tl.constexpr,
               BACK: tl.constexpr):  # fmt: skip
    """Heads of some tokens of x, to y, where they follow each other: row = token H + head."""
    row = tile * ROWS + tl.arange(0, ROWS)
    token, exists = row // H, (row < rows)[:, None]
    t = (token % length).to(tl.int64)[:, None]
    x += ((token // length).to(tl.int64) * x_batch + (row % H).to(tl.int64) * x_head)[:, None] + t * x_row
    r = tl.arange(0, BLOCK_R)[None, :]
    inside = exists
    if HALF < BLOCK_R:
        inside = exists & (r < HALF)
    cos_R = tl.load(cos + t * cos_row + r, mask=inside, other=0.0).to(tl.float32)
    sin_R = tl.load(sin + t * sin_row + r, mask=inside, other=0.0).to(tl.float32)
    if BACK:
        sin_R = -sin_R
    turn(x, y + row.to(tl.int64)[:, None] * K, cos_R, sin_R, exists, K, HALF, BLOCK_R, REST)


@triton.jit(do_not_specialize=["q_tiles", "q_rows", "k_rows", "length"])
def rotary_kernel(
    q, k, cos, sin, q_out, k_out, q_tiles, q_rows, k_rows, length, q_batch, q_row, q_head, k_batch, k_row, k_head,
    cos_row, sin_row,
    Q: tl.constexpr, G: tl.constexpr, K: tl.constexpr, HALF: tl.constexpr, BLOCK_R: tl.constexpr, ROWS: tl.constexpr,
    REST: tl.constexpr, BACK: tl.constexpr,
):  # fmt: skip
    """Programs: tiles of q, which has Q heads, then those of k, which has G."""
    tile = tl.program_id(0)
    if tile < q_tiles:
        turn_rows(
            q, q_out, cos, sin, tile, q_rows, length, q_batch, q_row, q_head, cos_row, sin_row, Q, K, HALF, BLOCK_R,
            ROWS, REST, BACK,
        )  # fmt: skip
    else:
        turn_rows(
            k, k_out, cos, sin, tile - q_tiles, k_rows, length, k_batch, k_row, k_head, cos_row, sin_row, G, K, HALF,
            BLOCK_R, ROWS, REST, BACK,
        )  # fmt: skip


@torch.library.custom_op("basedbench::rotary_angles", mutates_args=())
def angles_operator(position: Tensor, width: int, base: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines (L,R), float32."""
    cos, sin = angles(position, width, base)
    if cos.numel():
        pairs = cos.shape[1]
        angles_kernel[(len(position),)](
            position, cos, sin, position.stride(0), RATE=-2 * math.log2(base) / width, R=pairs,
            BLOCK=triton.next_power_of_2(pairs), num_warps=1, **dependent(),
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
    (batch, length, heads, width), half = q.shape, cos.shape[-1]
    block, groups = triton.next_power_of_2(half), k.shape[2]
    in_tile = max(1, TILE // block)
    rows = [batch * length * many for many in (heads, groups)]
    q_tiles, k_tiles = (triton.cdiv(many, in_tile) for many in rows)
    rotary_kernel[(q_tiles + k_tiles,)](
        q, k, cos, sin, q_out, k_out, q_tiles, *rows, length, *q.stride()[:3], *k.stride()[:3], cos.stride(0),
        sin.stride(0), Q=heads, G=groups, K=width, HALF=half, BLOCK_R=block, ROWS=in_tile,
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
    if max(q_xHK.numel(), k_xGK.numel()) // q_xHK.shape[-1] > MOST_ROWS:
        return f"there must be at most {MOST_ROWS} heads of all tokens"
    return None


def rotary(q_xHK: Tensor, k_xGK: Tensor, angles_LR: Angles) -> tuple[Tensor, Tensor]:
    """`rotary.reference` by the kernel above."""
    if q_xHK.dim() == 4:
        q, k = rotary_operator(q_xHK, k_xGK, *angles_LR, False)
        return q, k
    q, k = rotary_operator(q_xHK.unsqueeze(0), k_xGK.unsqueeze(0), *angles_LR, False)
    return q.squeeze(0), k.squeeze(0)
