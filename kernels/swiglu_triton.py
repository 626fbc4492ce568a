"""`swiglu` in Triton: elementwise, forward and backward."""

# mypy: allow-untyped-defs

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .dense_rows import dense_rows
from .dependents import dependent
from .dependents_triton import follow

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
BLOCK = 512  # outputs of a program: four a thread, small enough that a decode step's rows reach every multiprocessor


@triton.jit
def _halves(x, element, elements, row_x, INNER: tl.constexpr):
    """Where an output's two inputs lie, and whether there are any."""
    place = x + (element // INNER) * row_x + element % INNER
    return place, element < elements


@triton.jit
def swiglu_kernel(x, y, elements, row_x, INNER: tl.constexpr, BLOCK: tl.constexpr, EARLY: tl.constexpr = False):
    follow(EARLY)
    element = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    place, inside = _halves(x, element, elements, row_x, INNER)
    value = tl.load(place, mask=inside, other=0.0).to(tl.float32)
    gate = tl.load(place + INNER, mask=inside, other=0.0).to(tl.float32)
    tl.store(y + element, (gate * tl.sigmoid(gate) * value).to(y.dtype.element_ty), mask=inside)


@triton.jit
def swiglu_backward_kernel(x, dy, dx, elements, row_x, INNER: tl.constexpr, BLOCK: tl.constexpr):
    element = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    place, inside = _halves(x, element, elements, row_x, INNER)
    target, _ = _halves(dx, element, elements, 2 * INNER, INNER)
    value = tl.load(place, mask=inside, other=0.0).to(tl.float32)
    gate = tl.load(place + INNER, mask=inside, other=0.0).to(tl.float32)
    upper = tl.load(dy + element, mask=inside, other=0.0).to(tl.float32)
    s = tl.sigmoid(gate)
    tl.store(target, (upper * gate * s).to(dx.dtype.element_ty), mask=inside)
    tl.store(target + INNER, (upper * value * s * (1 + gate * (1 - s))).to(dx.dtype.element_ty), mask=inside)


def _rows(x: Tensor) -> Tensor:
    """(rows, 2 I), evenly apart."""
    x = dense_rows(x)
    return x.reshape(-1, x.shape[-1])


@torch.library.custom_op("basedbench::swiglu", mutates_args=())
def operator(x: Tensor) -> Tensor:
    """y (..., I)."""
    y = output(x)
    if y.numel():
        rows = _rows(x)
        swiglu_kernel[(triton.cdiv(y.numel(), BLOCK),)](
            rows, y, y.numel(), rows.stride(0), INNER=y.shape[-1], BLOCK=BLOCK, **dependent()
        )
    return y


@operator.register_fake
def output(x: Tensor) -> Tensor:
    """The output, not yet written."""
    return x.new_empty((*x.shape[:-1], x.shape[-1] // 2))


@torch.library.custom_op("basedbench::swiglu_backward", mutates_args=())
def backward_operator(x: Tensor, dy: Tensor) -> Tensor:
    """dx (..., 2 I)."""
    dx = x.new_empty(x.shape)
    if dx.numel():
        rows, dy = _rows(x), dy.contiguous()
        swiglu_backward_kernel[(triton.cdiv(dy.numel(), BLOCK),)](
            rows, dy, dx, dy.numel(), rows.stride(0), INNER=dy.shape[-1], BLOCK=BLOCK
        )
    return dx


@backward_operator.register_fake
def _(x: Tensor, dy: Tensor) -> Tensor:
    return x.new_empty(x.shape)


def _keep(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _gradients(ctx: Any, dy: Tensor) -> Tensor:
    dx: Tensor = backward_operator(*ctx.saved_tensors, dy)
    return dx


operator.register_autograd(_gradients, setup_context=_keep)


def swiglu(x_xE: Tensor) -> Tensor:
    """`swiglu.reference` by the kernels above."""
    y_xI: Tensor = operator(x_xE)
    return y_xI
