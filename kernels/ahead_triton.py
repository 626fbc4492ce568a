"""While a decode step's small kernel runs, memory is idle: ask there for the weights that the next product reads.

A product of few rows streams its weights once: its time is a constant (launch, first reads, last writes) and bytes over
bandwidth. Between two products stands a kernel of a few microseconds that moves little. Its last programs ask for the
first columns of all of the next weight's rows, so that every tile of the product finds its beginning in the L2 cache.
Only asks: nothing is read into registers, nothing waits, and a wrong guess costs nothing but the traffic.

Such a kernel is also launched as a dependent of the one before (programmatic dependent launch): it starts while that
one ends, asks for the weights, and waits for its results before it touches anything else. What is asked for before the
wait may be anything: the cache is the point where all multiprocessors agree. **Every kernel launched so has to wait**,
or the one behind it could overtake the one before it.
"""

# mypy: allow-untyped-defs

from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra import cuda as tl_cuda

# Bytes asked for: about what memory delivers while a small kernel runs and the product begins. 0: nothing, and launches
# as they always were.
LIMIT = 8 * 2**20
PIECE = tl.constexpr(512)  # bytes in one request, of one row; the instruction below says so too
FETCHERS = tl.constexpr(256)  # programs that ask: the last ones, which in a long kernel run when the product is near
LANES = tl.constexpr(128)
REQUEST = tl.constexpr(
    "{ .reg .pred p; setp.lt.s32 p, $2, $3; @p cp.async.bulk.prefetch.L2.global [$1], 512; mov.u32 $0, 0; }"
)


@triton.jit
def request(ahead, rows, pieces, row_bytes):
    """The last programs ask for pieces of `ahead`: the first of every row, then the second of every row, and so on."""
    programs = tl.num_programs(0) * tl.num_programs(1)
    first = tl.maximum(programs - FETCHERS, 0)
    mine = tl.program_id(0) + tl.num_programs(0) * tl.program_id(1) - first
    if mine >= 0:
        for start in range(mine * LANES, pieces, (programs - first) * LANES):
            piece = start + tl.arange(0, LANES)
            place = ahead.to(tl.int64) + (piece % rows).to(tl.int64) * row_bytes + piece // rows * PIECE
            tl.inline_asm_elementwise(
                REQUEST, "=r,l,r,r", [place, piece, pieces], dtype=tl.int32, is_pure=False, pack=1
            )


@triton.jit
def depend():
    """Let the next kernel start, and wait for the one before."""
    tl_cuda.gdc_launch_dependents()
    tl_cuda.gdc_wait()


@triton.jit
def begin(ahead, rows, pieces, row_bytes, AHEAD: tl.constexpr):
    """The first statement of a kernel: ask for `ahead`, and wait for the kernel before."""
    if AHEAD:
        request(ahead, rows, pieces, row_bytes)
        depend()


@cache
def _supported(device: int) -> bool:
    return torch.cuda.get_device_capability(device) >= (9, 0) and hasattr(tl_cuda, "gdc_wait")


def options(weight: Tensor | None) -> dict[str, Any]:
    """The arguments of a launch whose kernel calls `begin` or `request`; the next product reads `weight` (E, D)."""
    if weight is None or LIMIT == 0 or not _usable(weight):
        return {"ahead": None, "ahead_rows": 0, "ahead_pieces": 0, "ahead_bytes": 0, "AHEAD": False}
    rows, row_bytes = weight.shape[0], weight.shape[1] * weight.element_size()
    pieces = min(rows * (row_bytes // PIECE.value), LIMIT // PIECE.value)
    return {
        "ahead": weight, "ahead_rows": rows, "ahead_pieces": pieces, "ahead_bytes": row_bytes, "AHEAD": True,
        "launch_pdl": True,
    }  # fmt: skip


def launched_early(weight: Tensor) -> dict[str, bool]:
    """For kernels that ask for their own weight: whether they do and are launched as dependents."""
    early = LIMIT > 0 and _usable(weight)
    return {"EARLY": True, "launch_pdl": True} if early else {"EARLY": False}


def _usable(weight: Tensor) -> bool:
    """On a device that can, and where rows begin at multiples of 16 bytes."""
    aligned = weight.is_contiguous() and weight.shape[1] * weight.element_size() % 16 == 0
    return aligned and weight.is_cuda and _supported(weight.device.index or 0)
