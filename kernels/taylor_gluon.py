"""The Gluon form of taylor_attention on Hopper: which inputs it takes, and its launches.

Enough sequences to fill the device: one kernel, serial over each of them. Fewer: three passes, sums of the segments,
running sums, and the serial kernel from each segment's own state. Value widths beyond 64 are tiles of 64 that know
nothing of each other.

Where Triton has no Gluon for them (`gluon_modules`), the plain Triton kernels take over.
"""

from types import ModuleType
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from .gluon_modules import gluon_module, is_hopper
from .taylor_gluon_states import SLOT, final_state_kernel, running_sums_kernel
from .tensor_maps import tensor_map

# One wave of two programs per multiprocessor; more segments only move more states.
PROGRAMS = 256
SHORTEST_SEGMENT = 512
# Buffers of the serial kernel, of 64 tokens, and of the sums, of 128.
STAGES, SUMS_STAGES = 3, 3
BLOCK = 256


def _kernels() -> ModuleType | str:
    """The module with the kernels, or why there is none."""
    return gluon_module("taylor_gluon_serial")


def _mappable(x: Tensor) -> bool:
    """Whether a tensor map can describe x: aligned to 16 bytes everywhere, rows dense."""
    strides = [stride for size, stride in zip(x.shape[:3], x.stride()[:3], strict=True) if size > 1]
    return x.stride(-1) == 1 and x.data_ptr() % 16 == 0 and all(stride > 0 and stride % 8 == 0 for stride in strides)


def unsupported(q_BLHK: Tensor, k_BLHK: Tensor, v_BLHV: Tensor) -> str | None:
    """Why the Gluon kernels do not take these inputs, or None if they do."""
    if v_BLHV.dtype != torch.bfloat16 or q_BLHK.shape[-1] != 16 or v_BLHV.shape[-1] % 8:
        return "bf16, key width 16 and a value width that is a multiple of 8 only"
    if not v_BLHV.is_cuda or not is_hopper(v_BLHV.device):
        return "a GPU of compute capability 9.0 only"
    if not all(_mappable(x) for x in (q_BLHK, k_BLHK, v_BLHV)):
        return "strides and addresses must be multiples of 16 bytes"
    kernels = _kernels()
    return kernels if isinstance(kernels, str) else None


class _Plan(NamedTuple):
    """How a call is cut: `segment` tokens (a multiple of 128), `places` sequences x value tiles."""

    length: int
    heads: int
    segment: int
    segments: int
    value_tiles: int
    places: int

    @property
    def scalars(self) -> tuple[int, int, int, int, int]:
        return self.length, self.heads, self.segment, self.segments, self.value_tiles


def plan(batch: int, length: int, heads: int, value_dim: int) -> _Plan:
    value_tiles = triton.cdiv(value_dim, 64)
    places = batch * heads * value_tiles
    segments = max(1, min(PROGRAMS // places, length // SHORTEST_SEGMENT))
    segment = triton.cdiv(triton.cdiv(length, segments), 128) * 128
    return _Plan(length, heads, segment, triton.cdiv(length, segment), value_tiles, places)


def _map(x: Tensor, rows: int, columns: int) -> Any:
    """Tensor map of (B,L,H,W) in tiles of one head, rows x columns; what it reads beyond the edges is zero."""
    batch, length, heads, width = x.shape
    strides = tuple(x.stride(i) for i in (0, 2, 1, 3))
    return tensor_map(x, (batch, heads, length, width), strides, (1, 1, rows, columns))


def slots_shape(cut: _Plan) -> tuple[int, int, int]:
    """Of the states that segments begin with, and of the last one."""
    return cut.places, cut.segments + 1, SLOT.value


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    initial: Tensor | None,
    y: Tensor,
    inverse: Tensor | None,
    final: Tensor | None,
    slots: Tensor | None = None,
) -> None:
    """Writes y (B,L,H,V) and, where they are given, 1 / z (B,H,L), the final state and `slots`, which the backward
    begins its segments with; y must be contiguous."""
    kernels = _kernels()
    assert isinstance(kernels, ModuleType)
    batch, length, heads, value_dim = v.shape
    cut = plan(batch, length, heads, value_dim)
    begin = cut.segments > 1 or initial is not None
    if slots is None:
        slots = y  # nothing reads it
        if begin or final is not None:
            slots = y.new_empty(slots_shape(cut), dtype=torch.float32)
    if cut.segments > 1:
        kernels.segment_sums_kernel[(cut.places * (cut.segments - 1),)](
            _map(k, 128, 16), _map(v, 128, 64), slots, *cut.scalars, STAGES=SUMS_STAGES, num_warps=4
        )
    if begin:
        running_sums(slots, initial, cut, value_dim)
    kernels.serial_kernel[(cut.places * cut.segments,)](
        _map(q, 64, 16), _map(k, 64, 16), _map(v, 64, 64), _map(y, 64, 64),
        y if inverse is None else inverse, slots, *cut.scalars,
        BEGIN=begin, FINAL=final is not None, EVEN=cut.length % 64 == 0, INVERSE=inverse is not None, STAGES=STAGES,
        num_warps=4,
    )  # fmt: skip
    if final is not None:
        final_state_kernel[(cut.places, triton.cdiv(SLOT.value, BLOCK))](
            slots, final, cut.segments, cut.value_tiles, V=value_dim, BLOCK=BLOCK, num_warps=4
        )


def running_sums(slots: Tensor, initial: Tensor | None, cut: _Plan, value_dim: int) -> None:
    """From sums of segments to the states they begin with."""
    running_sums_kernel[(cut.places, triton.cdiv(SLOT.value, BLOCK))](
        slots, slots if initial is None else initial, cut.segments, cut.value_tiles,
        V=value_dim, INITIAL=initial is not None, BLOCK=BLOCK, num_warps=4,
    )  # fmt: skip
