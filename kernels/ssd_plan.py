"""Sizes and launch shapes of a call of ssd, and its inputs as the kernels take them.

Launch shapes are fixed by the class of the inputs (widths, dtype), never tuned at run time.
"""

# mypy: allow-untyped-defs

from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from .dense_rows import dense_rows
from .gluon_modules import gluon_module
from .packing import Packing
from .precision import float32_precision
from .ssd import WALKED_CHANNELS, WALKED_STATES

# Programs that fill an H200 (132 multiprocessors), and the fewest chunks worth a segment of their own.
PROGRAMS, SEGMENT = 264, 8
# Walks of one warp: the sequences x heads from which on they fill the device, and the tokens of their chunks.
WALKS, STRIDE = 256, 16


def padded(width: int) -> int:
    return max(16, triton.next_power_of_2(width))


def launch_shape(kernel: str, widths: dict[str, int], precision: str) -> dict[str, int]:
    """Warps and stages of a kernel: "output", "states" or "gradient"."""
    wide = kernel == "output" and widths["BN"] > 128
    stages = 3 if kernel == "states" and precision == "bf16" else 2 if precision == "bf16" else 1
    return {"num_warps": 8 if wide else 4, "num_stages": stages}


def precision_of(dtype: torch.dtype) -> str:
    """What operands are rounded to, see `taylor_tiles`."""
    if dtype == torch.bfloat16:
        return "bf16"
    highest = dtype == torch.float32 and float32_precision() == "highest"
    return "tf32x3" if highest else "tf32"


class Plan(NamedTuple):
    """Sizes and launch shapes of one call; of packed examples their number, and the length of the longest."""

    batch: int
    length: int
    heads: int
    groups: int
    widths: dict[str, int]
    precision: str
    packing: Packing | None = None

    @property
    def walks(self) -> bool:
        """Whether single warps walk over the sequences, there and back (`ssd_walk`).

        Packed examples have no other kernels: they walk even where they leave the device half empty.
        """
        many = self.sequences >= WALKS or self.packing is not None
        fits = many and self.widths["BN"] <= WALKED_STATES and self.widths["BP"] <= WALKED_CHANNELS
        return fits and not isinstance(gluon_module("ssd_walk_backward_gluon"), str)

    @property
    def chunk(self) -> int:
        """Tokens of a chunk. Wide tiles of float32 leave room for half as many."""
        if self.walks:
            return STRIDE
        entries = self.widths["BN"] * (1 if self.precision == "bf16" else 2)
        return 64 if entries <= 128 else 32

    @property
    def chunks(self) -> int:
        return triton.cdiv(self.length, self.chunk)

    @property
    def sequences(self) -> int:
        return self.batch * self.heads

    @property
    def per_group(self) -> int:
        return self.heads // self.groups

    @property
    def state(self) -> int:
        """Entries of a padded state."""
        return self.widths["BP"] * self.widths["BN"]

    @property
    def flags(self) -> dict[str, Any]:
        return {"T": self.chunk, "EVEN": self.length % self.chunk == 0, "PRECISION": self.precision}

    def segments(self, programs: int) -> tuple[int, int]:
        """(chunks of a segment, segments) for a launch that would have `programs` programs without segments."""
        wanted = min(PROGRAMS // programs, self.chunks // SEGMENT)
        size = triton.cdiv(self.chunks, max(1, wanted))
        return size, triton.cdiv(self.chunks, size)

    def splits(self) -> tuple[int, int]:
        """(heads of a split, splits) of the heads of a group in the backward."""
        programs = self.batch * self.chunks * self.groups
        size = triton.cdiv(self.per_group, min(self.per_group, max(1, PROGRAMS // 2 // programs)))
        return size, triton.cdiv(self.per_group, size)


class Inputs(NamedTuple):
    """The inputs, rows dense; what is missing is None."""

    x: Tensor
    dt: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor | None
    z: Tensor | None
    bias: Tensor | None
    initial: Tensor | None
    packing: Packing | None = None

    @property
    def strides(self) -> tuple[int, ...]:
        """Of x, dt, B, C."""
        return tuple(stride for part in (self.x, self.dt, self.B, self.C) for stride in part.stride()[:3])

    @property
    def plan(self) -> Plan:
        return plan_of(self.x, self.B, self.packing)


def batch_and_row(x: Tensor, packing: Packing | None) -> tuple[int, ...]:
    """Strides; packed examples are as far from each other as their first tokens are, which kernels read."""
    batch, row = x.stride()[:2]
    return batch if packing is None else row, row


def plan_of(x: Tensor, B: Tensor, packing: Packing | None = None) -> Plan:
    (batch, length, heads, width), (groups, states) = x.shape, B.shape[2:]
    if packing is not None:
        batch, length = packing.batch, packing.longest
    widths = {"P": width, "N": states, "BP": padded(width), "BN": padded(states)}
    return Plan(batch, length, heads, groups, widths, precision_of(x.dtype), packing)


def dense_inputs(x, dt, A, B, C, D, z, bias, initial, packing: Packing | None = None) -> Inputs:
    x, B, C, z = (dense_rows(part) for part in (x, B, C, z))
    A, D, bias, initial = (part if part is None else part.contiguous() for part in (A, D, bias, initial))
    return Inputs(x, dt, A, B, C, D, z, bias, initial, packing)
