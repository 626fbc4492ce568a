"""The decode step of linear_attention: one pass over the float32 state, read and written once, in place.

Memory bound: 8 K (V + 1) bytes per head. One program per head, for all values are divided by the same sum. In place,
hence never autotuned, and every entry has one thread that loads and stores it: as many threads as a block has features,
or a vector of sums would be replicated over them (`taylor_step_triton`).
"""

# mypy: allow-untyped-defs

import torch
import triton
import triton.language as tl
from torch import Tensor

from .dense_rows import dense_rows
from .differentiated import differentiated
from .linear_attention_tiles_triton import EPSILON, feature

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@triton.jit
def _mapped(pointer, keys, K: tl.constexpr, MAP: tl.constexpr):
    x = feature(tl.load(pointer + keys, mask=keys < K, other=0.0), MAP).to(tl.float32)
    return tl.where(keys < K, x, 0.0)


@triton.jit(do_not_specialize=["heads"])
def step_kernel(
    q_pointer, k_pointer, v_pointer, y_pointer, state_pointer,
    q_batch, q_head, k_batch, k_head, v_batch, v_head, heads,
    K: tl.constexpr, V: tl.constexpr, KB: tl.constexpr, VB: tl.constexpr, MAP: tl.constexpr,
):  # fmt: skip
    sequence = tl.program_id(0)
    batch, head = (sequence // heads).to(tl.int64), sequence % heads
    q_pointer += batch * q_batch + head * q_head
    k_pointer += batch * k_batch + head * k_head
    v_pointer += batch * v_batch + head * v_head
    state_pointer += sequence.to(tl.int64) * (K * (V + 1))
    z = tl.zeros([KB], tl.float32)
    for first in tl.range(0, K, KB):
        keys = first + tl.arange(0, KB)
        place, inside = state_pointer + keys * (V + 1) + V, keys < K
        sums = tl.load(place, mask=inside, other=0.0) + _mapped(k_pointer, keys, K, MAP)
        tl.store(place, sums, mask=inside)
        z += _mapped(q_pointer, keys, K, MAP) * sums
    inverse = 1.0 / (tl.sum(z, 0) + EPSILON)
    for start in tl.range(0, V, VB):
        values = start + tl.arange(0, VB)
        v = tl.load(v_pointer + values, mask=values < V, other=0.0).to(tl.float32)
        y = tl.zeros([VB], tl.float32)
        for first in tl.range(0, K, KB):
            keys = first + tl.arange(0, KB)
            place = state_pointer + keys[:, None] * (V + 1) + values[None, :]
            inside = (keys < K)[:, None] & (values < V)[None, :]
            state = tl.load(place, mask=inside, other=0.0) + _mapped(k_pointer, keys, K, MAP)[:, None] * v[None, :]
            tl.store(place, state, mask=inside)
            y += tl.sum(state * _mapped(q_pointer, keys, K, MAP)[:, None], 0)
        out = y_pointer + sequence.to(tl.int64) * V + values
        tl.store(out, (y * inverse).to(y_pointer.dtype.element_ty), mask=values < V)


@torch.library.custom_op("basedbench::linear_attention_step", mutates_args=("state",))
def step(q: Tensor, k: Tensor, v: Tensor, state: Tensor, feature_map: str) -> Tensor:
    """y (B,H,V) in the dtype of v; `state` (B,H,K,V+1), float32 and contiguous, takes the token in."""
    q, k, v = (dense_rows(x) for x in (q, k, v))
    batch, heads, keys = q.shape
    block = min(256, max(32, triton.next_power_of_2(keys)))
    y = torch.empty(v.shape, dtype=v.dtype, device=v.device)
    step_kernel[(batch * heads,)](
        q, k, v, y, state, *q.stride()[:2], *k.stride()[:2], *v.stride()[:2], heads,
        K=keys, V=v.shape[-1], KB=block, VB=min(64, triton.next_power_of_2(v.shape[-1])), MAP=feature_map,
        num_warps=block // 32,
    )  # fmt: skip
    return y


@step.register_fake
def _(q, k, v, state, feature_map):
    return v.new_empty(v.shape)


def unsupported(q: Tensor, k: Tensor, v: Tensor, state: Tensor) -> str | None:
    """Why the kernel does not take these inputs, or None if it does."""
    if state.dtype != torch.float32 or not state.is_contiguous():
        return "the state must be float32 and contiguous"
    if any(x.dtype not in DTYPES for x in (q, k, v)):
        return "inputs must be float32, float16 or bfloat16"
    if q.numel() == 0 or v.numel() == 0:
        return "there is nothing to compute"
    if differentiated(q, k, v, state):
        return "a step has no gradient"
    return None
