"""The decode step of taylor_attention: one pass over the packed float32 state, read and written once, in place.

Memory bound: 2 F (V + 1) floats per head against about as many multiply-adds. A program has a head to itself, for the
normaliser needs all features of a row. Up to 256 features it takes one head after another: what it loads of the next
one is on its way while this one is summed up and written, so that memory never waits for a program's beginning and end.

In place, hence never autotuned, and every element must have one thread that loads and stores it: a vector shorter than
the threads of a program is replicated over them, and one thread may load what another has stored. So a program has as
many threads as a block has features: then also each feature is formed once, and not by every thread that needs it.
"""

# mypy: allow-untyped-defs

import torch
import triton
import triton.language as tl
from torch import Tensor

from .dense_rows import dense_rows
from .multiprocessors import multiprocessors

MOST = 256  # features of a block, and threads
REGISTERS = 128  # of a thread: with two heads in them, 512 threads fit on a multiprocessor


@triton.jit
def _dimensions(feature, K: tl.constexpr):
    """Dimensions i <= j of a packed square feature, numbered from 0 row by row: the triangular root, rounded safely."""
    odd: tl.constexpr = 2 * K + 1
    root = tl.sqrt((odd * odd - 8 * feature).to(tl.float32))
    i = ((odd - root) * 0.5 + 1e-3).to(tl.int32)
    return i, feature - i * K + i * (i - 1) // 2 + i


@triton.jit
def _factors(feature, K: tl.constexpr, FEATURES: tl.constexpr):
    """A packed feature of [1, x / K^(1/4), {x_i x_j c_ij}_i<=j] is x[a] x[b] c: a and b, -1 for a factor of 1, and c.

    c is zero beyond the last feature.
    """
    linear = feature <= K
    i, j = _dimensions(tl.minimum(tl.maximum(feature - 1 - K, 0), FEATURES - 2 - K), K)
    c = tl.where(linear, K**-0.25, tl.where(i == j, (0.5 / K) ** 0.5, (1.0 / K) ** 0.5))
    c = tl.where(feature == 0, 1.0, tl.where(feature < FEATURES, c, 0.0))
    return tl.where(linear, feature - 1, i), tl.where(linear, -1, j), c


@triton.jit
def _factor(x, place):
    return tl.load(x + place, mask=place >= 0, other=1.0).to(tl.float32)


