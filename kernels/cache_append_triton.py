"""`cache_append` in Triton: a program moves heads of one token, of q, of k or of v."""

# mypy: allow-untyped-defs

import torch
import triton
import triton.language as tl
from torch import Tensor

from .dense_rows import dense_rows
from .differentiated import differentiated
from .rotary import Angles
from .rotary_triton import DTYPES, LARGEST_HEAD, turn

HEADS = 16  # of a program, at most


@triton.jit
def append_kernel(
    q, k, v, keys, values, position, cos, sin, q_out, slots, each, heads, groups,
    q_batch, q_head, k_batch, k_head, v_batch, v_head, keys_batch, keys_row, values_batch, values_row, cos_row, sin_row,
    K: tl.constexpr, V: tl.constexpr, HALF: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_H: tl.constexpr,
    REST: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    """A full cache is left as it is."""
    b = tl.program_id(0).to(tl.int64)
    slot = tl.load(position + b * each).to(tl.int64)
    groups = tl.where(slot < slots, groups, 0)
    r, h = tl.arange(0, BLOCK_R), (tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H))[:, None]
    if HALF > 0:
        cos_R = tl.load(cos + b * cos_row + r, mask=r < HALF, other=0.0).to(tl.float32)[None, :]
        sin_R = tl.load(sin + b * sin_row + r, mask=r < HALF, other=0.0).to(tl.float32)[None, :]
    else:
        cos_R = tl.zeros([1, BLOCK_R], tl.float32)
        sin_R = cos_R
    if tl.program_id(2) == 0:
        to_q = q_out + b * heads * K + h * K
        turn(q + b * q_batch + h * q_head, to_q, cos_R, sin_R, h < heads, K, HALF, BLOCK_R, REST)
    elif tl.program_id(2) == 1:
        to_key = keys + b * keys_batch + slot * keys_row + h * K
        turn(k + b * k_batch + h * k_head, to_key, cos_R, sin_R, h < groups, K, HALF, BLOCK_R, REST)
    else:
        c = tl.arange(0, BLOCK_V)[None, :]
        inside = (h < groups) & (c < V)
        value = tl.load(v + b * v_batch + h * v_head + c, mask=inside, other=0.0)
        to_value = values + b * values_batch + slot * values_row + h * V + c
        tl.store(to_value, value.to(values.dtype.element_ty), mask=inside)


@torch.library.custom_op("basedbench::cache_append", mutates_args=("keys", "values"))
def operator(
    q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, position: Tensor, cos: Tensor | None,
    sin: Tensor | None,
) -> Tensor:  # fmt: skip
    """q, turned; `keys` and `values` (B,L,G,.) take the token in."""
    q, k, v = (dense_rows(x) for x in (q, k, v))
    q_out = q.new_empty(q.shape)
    (batch, heads, K), (_, groups, V), half = q.shape, v.shape, 0 if cos is None else cos.shape[-1]
    block = min(HEADS, triton.next_power_of_2(max(heads, groups)))
    rows_of_angles = (0, 0) if cos is None or sin is None else (cos.stride(0), sin.stride(0))
    append_kernel[(batch, triton.cdiv(max(heads, groups), block), 3)](
        q, k, v, keys, values, position, cos, sin, q_out, keys.shape[1], position.stride(0), heads, groups,
        *q.stride()[:2], *k.stride()[:2], *v.stride()[:2], *keys.stride()[:2], *values.stride()[:2], *rows_of_angles,
        K=K, V=V, HALF=half, BLOCK_R=triton.next_power_of_2(max(1, half)), BLOCK_H=block,
        REST=triton.next_power_of_2(K - 2 * half) if 2 * half < K else 0, BLOCK_V=triton.next_power_of_2(V),
    )  # fmt: skip
    return q_out


@operator.register_fake
def _(q, k, v, keys, values, position, cos, sin):
    return q.new_empty(q.shape)


def unsupported(q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, angles: Angles | None) -> str | None:
    """Why the kernel does not take these inputs, or None if it does."""
    given = (q, k, v, keys, values, *(angles or ()))
    if any(x.dtype not in DTYPES for x in given):
        return "inputs must be float32, float16 or bfloat16"
    if any(x.stride(-1) != 1 or x.stride(2) != x.shape[3] for x in (keys, values)):
        return "heads of a cache must follow each other"
    if any(x.stride(-1) != 1 for x in angles or ()):
        return "angles must have their last dimension side by side"
    if not q.numel() or not v.numel() or max(q.shape[-1], v.shape[-1]) > LARGEST_HEAD:
        return f"heads must be at most {LARGEST_HEAD} wide"
    if differentiated(*given):
        return "a step has no gradient"
    return None


def cache_append(
    q_BHK: Tensor, k_BGK: Tensor, v_BGV: Tensor, k_BLGK: Tensor, v_BLGV: Tensor, length_B: Tensor, angles: Angles | None
) -> Tensor:
    """`cache_append.reference` by the kernel above."""
    q: Tensor = operator(q_BHK, k_BGK, v_BGV, k_BLGK, v_BLGV, length_B, *(angles or (None, None)))
    return q
