"""`attention_decode` and `sliding_window_step` in Triton: one launch, or two where the sequence is cut into parts.

Rings of 16-bit numbers that fit into shared memory several times take the way of `sliding_window_step_gluon`; what
follows is about the others.

Memory bound: each key and value is read once, for about as many multiply-adds as it has elements. A program takes one
head of one sequence (or a part of its keys) and walks over tiles of keys. Every row of a tile keeps a softmax and
outputs of its own; they are put together once, at the end, so that no warp waits for another inside the loop. Heads of
any width: a tile is as wide as the next power of two, its columns beyond the head are masked.

The new token is part 0's own: it comes from the inputs, not from the cache, and is written once all reads are done.
In a ring its slot is that of the oldest key, which it still reads. Parts are cut by each sequence's length, read on the
device: the grid depends on shapes alone, and programs with nothing to read leave at once.
"""

# mypy: allow-untyped-defs

import math
from functools import lru_cache
from types import ModuleType
from typing import cast

import torch
import triton
import triton.language as tl
from torch import Tensor

from .dense_rows import dense_rows
from .dependents import dependent
from .dependents_triton import follow
from .differentiated import differentiated
from .gluon_modules import gluon_module
from .rotary import Angles

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
LARGEST_HEAD = 256
TILE = 1024  # elements of keys (or of values) in a warp's part of a tile: 32 a thread, and as many outputs
ENOUGH = 1024  # programs; with fewer heads than that the sequence is cut
MOST_PARTS = 32
STAGES = 1  # of the loop over keys: with more, tiles wait in shared memory
RINGS = "sliding_window_step_gluon"
LARGEST_RING = 48 * 1024  # bytes of a head's ring in shared memory: four programs a multiprocessor of 228 kB
MANY = 256  # programs of a ring each: with so many, two warps do; fewer programs are each the sooner done with four
NEVER = tl.constexpr(-1e30)  # a peak below every score: unlike -inf, it can be subtracted from -inf


@triton.jit
def _head(x, column, cos, sin, WIDTH: tl.constexpr, HALF: tl.constexpr):
    """A head, its first 2 HALF dimensions turned by the angles at cos and sin, rounded to its dtype."""
    head = tl.load(x + column, mask=column < WIDTH, other=0.0)
    if HALF > 0:
        first, turns = column < HALF, column < 2 * HALF
        place = tl.where(first, column, column - HALF)
        partner = tl.load(x + tl.where(first, column + HALF, place), mask=turns, other=0.0).to(tl.float32)
        c = tl.load(cos + place, mask=turns, other=1.0).to(tl.float32)
        s = tl.load(sin + place, mask=turns, other=0.0).to(tl.float32)
        head = (head.to(tl.float32) * c + partner * tl.where(first, -s, s)).to(head.dtype)
    return head