@triton.jit
def _of_head(x, head, heads, by_batch, by_head):
    """Where a head's row begins."""
    return x + tl.cast(head // heads, tl.int64) * by_batch + (head % heads) * by_head


@triton.jit(do_not_specialize=["heads", "count"])
def heads_kernel(
    q, k, v, y, state, q_batch, q_head, k_batch, k_head, v_batch, v_head, heads, count,
    K: tl.constexpr, V: tl.constexpr, TILE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """All features are one block; `count` heads in all, TILE of a head's values at a time."""
    FEATURES: tl.constexpr = 1 + K + K * (K + 1) // 2
    SIZE: tl.constexpr = FEATURES * (V + 1)
    feature, value = tl.arange(0, BLOCK), tl.arange(0, TILE)
    exists, place_F, place_FV = feature < FEATURES, feature * (V + 1) + V, feature[:, None] * (V + 1) + value[None, :]
    a, b, c = _factors(feature, K, FEATURES)
    first = tl.program_id(0)
    own = state + tl.cast(first, tl.int64) * SIZE
    q_row, k_row = _of_head(q, first, heads, q_batch, q_head), _of_head(k, first, heads, k_batch, k_head)
    rows_FV = tl.load(own + place_FV, mask=exists[:, None] & (value < V)[None, :], other=0.0)
    sums_F = tl.load(own + place_F, mask=exists, other=0.0)
    phi_q, phi_k = _factor(q_row, a) * _factor(q_row, b) * c, _factor(k_row, a) * _factor(k_row, b) * c
    v_V = tl.load(_of_head(v, first, heads, v_batch, v_head) + value, mask=value < V, other=0.0).to(tl.float32)
    for head in tl.range(first, count, tl.num_programs(0), num_stages=1):
        own = state + tl.cast(head, tl.int64) * SIZE
        more = head + tl.num_programs(0) < count
        following = tl.where(more, head + tl.num_programs(0), head)
        other = state + tl.cast(following, tl.int64) * SIZE
        q_row, k_row = _of_head(q, following, heads, q_batch, q_head), _of_head(k, following, heads, k_batch, k_head)
        q_a, q_b, k_a, k_b = _factor(q_row, a), _factor(q_row, b), _factor(k_row, a), _factor(k_row, b)
        next_sums_F = tl.load(other + place_F, mask=exists & more, other=0.0)
        for tile in tl.static_range(0, V, TILE):
            # The next tile, of this head or else the first one of the head that follows.
            if tile + TILE < V:
                ahead, from_head, column = own, head, tile + TILE + value
                inside = column < V
            else:
                ahead, from_head, column = other, following, value
                inside = (column < V) & more
            next_FV = tl.load(ahead + (column - value) + place_FV, mask=exists[:, None] & inside[None, :], other=0.0)
            next_V = tl.load(_of_head(v, from_head, heads, v_batch, v_head) + column, mask=inside, other=0.0)
            if tile == 0:
                sums_F += phi_k
                tl.store(own + place_F, sums_F, mask=exists)
                z = tl.sum(phi_q * sums_F, 0)
            rows_FV += phi_k[:, None] * v_V[None, :]
            written = tile + value < V
            tl.store(own + tile + place_FV, rows_FV, mask=exists[:, None] & written[None, :])
            y_V = tl.sum(phi_q[:, None] * rows_FV, 0) / z
            tl.store(y + tl.cast(head, tl.int64) * V + tile + value, y_V.to(y.dtype.element_ty), mask=written)
            rows_FV, v_V = next_FV, next_V.to(tl.float32)
        phi_q, phi_k, sums_F = q_a * q_b * c, k_a * k_b * c, next_sums_F


@triton.jit
def step_kernel(
    q_pointer, k_pointer, v_pointer, y_pointer, state,
    q_batch, q_head, k_batch, k_head, v_batch, v_head, heads,
    K: tl.constexpr, V: tl.constexpr, TILE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One head, in any number of blocks of features."""
    FEATURES: tl.constexpr = 1 + K + K * (K + 1) // 2
    head = tl.program_id(0)
    q_pointer = _of_head(q_pointer, head, heads, q_batch, q_head)
    k_pointer = _of_head(k_pointer, head, heads, k_batch, k_head)
    v_pointer = _of_head(v_pointer, head, heads, v_batch, v_head)
    state += head.to(tl.int64) * (FEATURES * (V + 1))
    z = tl.zeros([BLOCK], tl.float32)
    for tile in tl.static_range(0, V, TILE):
        values = tile + tl.arange(0, TILE)
        v = tl.load(v_pointer + values, mask=values < V, other=0.0).to(tl.float32)
        y = tl.zeros([TILE], tl.float32)
        for first in tl.range(0, FEATURES, BLOCK):
            feature = first + tl.arange(0, BLOCK)
            exists = feature < FEATURES
            a, b, c = _factors(feature, K, FEATURES)
            phi_q = _factor(q_pointer, a) * _factor(q_pointer, b) * c
            phi_k = _factor(k_pointer, a) * _factor(k_pointer, b) * c
            place = state + feature[:, None] * (V + 1) + values[None, :]
            mask = exists[:, None] & (values < V)[None, :]
            rows = tl.load(place, mask=mask, other=0.0) + phi_k[:, None] * v[None, :]
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
    given = q, k, v, y, state, *q.stride()[:2], *k.stride()[:2], *v.stride()[:2], heads
    count, block = batch * heads, max(32, triton.next_power_of_2(features))
    if block > MOST:
        tile = min(64, triton.next_power_of_2(values))
        step_kernel[(count,)](*given, K=keys, V=values, TILE=tile, BLOCK=MOST, num_warps=MOST // 32)
        return y
    programs = min(count, multiprocessors(state.device) * (512 // block))
    tile = triton.next_power_of_2(values) if values <= 64 else 32
    heads_kernel[(programs,)](
        *given, count, K=keys, V=values, TILE=tile, BLOCK=block, num_warps=block // 32, maxnreg=REGISTERS
    )
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
