"""y = x W^T + b for one row per sequence, as a decode step has it.

Memory bound: W is read once for a few rows. The products are PyTorch's. Beside them, for Hopper, stands a kernel whose
weights are on their way before the kernel in front has ended (row_linear_gluon.py). It is taken in blocks of dependents
(dependents.py), where a decode step's other kernels do not wait for each other's ends either: by itself it is no faster
than PyTorch's. What stands between two products of a step may be inside it (row_stream.py). Accumulation in float32, in
an order that depends on the plan alone. Not for training.
"""

from functools import cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .costs import total_bytes, total_flops
from .dependents import counters_left, dependent, in_block
from .differentiated import differentiated
from .gluon_modules import gluon_module, is_hopper

MODULE = "row_linear_gluon"
LEAST_ROWS, MOST_ROWS = 8, 128  # of a warpgroup product
SHARED_BYTES = 227 * 1024 - 3072  # of two rings; the rest for barriers, and for sums over rows


class Plan(NamedTuple):
    """Outputs of a tile, width of a stage, parts of the whole width, stages of the rings; whether programs meet.

    groups: programs that share a tile's rows, and need no part of each other's sums.
    """

    tile: int
    width: int
    split: int
    weight_stages: int
    x_stages: int
    meet: bool
    groups: int = 1


LARGEST_CHOSEN = 128  # rows, up to which dependents take this kernel: whole steps were faster with 8, 32 and 128
STAGE = 128  # numbers of a row
ENOUGH, ENOUGH_WHOLE = 64, 48  # programs that keep the memory busy; fewer do where none has to wait for another's part
MOST_PARTS = 8  # of a width
ROWS_TO_MEET = 16  # rows from which programs meet; with fewer the last one adds up little, and nobody waits for others


def batch_of(rows: int) -> int:
    """All rows, with those that are not there: a power of two."""
    return max(LEAST_ROWS, 1 << (rows - 1).bit_length())


