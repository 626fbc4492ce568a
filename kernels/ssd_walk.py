"""Launches of the walks of ssd, a warp for each sequence and head, there and back.

For narrow states and many sequences, as in recall. Per token and head the forward moves x, z and y and N / 16 of such a
row for its states; the backward x, dy, z, dx and dz, the states, and 4 N numbers for dB and dC. Walks over packed
examples are as long as each of them is.
"""

# mypy: allow-untyped-defs

from types import ModuleType
from typing import Any, cast

import torch
import triton
from torch import Tensor

from .dense_rows import either
from .gluon_modules import gluon_module
from .packing import ALIGNED, starts_of
from .ssd_backward_triton import group_sums_kernel
from .ssd_plan import Inputs, Plan, batch_and_row

SUMMED = 1024  # numbers of a program that adds heads
SUMMED_HEADS = 8  # that it has on their way at once, at most
# Precisions in which what heads add to dB and dC passes through memory in 16 bits: of a chunk, over its largest number.
# Plain bfloat16 would round as coarsely as the sum is rounded afterwards.
HALVED = ("bf16",)
# Most registers of a thread in the forward in bf16, by padded states: a multiprocessor then holds 16 warps, or 12. Its
# 2,048 walks of 8 heads and 256 sequences are 15.5 a multiprocessor.
FORWARD_REGISTERS = {16: 128, 32: 168}


def _kernels(way: str) -> Any:
    return cast(ModuleType, gluon_module(f"ssd_walk_{way}_gluon"))


def _strides(inputs: Inputs) -> tuple[int, ...]:
    """Of x, dt, B, C and z; the distance between groups is 0 if there is one, which Triton knows 16 to divide.

    Packed examples are as far from each other as their first tokens are, which kernels read.
    """
    strides = [*inputs.strides, *either(inputs.z, inputs.x).stride()[:3]]
    if inputs.plan.groups == 1:
        strides[8] = strides[11] = 0
    if inputs.packing is not None:
        strides[::3] = strides[1::3]
    return tuple(strides)


def _numbers(plan: Plan) -> tuple[Any, ...]:
    return starts_of(plan.packing), plan.length, plan.heads, plan.per_group


def _options(inputs: Inputs, plan: Plan, softplus: bool) -> dict[str, Any]:
    tiles = [inputs.x, inputs.B, inputs.C, either(inputs.z, inputs.x)]
    strides = _strides(inputs)
    apart = [*strides[:3], *strides[6:], plan.widths["P"], 2 * plan.widths["N"]]
    return {
        **plan.widths,
        "BYTES": inputs.x.element_size(),
        "ALIGNED": all(tile.data_ptr() % 16 == 0 for tile in tiles) and all(stride % 16 == 0 for stride in apart),
        "PRECISION": plan.precision,
        "HAS_D": inputs.D is not None,
        "HAS_Z": inputs.z is not None,
        "HAS_BIAS": inputs.bias is not None,
        "SOFTPLUS": softplus,
        "PACKED": plan.packing is not None,
        "num_warps": 1,
    }


def walk_forward(
    inputs: Inputs, plan: Plan, softplus: bool, y: Tensor, kept: Tensor | None, final: Tensor | None
) -> None:
    """Writes y, and the states before the chunks and the last one if there is a tensor for them."""
    cap = {"maxnreg": FORWARD_REGISTERS[plan.widths["BN"]]} if plan.precision == "bf16" else {}
    _kernels("forward").walk_output_kernel[(plan.sequences,)](
        inputs.x, inputs.dt, inputs.A, inputs.B, inputs.C, either(inputs.D, inputs.A), either(inputs.z, inputs.x),
        either(inputs.bias, inputs.A), y, either(kept, y), either(inputs.initial, y), either(final, y),
        *_strides(inputs), *_numbers(plan), **_options(inputs, plan, softplus),
        KEEP=kept is not None, INITIAL=inputs.initial is not None, FINAL=final is not None, **cap,
    )  # fmt: skip


def walk_back(
    inputs: Inputs,
    plan: Plan,
    softplus: bool,
    dy: Tensor,
    kept: Tensor,
    grad_final: Tensor | None,
    grad_initial: Tensor | None,
    grads: tuple[Tensor, ...],
) -> Tensor:
    """Writes dx, dz, ddt, dB, dC and `grad_initial`; returns the sums (B,3,H) for A, the bias and D.

    Gradients may be slices of something wider, a token's heads or groups side by side.
    """
    dx, dz, ddt, dB, dC = grads
    (batch, length), states = dy.shape[:2], plan.widths["N"]
    # Scales of packed examples are those of tiles: then a token alone says which one is its own.
    packed, chunk = plan.packing is not None, plan.chunk if plan.packing is None else ALIGNED
    partials = dy.new_empty((plan.batch, 3, plan.heads), dtype=torch.float32)
    alone = plan.per_group == 1
    shape = (2, batch, length, plan.heads, states)
    scaled = not alone and plan.precision in HALVED
    by_head = dy.new_empty((0,) if alone else shape, dtype=torch.float16 if scaled else torch.float32)
    scales = dy.new_empty((2, batch, triton.cdiv(length, chunk), plan.heads) if scaled else (0,), dtype=torch.float32)
    parts = (dB, dC) if alone else tuple(by_head)
    outputs = dx, dx if inputs.z is None else dz, ddt, *parts
    _kernels("backward").walk_gradient_kernel[(plan.sequences,)](
        inputs.x, dy, inputs.dt, inputs.A, inputs.B, inputs.C, either(inputs.D, inputs.A),
        either(inputs.z, inputs.x), either(inputs.bias, inputs.A), kept, either(grad_final, partials), dx, dz,
        ddt, *parts, scales, partials, either(grad_initial, partials), *_strides(inputs),
        *(stride for output in outputs for stride in batch_and_row(output, plan.packing)), *_numbers(plan),
        **_options(inputs, plan, softplus),
        INITIAL=inputs.initial is not None, GRAD_FINAL=grad_final is not None, GRAD_INITIAL=grad_initial is not None,
        SCALED=scaled,
    )  # fmt: skip
    if not alone:
        rows, height = batch * length * plan.groups, SUMMED // plan.widths["BN"]
        group_sums_kernel[(triton.cdiv(rows, height),)](
            by_head, scales, dB, dC, *dB.stride()[:2], *dC.stride()[:2], rows, plan.per_group, length, plan.groups,
            N=states, BN=plan.widths["BN"], ROWS=height, T=chunk, SCALED=scaled, PACKED=packed,
            HEADS=min(SUMMED_HEADS, triton.next_power_of_2(plan.per_group)),
        )  # fmt: skip
    return partials
