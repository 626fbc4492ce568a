"""y = x W^T + b for one row per sequence, as a decode step has it; gated, y = a * silu(g), a and g its halves.

The products are memory bound: W is read once for a few rows. On Hopper, inside `dependent_launches`, a kernel of our
own asks for its weights before the kernel in front of it is done (row_linear_gluon.py); elsewhere, and for shapes that
do not fill the device with it, they are PyTorch's. Accumulation in float32, in an order that depends on the shape
alone; a gate is applied to float32 sums.

With `parts` y may come as P summands (P,B,E) in float32, which `add_norm_of_parts` adds up on the way.
"""

from functools import cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .costs import total_bytes, total_flops
from .dependent_launch import early_options
from .gluon_modules import gluon_module
from .swiglu import swiglu

MODULE = "row_linear_gluon"
WIDTH = 64  # of a tile
SHARED_BYTES = 200 * 1024  # of a ring of tiles
MOST_ROWS = 128
MOST_PARTS, MOST_JOINED = 8, 3  # summands left to the reader, or added up by one program
BUSY = 0.75  # of the multiprocessors, at least
MOST_STAGES = 12


class Plan(NamedTuple):
    """Outputs of a tile, parts of the width, stages of the ring."""

    tile: int
    split: int
    stages: int


# Shapes for which something else than `plan` is faster: (E, D, gated, parts) -> a plan, or None for PyTorch's product.
CHOSEN: dict[tuple[int, int, bool, bool], Plan | None] = {}


def plan(rows: int, outputs: int, width: int, gated: bool, parts: bool, processors: int) -> Plan | None:
    """About one program a multiprocessor, of the widest tiles that allow it; None: leave it to PyTorch."""
    if rows > MOST_ROWS or width % WIDTH or (gated and outputs % 16):
        return None
    if (outputs, width, gated, parts) in CHOSEN:
        return CHOSEN[outputs, width, gated, parts]
    steps, most = width // WIDTH, MOST_PARTS if parts else MOST_JOINED
    for tile in (128, 64):
        tiles = -(-outputs // tile)
        split = min(processors // tiles, most, steps)
        if split and tiles * split >= BUSY * processors:
            each = -(-steps // split)
            return Plan(tile, -(-steps // each), stages(rows, tile, each))
    return None


def stages(rows: int, tile: int, steps: int) -> int:
    """As deep a ring as shared memory holds and `steps` need."""
    return max(2, min(MOST_STAGES, steps, SHARED_BYTES // ((tile + _batch(rows)) * WIDTH * 2)))


def _batch(rows: int) -> int:
    return max(16, 1 << (rows - 1).bit_length())


def reference(x_BD: Tensor, weight_ED: Tensor, bias_E: Tensor | None = None, *, gated: bool = False) -> Tensor:
    """`row_linear` in PyTorch: differentiable, any device."""
    y_BE = F.linear(x_BD, weight_ED, bias_E)
    return swiglu(y_BE) if gated else y_BE


def row_linear(
    x_BD: Tensor, weight_ED: Tensor, bias_E: Tensor | None = None, *, gated: bool = False, parts: bool = False
) -> Tensor:
    """x (B,D), weight (E,D), bias (E,) -> y (B,E), gated (B,E/2), or with `parts` perhaps (P,B,E) to be added up."""
    if early_options(x_BD)["EARLY"] and _hopper(x_BD.device.index or 0):
        outputs, width = weight_ED.shape
        processors = torch.cuda.get_device_properties(x_BD.device).multi_processor_count
        tiles = plan(len(x_BD), outputs, width, gated, parts, processors)
        if tiles is not None and unsupported(x_BD, weight_ED, bias_E, gated) is None:
            from .row_linear_launch import counters, operator

            if counters(x_BD) is None:
                return reference(x_BD, weight_ED, bias_E, gated=gated)
            y: Tensor = operator(x_BD, weight_ED, bias_E, gated, parts and tiles.split > 1, *tiles)
            return y
    return reference(x_BD, weight_ED, bias_E, gated=gated)


def unsupported(x: Tensor, weight: Tensor, bias: Tensor | None, gated: bool) -> str | None:
    """Why the kernel does not take these inputs, or None if it does."""
    given = [x, weight] if bias is None else [x, weight, bias]
    if x.dim() != 2 or x.dtype != torch.bfloat16 or any(one.dtype != x.dtype for one in given):
        return "inputs must be bfloat16, x of two dimensions"
    if not weight.is_contiguous() or x.stride(1) != 1 or x.stride(0) % 8 or not x.numel():
        return "the weight must be contiguous, rows of x a multiple of 16 bytes apart"
    if any(one.data_ptr() % 16 for one in (x, weight)):
        return "addresses must be multiples of 16 bytes"
    if gated and bias is not None:
        return "a gate has no bias"
    if torch.is_grad_enabled() and any(one.requires_grad for one in given):
        return "no gradient"
    found = gluon_module(MODULE)
    return found if isinstance(found, str) else None


@cache
def _hopper(device: int) -> bool:
    return torch.cuda.get_device_capability(device) == (9, 0)


def flops(*, rows: int, width: int, outputs: int, gated: bool = False, backward: bool = False) -> int:
    """2 D E per row, three per gate."""
    return total_flops(2 * rows * width * outputs + gated * 3 * rows * (outputs // 2), backward=backward)


def bytes_moved(
    *, rows: int, width: int, outputs: int, gated: bool = False, element_bytes: int = 2, backward: bool = False
) -> int:
    """x and weight in, y out."""
    written = rows * (outputs // 2 if gated else outputs)
    return total_bytes(rows * width + outputs * width, written, element_bytes=element_bytes, backward=backward)
