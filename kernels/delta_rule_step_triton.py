"""The decode step of the gated delta rule: one pass over the float32 state, read and written once, in place.

Memory bound: 8 K V bytes per head. A program takes some values of one head with all of their keys, for b and q sum over
those. Every thread owns the entries it reads, so that nobody reads what another one has already written. In place,
hence never autotuned.
"""

# mypy: allow-untyped-defs

import torch
import triton
import triton.language as tl
from torch import Tensor

from .delta_rule_tiles_triton import LOG2E
from .dense_rows import dense_rows
from .differentiated import differentiated

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@triton.jit
def _load(pointer, keys, K: tl.constexpr):
    return tl.load(pointer + keys, mask=keys < K, other=0.0).to(tl.float32)


@triton.jit(do_not_specialize=["heads"])
def step_kernel(
    q_pointer, k_pointer, v_pointer, a_pointer, b_pointer, g_pointer, state_pointer, y_pointer,
    q_batch, q_head, k_batch, k_head, v_batch, v_head, a_batch, a_head, b_batch, b_head, g_batch, g_head, heads,
    K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, VB: tl.constexpr, GATE: tl.constexpr, RANK: tl.constexpr,
    LAYER: tl.constexpr,
):  # fmt: skip
    """RANK: a and b; LAYER: the step size (B,H) where a would be, and k a key for both (`layer_delta_rule`)."""
    BLOCKS: tl.constexpr = (V + VB - 1) // VB
    program = tl.program_id(0)
    sequence = program // BLOCKS
    batch, head = (sequence // heads).to(tl.int64), sequence % heads
    keys, values = tl.arange(0, BK), program % BLOCKS * VB + tl.arange(0, VB)
    place = state_pointer + sequence.to(tl.int64) * (K * V) + keys[:, None] * V + values[None, :]
    inside = (keys < K)[:, None] & (values < V)[None, :]
    state = tl.load(place, mask=inside, other=0.0)
    q = _load(q_pointer + batch * q_batch + head * q_head, keys, K)
    k = _load(k_pointer + batch * k_batch + head * k_head, keys, K)
    v = _load(v_pointer + batch * v_batch + head * v_head, values, V)
    corrected = tl.zeros_like(state)
    if RANK:
        a = _load(a_pointer + batch * a_batch + head * a_head, keys, K)
        b = _load(b_pointer + batch * b_batch + head * b_head, keys, K)
        corrected = a[:, None] * tl.sum(state * b[:, None], 0)[None, :]
    g_pointer += batch * g_batch + head * g_head
    if GATE == "head":
        state *= tl.exp2(tl.load(g_pointer).to(tl.float32) * LOG2E)
    if GATE == "channel":
        state *= tl.exp2(_load(g_pointer, keys, K) * LOG2E)[:, None]
    if LAYER:
        v -= tl.sum(state * k[:, None], 0)
        k *= tl.load(a_pointer + batch * a_batch + head * a_head).to(tl.float32)
    state += corrected + k[:, None] * v[None, :]
    tl.store(place, state, mask=inside)
    y = tl.sum(state * q[:, None], 0)
    place = y_pointer + sequence.to(tl.int64) * V + values
    tl.store(place, y.to(y_pointer.dtype.element_ty), mask=values < V)


def _shape(keys: int, values: int) -> dict[str, int]:
    """Values of a program: 2048 entries if there are as many, and 16 a thread."""
    block = triton.next_power_of_2(keys)
    columns = min(triton.next_power_of_2(values), max(1, 2048 // block))
    return {"BK": block, "VB": columns, "num_warps": min(4, max(1, columns * block // 512))}


@torch.library.custom_op("basedbench::delta_rule_step", mutates_args=("state",))
def step(
    q: Tensor, k: Tensor, v: Tensor, a: Tensor | None, b: Tensor | None, g: Tensor | None, state: Tensor
) -> Tensor:
    """y (B,H,V) in the dtype of v; `state` (B,H,K,V), float32 and contiguous, takes the token in.

    Without b, a is the step size (B,H) of `layer_delta_rule`, or there is none.
    """
    q, k, v = (dense_rows(part) for part in (q, k, v))
    a, b, g = (dense_rows(part) for part in (a, b, g))
    batch, heads, keys = q.shape
    gate = "none" if g is None else "channel" if g.shape[-1] == keys else "head"
    y = torch.empty(v.shape, dtype=v.dtype, device=v.device)
    parts = [q if part is None else part for part in (q, k, v, a, b, g)]
    shape = _shape(keys, v.shape[-1])
    step_kernel[(batch * heads * triton.cdiv(v.shape[-1], shape["VB"]),)](
        *parts, state, y, *(stride for part in parts for stride in part.stride()[:2]), heads,
        K=keys, V=v.shape[-1], GATE=gate, RANK=b is not None, LAYER=a is not None and b is None, **shape,
    )  # fmt: skip
    return y


@step.register_fake
def _(q, k, v, a, b, g, state):
    return v.new_empty(v.shape)


def unsupported(
    q: Tensor, k: Tensor, v: Tensor, a: Tensor | None, b: Tensor | None, g: Tensor | None, state: Tensor
) -> str | None:
    """Why the kernel does not take these inputs, or None if it does."""
    given = [tensor for tensor in (q, k, v, a, b, g) if tensor is not None]
    if state.dtype != torch.float32 or not state.is_contiguous():
        return "the state must be float32 and contiguous"
    if any(tensor.dtype not in DTYPES for tensor in given):
        return "inputs must be float32, float16 or bfloat16"
    if (b is not None) != (a is not None and a.dim() == q.dim()):
        return "a and b come together"
    if g is not None and g.shape[-1] not in (1, q.shape[-1]):
        return "decays are one a head or one a channel"
    if q.shape[-1] > 1024 or q.numel() == 0 or v.numel() == 0:
        return "keys must be at most 1024 wide"
    if differentiated(*given, state):
        return "a step has no gradient"
    return None