def shared_bytes(rows: int, plan: Plan) -> int:
    """Of both rings."""
    return (plan.weight_stages * plan.tile + plan.x_stages * (batch_of(rows) // plan.groups)) * plan.width * 2


def fits(rows: int, outputs: int, width: int, plan: Plan, processors: int) -> bool:
    """Whether each program has something to do and room for its weights, and all that meet run at once."""
    tiles = -(-outputs // plan.tile)
    return (
        rows <= MOST_ROWS
        and batch_of(rows) // plan.groups >= LEAST_ROWS
        and plan.split <= min(-(-width // plan.width), batch_of(rows) // plan.groups)
        and tiles * plan.split * plan.groups <= processors
        and shared_bytes(rows, plan) <= SHARED_BYTES
    )


def plan_of(rows: int, outputs: int, width: int, processors: int) -> Plan | None:
    """The plan for a product among dependents; None for one that has more tiles than there are processors.

    With more than 64 rows tiles of 128 outputs are too few programs: PyTorch's product is faster then.

    Stages of 128 numbers in rings that fill shared memory; as few parts of the width as give enough programs. Groups of
    rows instead of parts where a tile's weights fit whole: they are read while the kernel in front runs, and nobody
    waits for another's sums. With more than 64 rows twice as many groups, if the processors suffice.
    """
    if rows > MOST_ROWS:
        return None
    batch = batch_of(rows)
    tile = next((size for size in ((64, 128) if rows <= 64 else (64,)) if -(-outputs // size) <= processors), None)
    if tile is None:
        return None
    tiles, steps = -(-outputs // tile), -(-width // STAGE)
    parts = [n for n in (1, 2, 4, MOST_PARTS) if n <= min(steps, batch) and tiles * n <= processors]
    split = next((n for n in parts if tiles * n >= (ENOUGH if n > 1 else ENOUGH_WHOLE)), parts[-1])
    instead = min(split, batch // LEAST_ROWS)
    groups = 2 * instead if batch == MOST_ROWS and tiles * instead * 2 <= processors else instead
    grouped = _plan(rows, tile, steps, split // instead, groups)
    if groups > 1 and grouped.weight_stages >= -(-steps // grouped.split):
        return grouped
    return _plan(rows, tile, steps, split)


def _plan(rows: int, tile: int, steps: int, split: int, groups: int = 1) -> Plan:
    """With rings as long as a part needs and shared memory holds."""
    most = -(-steps // split)
    x_stages = max(2, min(most, 4))
    room = (SHARED_BYTES // (2 * STAGE) - x_stages * batch_of(rows) // groups) // tile
    return Plan(tile, STAGE, split, max(2, min(most, 10, room)), x_stages, rows >= ROWS_TO_MEET, groups)


def reference(x_BD: Tensor, weight_ED: Tensor, bias_E: Tensor | None = None) -> Tensor:
    """`row_linear` in PyTorch: differentiable, any device."""
    return F.linear(x_BD, weight_ED, bias_E)


def row_linear(
    x_BD: Tensor,
    weight_ED: Tensor,
    bias_E: Tensor | None = None,
    *,
    plan: Plan | None = None,
    early: bool = False,
) -> Tensor:
    """x (B,D), weight (E,D), bias (E,) -> y (B,E), by the kernel in a block of dependents, if it can be used there.

    With a plan by that wherever it can be; `early`: then too as a dependent of the kernel in front.
    """
    plan = plan or chosen(x_BD, weight_ED)
    if plan is not None and x_BD.is_cuda and unsupported(x_BD, weight_ED, bias_E, plan) is None:
        from .row_linear_launch import operator

        y_BE: Tensor = operator(x_BD, weight_ED, bias_E, *plan, bool(dependent()) or early)
        return y_BE
    return reference(x_BD, weight_ED, bias_E)


def chosen(x_BD: Tensor, weight_ED: Tensor) -> Plan | None:
    """The plan of a product among dependents, if it has one and there are counters for its tiles.

    Of x only the rows and the device count.
    """
    if not (in_block() and x_BD.is_cuda and x_BD.dim() == 2 and 0 < len(x_BD) <= LARGEST_CHOSEN):
        return None
    outputs, width = weight_ED.shape
    plan = plan_of(len(x_BD), outputs, width, _processors(x_BD.device.index or 0))
    return plan if plan is not None and counters_left(x_BD.device) * plan.tile >= outputs * plan.groups else None


def unsupported(x: Tensor, weight: Tensor, bias: Tensor | None, plan: Plan) -> str | None:
    """Why the kernel does not take these inputs, or None if it does."""
    given = [x, weight] if bias is None else [x, weight, bias]
    if x.dim() != 2 or x.dtype != torch.bfloat16 or any(one.dtype != x.dtype for one in given):
        return "inputs must be bfloat16, x of two dimensions"
    if not weight.is_contiguous() or x.stride(1) != 1 or x.stride(0) % 8 or weight.shape[1] % 8 or not x.numel():
        return "the weight must be contiguous, rows a multiple of 16 bytes apart"
    if any(one.data_ptr() % 16 for one in (x, weight)):
        return "addresses must be multiples of 16 bytes"
    if differentiated(*given):
        return "no gradient"
    if not is_hopper(x.device):
        return "written for Hopper"
    if not fits(len(x), len(weight), weight.shape[1], plan, _processors(x.device.index or 0)):
        return "the plan does not fit this product or this device"
    found = gluon_module(MODULE)
    return found if isinstance(found, str) else None


@cache
def _processors(device: int) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count


def flops(*, rows: int, width: int, outputs: int, backward: bool = False) -> int:
    """2 D E per row."""
    return total_flops(2 * rows * width * outputs, backward=backward)


def bytes_moved(*, rows: int, width: int, outputs: int, element_bytes: int = 2, backward: bool = False) -> int:
    """x and weight in, y out."""
    return total_bytes(rows * width + outputs * width, rows * outputs, element_bytes=element_bytes, backward=backward)