@triton.jit
def decode_kernel(
    q, k, v, keys, values, position, cos, sin, y, parts, H, slots, factor, each,
    q_batch, q_head, k_batch, k_head, v_batch, v_head, keys_rows, values_rows, cos_row, sin_row,
    KEYS_ROW: tl.constexpr, KEYS_HEAD: tl.constexpr, VALUES_ROW: tl.constexpr, VALUES_HEAD: tl.constexpr,
    K: tl.constexpr, V: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr, HALF: tl.constexpr,
    GROUP: tl.constexpr, ROWS: tl.constexpr, PARTS: tl.constexpr, RING: tl.constexpr, STAGES: tl.constexpr,
    EARLY: tl.constexpr = False,
):  # fmt: skip
    """factor = scale * log2(e): scores are in base 2. Strides of rows and heads are constants, those of sequences
    count rows: so loads are as wide as a head's width allows."""
    follow(EARLY)
    b, h = (tl.program_id(0) // H).to(tl.int64), tl.program_id(0) % H
    c_K, c_V, row_J = tl.arange(0, BLOCK_K), tl.arange(0, BLOCK_V), tl.arange(0, ROWS)
    g, part = h // GROUP, tl.program_id(1)
    place = tl.load(position + b * each).to(tl.int64)
    filled = tl.minimum(place, slots).to(tl.int32)
    if HALF > 0:
        cos += b * cos_row
        sin += b * sin_row
    q_K = _head(q + b * q_batch + h * q_head, c_K, cos, sin, K, HALF).to(tl.float32) * factor
    keys += b * keys_rows * KEYS_ROW + g * KEYS_HEAD
    values += b * values_rows * VALUES_ROW + g * VALUES_HEAD
    span = tl.cdiv(filled, PARTS * ROWS) * ROWS
    stop = tl.minimum(part * span + span, filled)
    peak_J = tl.full([ROWS], NEVER, tl.float32)
    sum_J = tl.zeros([ROWS], tl.float32)
    y_JV = tl.zeros([ROWS, BLOCK_V], tl.float32)
    for start in tl.range(part * span, stop, ROWS, num_stages=STAGES):
        read_J = start + row_J < stop
        k_JK = tl.load(
            keys + tl.cast(start, tl.int64) * KEYS_ROW + (row_J * KEYS_ROW)[:, None] + c_K[None, :],
            mask=read_J[:, None] & (c_K < K)[None, :], other=0.0,
        )  # fmt: skip
        v_JV = tl.load(
            values + tl.cast(start, tl.int64) * VALUES_ROW + (row_J * VALUES_ROW)[:, None] + c_V[None, :],
            mask=read_J[:, None] & (c_V < V)[None, :], other=0.0,
        )  # fmt: skip
        s_J = tl.where(read_J, tl.sum(k_JK.to(tl.float32) * q_K[None, :], 1), float("-inf"))
        top_J = tl.maximum(peak_J, s_J)
        p_J, shrink_J = tl.exp2(s_J - top_J), tl.exp2(peak_J - top_J)
        sum_J = sum_J * shrink_J + p_J
        y_JV = y_JV * shrink_J[:, None] + p_J[:, None] * v_JV.to(tl.float32)
        peak_J = top_J
    k_K = _head(k + b * k_batch + g * k_head, c_K, cos, sin, K, HALF)
    v_V = tl.load(v + b * v_batch + g * v_head + c_V, mask=c_V < V, other=0.0)
    own = tl.where(part == 0, tl.sum(q_K * k_K.to(tl.float32), 0), float("-inf"))
    top = tl.maximum(tl.max(peak_J, 0), own)
    weight_J, own = tl.exp2(peak_J - top), tl.exp2(own - top)
    total = tl.sum(sum_J * weight_J, 0) + own
    y_V = tl.sum(y_JV * weight_J[:, None], 0) + own * v_V.to(tl.float32)
    line = tl.program_id(0).to(tl.int64)
    if PARTS == 1:
        tl.store(y + line * V + c_V, (y_V / total).to(y.dtype.element_ty), mask=c_V < V)
    else:
        parts += (line * PARTS + part) * (V + 2)
        tl.store(parts + c_V, y_V, mask=c_V < V)
        tl.store(parts + V, top)
        tl.store(parts + V + 1, total)
    slot = place % slots if RING else place
    mine = (part == 0) & (h % GROUP == 0) & (slot < slots)
    tl.debug_barrier()  # in a ring every thread has read the slot by now
    tl.store(keys + slot * KEYS_ROW + c_K, k_K.to(keys.dtype.element_ty), mask=mine & (c_K < K))
    tl.store(values + slot * VALUES_ROW + c_V, v_V.to(values.dtype.element_ty), mask=mine & (c_V < V))


@triton.jit
def join_kernel(
    parts, y, V: tl.constexpr, BLOCK_V: tl.constexpr, PARTS: tl.constexpr, BLOCK_P: tl.constexpr,
    EARLY: tl.constexpr = False,
):  # fmt: skip
    """The parts of a head, each unnormalised beside its peak and its sum."""
    follow(EARLY)
    line = tl.program_id(0).to(tl.int64)
    p, c_V = tl.arange(0, BLOCK_P), tl.arange(0, BLOCK_V)
    parts += (line * PARTS + p) * (V + 2)
    peak_P = tl.load(parts + V, mask=p < PARTS, other=NEVER)
    weight_P = tl.exp2(peak_P - tl.max(peak_P, 0))
    total = tl.sum(tl.load(parts + V + 1, mask=p < PARTS, other=0.0) * weight_P, 0)
    y_PV = tl.load(parts[:, None] + c_V[None, :], mask=(p < PARTS)[:, None] & (c_V < V)[None, :], other=0.0)
    y_V = tl.sum(y_PV * weight_P[:, None], 0) / total
    tl.store(y + line * V + c_V, y_V.to(y.dtype.element_ty), mask=c_V < V)


def part_count(heads: int, slots: int, rows: int) -> int:
    """Parts of a sequence: one if there are heads enough, else parts of at least four full tiles of `rows` keys."""
    wanted = triton.cdiv(ENOUGH, heads)
    return max(1, min(wanted, slots // (4 * rows), MOST_PARTS))


def tile(key_dim: int, value_dim: int, element_bytes: int) -> tuple[int, int]:
    """Keys of a tile, and warps of a program.

    One warp where loads are so narrow that a row would be spread over several: they would meet at every sum over it.
    """
    width = max(_padded(key_dim), _padded(value_dim))
    wide = math.gcd(16, key_dim * element_bytes, value_dim * element_bytes) // element_bytes
    warps = 4 if width // wide <= 32 else 1
    return max(1, warps * TILE // width), warps


def _padded(width: int) -> int:
    return max(16, triton.next_power_of_2(width))


@torch.library.custom_op("basedbench::attention_decode", mutates_args=("keys", "values"))
def operator(
    q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, position: Tensor, cos: Tensor | None,
    sin: Tensor | None, scale: float, ring: bool,
) -> Tensor:  # fmt: skip
    """y (B,H,V); `keys` and `values` (B,L,G,.) take the token in."""
    q, k, v = dense_rows(q), dense_rows(k), dense_rows(v)
    y = v.new_empty((*q.shape[:2], v.shape[-1]))
    if ring and _whole(q, k, v, keys, values):
        _launch_whole(q, k, v, keys, values, position, cos, sin, scale, y)
        return y
    (batch, heads, K), V, slots = q.shape, v.shape[-1], keys.shape[1]
    rows, warps = tile(K, V, max(keys.element_size(), values.element_size()))
    count = 1 if ring else part_count(batch * heads, slots, rows)
    parts = y if count == 1 else v.new_empty((batch * heads * count * (V + 2),), dtype=torch.float32)
    rows_of_angles = (0, 0) if cos is None or sin is None else (cos.stride(0), sin.stride(0))
    decode_kernel[(batch * heads, count)](
        q, k, v, keys, values, position, cos, sin, y, parts, heads, slots, scale * math.log2(math.e),
        position.stride(0), *q.stride()[:2], *k.stride()[:2], *v.stride()[:2],
        keys.stride(0) // keys.stride(1), values.stride(0) // values.stride(1), *rows_of_angles,
        *keys.stride()[1:3], *values.stride()[1:3], K=K, V=V, BLOCK_K=_padded(K), BLOCK_V=_padded(V),
        HALF=0 if cos is None else cos.shape[-1], GROUP=heads // k.shape[1], ROWS=rows, PARTS=count, RING=ring,
        STAGES=STAGES, num_warps=warps, **dependent(),
    )  # fmt: skip
    if count > 1:
        block = triton.next_power_of_2(count)
        join_kernel[(batch * heads,)](parts, y, V=V, BLOCK_V=_padded(V), PARTS=count, BLOCK_P=block, **dependent())
    return y


def _whole(*given: Tensor) -> bool:
    """Whether a head's ring goes through shared memory, by vectors of 16 bytes (q, k, v, keys, values)."""
    strides = [n for x in given for n in (x.shape[-1], *x.stride()[:-1])]
    if any(x.element_size() != 2 or x.data_ptr() % 16 for x in given) or any(n % 8 for n in strides):
        return False
    keys, values = given[3:]
    rows, block = _ring_tile(keys, values)
    fits = keys.dtype == values.dtype and 3 * rows * block * keys.element_size() <= LARGEST_RING
    return fits and _has_copies(keys.device)


@lru_cache
def _has_copies(device: torch.device) -> bool:
    """Whether copies to shared memory pass by the registers: from compute capability 8.0 on, where a program may have
    at least 99 kB of it, and before that 64 at most."""
    capable = device.type != "cuda" or torch.cuda.get_device_capability(device) >= (8, 0)
    return capable and not isinstance(gluon_module(RINGS), str)


def _ring_tile(keys: Tensor, values: Tensor) -> tuple[int, int]:
    """Slots of half a ring, and the width of a tile of keys or values."""
    return _padded(triton.cdiv(keys.shape[1], 2)), _padded(max(keys.shape[-1], values.shape[-1]))


def _launch_whole(
    q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, position: Tensor, cos: Tensor | None,
    sin: Tensor | None, scale: float, y: Tensor,
) -> None:  # fmt: skip
    (batch, heads, K), V, slots = q.shape, v.shape[-1], keys.shape[1]
    rows_of_angles = (0, 0) if cos is None or sin is None else (cos.stride(0), sin.stride(0))
    rows, block = _ring_tile(keys, values)
    warps = 2 if batch * heads >= MANY else 4
    cast(ModuleType, gluon_module(RINGS)).ring_kernel[(batch * heads,)](
        q, k, v, keys, values, position, cos, sin, y, heads, scale * math.log2(math.e), position.stride(0),
        *q.stride()[:2], *k.stride()[:2], *v.stride()[:2], keys.stride(0) // keys.stride(1),
        values.stride(0) // values.stride(1), *keys.stride()[1:3], *values.stride()[1:3], *rows_of_angles, K=K, V=V,
        SLOTS=slots, BLOCK=block, ROWS=rows, HALF=0 if cos is None else cos.shape[-1], WARPS=warps,
        num_warps=warps, **dependent(),
    )  # fmt: skip


@operator.register_fake
def _(q, k, v, keys, values, position, cos, sin, scale, ring):
    return v.new_empty((*q.shape[:2], v.shape[-1]))


def unsupported(q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, angles: Angles | None) -> str | None:
    """Why the kernel does not take these inputs, or None if it does."""
    given = (q, k, v, keys, values, *(angles or ()))
    if any(x.dtype not in DTYPES for x in given):
        return "inputs must be float32, float16 or bfloat16"
    if keys.stride(-1) != 1 or values.stride(-1) != 1 or any(x.stride(-1) != 1 for x in angles or ()):
        return "caches and angles must have their last dimension side by side"
    if any(x.stride(0) % max(1, x.stride(1)) for x in (keys, values)):
        return "sequences of a cache must be whole rows apart"
    if max(q.shape[-1], v.shape[-1]) > LARGEST_HEAD or not q.numel() or not v.numel() or not keys.shape[1]:
        return f"heads must be at most {LARGEST_HEAD} wide"
    if differentiated(*given):
        return "a step has no gradient"
    return None


def attention_decode(
    q_BHK: Tensor, k_BGK: Tensor, v_BGV: Tensor, k_BLGK: Tensor, v_BLGV: Tensor, length_B: Tensor, *,
    scale: float | None, angles: Angles | None, ring: bool,
) -> Tensor:  # fmt: skip
    """`attention_decode.reference` by the kernels above; `ring`: the caches hold the last L tokens, as equal heads."""
    cos_BR, sin_BR = angles or (None, None)
    scale = q_BHK.shape[-1] ** -0.5 if scale is None else scale
    y_BHV: Tensor = operator(q_BHK, k_BGK, v_BGV, k_BLGK, v_BLGV, length_B, cos_BR, sin_BR, scale, ring)
    return y_BHV
