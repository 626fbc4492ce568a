"""The decode step of taylor_attention: one pass over the packed float32 state, read and written once, in place.

Memory bound: 2 F (V + 1) floats per head against about as many multiply-adds. One program per head, for the normaliser
needs all features of a row; all loads of a tile are in flight before its first store. In place, hence never autotuned,
and every element must have one thread that loads and stores it: a vector shorter than the threads of a program is
replicated over them, and one thread may load what another has stored. So a program has as many threads as a block has
features: then also each feature is formed once, and not by every thread that needs it.
"""

# mypy: allow-untyped-defs

import torch
import triton
import triton.language as tl
from torch import Tensor

from .dense_rows import dense_rows
from .dependents import dependent
from .dependents_triton import follow


@triton.jit
def dimensions(feature, K: tl.constexpr):
    """Dimensions i <= j of a packed square feature, numbered from 0 row by row: the triangular root, rounded safely."""
    odd: tl.constexpr = 2 * K + 1
    root = tl.sqrt((odd * odd - 8 * feature).to(tl.float32))
    i = ((odd - root) * 0.5 + 1e-3).to(tl.int32)
    return i, feature - i * K + i * (i - 1) // 2 + i


@triton.jit
def features(pointer, feature, i, j, K: tl.constexpr):
    """phi for a block of packed features: [1, x / K^(1/4), {x_i x_j c_ij}_i<=j], zero beyond the last."""
    linear = (feature > 0) & (feature <= K)
    square = (feature > K) & (j < K)
    x_i = tl.load(pointer + i, mask=square, other=0.0).to(tl.float32)
    x_j = tl.load(pointer + j, mask=square, other=0.0).to(tl.float32)
    x = tl.load(pointer + feature - 1, mask=linear, other=0.0).to(tl.float32)
    squares = x_i * x_j * tl.where(i == j, (0.5 / K) ** 0.5, (1.0 / K) ** 0.5)
    return tl.where(feature == 0, 1.0, tl.where(linear, x * K**-0.25, squares))


@triton.jit
def step_kernel(
    q_pointer, k_pointer, v_pointer, y_pointer, state,
    q_batch, q_head, k_batch, k_head, v_batch, v_head, heads,
    K: tl.constexpr, V: tl.constexpr, TILE: tl.constexpr, BLOCK: tl.constexpr,
    EARLY: tl.constexpr = False,
):  # fmt: skip
    FEATURES: tl.constexpr = 1 + K + K * (K + 1) // 2
    head = tl.program_id(0)
    batch = (head // heads).to(tl.int64)
    q_pointer += batch * q_batch + (head % heads) * q_head
    k_pointer += batch * k_batch + (head % heads) * k_head
    v_pointer += batch * v_batch + (head % heads) * v_head
    state += head.to(tl.int64) * (FEATURES * (V + 1))
    z = tl.zeros([BLOCK], tl.float32)
    for tile in tl.static_range(0, V, TILE):
        values = tile + tl.arange(0, TILE)
        if not EARLY:
            v = tl.load(v_pointer + values, mask=values < V, other=0.0).to(tl.float32)
        y = tl.zeros([TILE], tl.float32)
        for first in tl.range(0, FEATURES, BLOCK):
            feature = first + tl.arange(0, BLOCK)
            exists = feature < FEATURES
            i, j = dimensions(tl.minimum(tl.maximum(feature - 1 - K, 0), FEATURES - 2 - K), K)
            place = state + feature[:, None] * (V + 1) + values[None, :]
            mask = exists[:, None] & (values < V)[None, :]
            if EARLY:  # nobody else writes the state: it may be on its way before the wait
                held = tl.load(place, mask=mask, other=0.0)
                follow(tile == 0)
                v = tl.load(v_pointer + values, mask=values < V, other=0.0).to(tl.float32)
            phi_q = tl.where(exists, features(q_pointer, feature, i, j, K), 0.0)
            phi_k = tl.where(exists, features(k_pointer, feature, i, j, K), 0.0)
            if not EARLY:
                held = tl.load(place, mask=mask, other=0.0)
            rows = held + phi_k[:, None] * v[None, :]
            if tile == 0:
                place_of_sums = state + feature * (V + 1) + V
                sums = tl.load(place_of_sums, mask=exists, other=0.0) + phi_k
                tl.store(place_of_sums, sums, mask=exists)
                z += phi_q * sums
            tl.store(place, rows, mask=mask)
            y += tl.sum(phi_q[:, None] * rows, 0)
        out = y / tl.sum(z, 0)
        y_place = y_pointer + head.to(tl.int64) * V + values
        tl.store(y_place, out.to(y_pointer.dtype.element_ty), mask=values < V)


@torch.library.custom_op("basedbench::taylor_attention_step", mutates_args=("state",))
def step(q: Tensor, k: Tensor, v: Tensor, state: Tensor) -> Tensor:
    """y (B,H,V) in the dtype of v; `state` (B,H,F,V+1), float32 and contiguous, takes the token in."""
    q, k, v = (dense_rows(x) for x in (q, k, v))
    batch, heads, keys = q.shape
    values, features = v.shape[-1], state.shape[2]
    y = torch.empty(v.shape, dtype=v.dtype, device=v.device)
    block = min(256, max(32, triton.next_power_of_2(features)))
    step_kernel[(batch * heads,)](
        q, k, v, y, state, *q.stride()[:2], *k.stride()[:2], *v.stride()[:2], heads,
        K=keys, V=values, TILE=min(64, triton.next_power_of_2(values)), BLOCK=block, num_warps=block // 32,
        **dependent(),
    )  # fmt: skip
    return y


@step.register_fake
def _(q, k, v, state):
    return v.new_empty(v.shape)


def unsupported(q_BHK: Tensor, k_BHK: Tensor, v_BHV: Tensor, state_BHFW: Tensor) -> str | None:
    """Why the kernel does not take these inputs, or None if it does."""
    if state_BHFW.dtype != torch.float32 or not state_BHFW.is_contiguous():
        return "the state must be float32 and contiguous"
    if q_BHK.shape[-1] > 64 or v_BHV.shape[-1] > 256 or v_BHV.numel() == 0:
        return "key width must be at most 64, value width at most 256"
    if torch.is_grad_enabled() and any(x.requires_grad for x in (q_BHK, k_BHK, v_BHV, state_BHFW)):
        return "a step has no gradient"
    return None
