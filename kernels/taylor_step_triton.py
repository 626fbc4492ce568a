"""The decode step of taylor_attention: one pass over the packed state and its sums, read and written once, in place.

Memory bound: 2 F V numbers of the state and 2 F floats per head against about as many multiply-adds. One program per
head, for the normaliser needs all features of a row; all loads of a tile are in flight before its first store. In
place, hence never autotuned, and every element must have one thread that loads and stores it: a vector shorter than the
threads of a program is replicated over them, and one thread may load what another has stored. So a program has as many
threads as a block has features: then also each feature is formed once, and not by every thread that needs it.

Sums lie apart from the state: its rows are whole vectors of 16 bytes then, and may be bfloat16, which counts of tokens
may not (`rounding`).
"""

# mypy: allow-untyped-defs

import torch
import triton
import triton.language as tl
from torch import Tensor

from .dense_rows import dense_rows
from .dependents import dependent
from .dependents_triton import follow
from .differentiated import differentiated
from .rounding import STATE_DTYPES
from .rounding_triton import counted, stored


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
    q_pointer, k_pointer, v_pointer, y_pointer, state, sums, count,
    q_batch, q_head, k_batch, k_head, v_batch, v_head, heads,
    K: tl.constexpr, V: tl.constexpr, ROW: tl.constexpr, SUMS_ROW: tl.constexpr, TILE: tl.constexpr,
    BLOCK: tl.constexpr, HAS_COUNT: tl.constexpr, EARLY: tl.constexpr = False,
):  # fmt: skip
    """State and sums have rows of ROW and SUMS_ROW numbers, of which V and one are theirs."""
    FEATURES: tl.constexpr = 1 + K + K * (K + 1) // 2
    head = tl.program_id(0)
    batch = (head // heads).to(tl.int64)
    q_pointer += batch * q_batch + (head % heads) * q_head
    k_pointer += batch * k_batch + (head % heads) * k_head
    v_pointer += batch * v_batch + (head % heads) * v_head
    state += head.to(tl.int64) * (FEATURES * ROW)
    sums += head.to(tl.int64) * (FEATURES * SUMS_ROW)
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
            place = state + feature[:, None] * ROW + values[None, :]
            mask = exists[:, None] & (values < V)[None, :]
            if EARLY:  # nobody else writes the state: it may be on its way before the wait
                held = tl.load(place, mask=mask, other=0.0).to(tl.float32)
                follow(tile == 0)
                v = tl.load(v_pointer + values, mask=values < V, other=0.0).to(tl.float32)
            phi_q = tl.where(exists, features(q_pointer, feature, i, j, K), 0.0)
            phi_k = tl.where(exists, features(k_pointer, feature, i, j, K), 0.0)
            if not EARLY:
                held = tl.load(place, mask=mask, other=0.0).to(tl.float32)
            rows = held + phi_k[:, None] * v[None, :]
            if tile == 0:
                sum_of_k = tl.load(sums + feature * SUMS_ROW, mask=exists, other=0.0) + phi_k
                tl.store(sums + feature * SUMS_ROW, sum_of_k, mask=exists)
                z += phi_q * sum_of_k
            row = head % heads * FEATURES + feature
            kept = stored(rows, row, tile // 2, counted(count, batch, HAS_COUNT), V, state.dtype.element_ty)
            tl.store(place, kept, mask=mask)
            y += tl.sum(phi_q[:, None] * rows, 0)
        out = y / tl.sum(z, 0)
        y_place = y_pointer + head.to(tl.int64) * V + values
        tl.store(y_place, out.to(y_pointer.dtype.element_ty), mask=values < V)


@torch.library.custom_op("basedbench::taylor_attention_step", mutates_args=("state", "sums"))
def step(q: Tensor, k: Tensor, v: Tensor, state: Tensor, sums: Tensor, count: Tensor | None = None) -> Tensor:
    """y (B,H,V) in the dtype of v; `state` (B,H,F,V) and `sums` (B,H,F) take the token in, see `unsupported`."""
    q, k, v = (dense_rows(x) for x in (q, k, v))
    batch, heads, keys = q.shape
    values, features = v.shape[-1], state.shape[2]
    y = torch.empty(v.shape, dtype=v.dtype, device=v.device)
    block = min(256, max(32, triton.next_power_of_2(features)))
    # Three programs a multiprocessor, not two; wider heads would spill for it.
    most = {"maxnreg": 80} if state.dtype == torch.bfloat16 and values <= 64 else {}
    step_kernel[(batch * heads,)](
        q, k, v, y, state, sums, count, *q.stride()[:2], *k.stride()[:2], *v.stride()[:2], heads,
        K=keys, V=values, ROW=state.stride(2), SUMS_ROW=sums.stride(2),
        TILE=min(64, max(2, triton.next_power_of_2(values))), BLOCK=block, HAS_COUNT=count is not None,
        num_warps=block // 32, **most, **dependent(),
    )  # fmt: skip
    return y


@step.register_fake
def _(q, k, v, state, sums, count=None):
    return v.new_empty(v.shape)


def unsupported(q_BHK: Tensor, k_BHK: Tensor, v_BHV: Tensor, state_BHFV: Tensor, sums_BHF: Tensor) -> str | None:
    """Why the kernel does not take these inputs, or None if it does."""
    if state_BHFV.dtype not in STATE_DTYPES or sums_BHF.dtype != torch.float32:
        return "the state must be float32 or bfloat16, the sums float32"
    if state_BHFV.stride(-1) != 1 or not (_of_even_rows(state_BHFV[..., 0]) and _of_even_rows(sums_BHF)):
        return "the state and the sums must lie row behind row"
    if q_BHK.shape[-1] > 64 or v_BHV.shape[-1] > 256 or v_BHV.numel() == 0:
        return "key width must be at most 64, value width at most 256"
    if differentiated(q_BHK, k_BHK, v_BHV, state_BHFV, sums_BHF):
        return "a step has no gradient"
    return None


def _of_even_rows(x_BHF: Tensor) -> bool:
    """Whether features lie at one distance from each other throughout."""
    _, heads, features = x_BHF.shape
    batch_stride, head_stride, row = x_BHF.stride()
    return (len(x_BHF) == 1 or batch_stride == heads * head_stride) and (heads == 1 or head_stride == features * row)
