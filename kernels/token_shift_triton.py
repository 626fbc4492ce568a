"""`token_shift` in Triton: x passes through memory once forward, and once, with all gradients, backward.

A program takes some tokens of one block of channels. Backward, token t's gradient also gathers what token t + 1 mixed
in, so that both rows of each gradient are read, the second time from a cache. Programs of the backward are fixed in
number and leave partial sums of mu's gradients, so that every device adds in the same order.
"""

# mypy: allow-untyped-defs, disable-error-code="assignment"

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .company import most_programs
from .partial_sums_triton import sum_parts

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
CHANNELS, TILE = 128, 1024  # channels of a block at most; elements of a tile, for two warps: 16 a thread
BACKWARD_TILE = 512  # whose sums for each of mu's rows are in registers
PROGRAMS = 768  # of the backward, about: so many run at once


@triton.jit
def _tile(index, blocks, D: tl.constexpr, BD: tl.constexpr, rows, ROWS: tl.constexpr):
    """(rows, their places with channels, which exist) of tile `index`."""
    row = index // blocks * ROWS + tl.arange(0, ROWS)
    columns = index % blocks * BD + tl.arange(0, BD)
    inside = (row < rows)[:, None] & (columns < D)[None, :]
    return row, row.to(tl.int64)[:, None] * D + columns[None, :], inside


@triton.jit(do_not_specialize=["rows", "length"])
def token_shift_kernel(
    x, mu, outs, rows, length, D: tl.constexpr, BD: tl.constexpr, ROWS: tl.constexpr, M: tl.constexpr
):  # fmt: skip
    blocks = (D + BD - 1) // BD
    row, place, inside = _tile(tl.program_id(0), blocks, D, BD, rows, ROWS)
    columns = tl.program_id(0) % blocks * BD + tl.arange(0, BD)
    here = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
    previous = tl.load(x + place - D, mask=inside & (row % length > 0)[:, None], other=0.0).to(tl.float32)
    change = previous - here
    for m in tl.static_range(M):
        share = tl.load(mu + m * D + columns, mask=columns < D, other=0.0).to(tl.float32)[None, :]
        tl.store(outs[m] + place, (here + change * share).to(outs[m].dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["rows", "length", "tiles"])
def token_shift_backward_kernel(
    x, mu, grads, dx, partials, rows, length, tiles,
    D: tl.constexpr, BD: tl.constexpr, ROWS: tl.constexpr, M: tl.constexpr,
):  # fmt: skip
    """dx, and a program's sums (M,D) of the gradients of mu. Programs: blocks of channels, the fastest, x some."""
    blocks = (D + BD - 1) // BD
    columns = tl.program_id(0) % blocks * BD + tl.arange(0, BD)
    shares, sums = (), ()  # sums row by row of a tile: one over its rows takes threads that wait for each other
    for m in tl.static_range(M):
        shares += (tl.load(mu + m * D + columns, mask=columns < D, other=0.0).to(tl.float32)[None, :],)
        sums += (tl.zeros([ROWS, BD], tl.float32),)
    for tile in range(tl.program_id(0) // blocks, tiles, tl.num_programs(0) // blocks):
        row, place, inside = _tile(tile * blocks + tl.program_id(0) % blocks, blocks, D, BD, rows, ROWS)
        more = inside & (row % length < length - 1)[:, None]
        here = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
        change = tl.load(x + place - D, mask=inside & (row % length > 0)[:, None], other=0.0).to(tl.float32) - here
        grad, more_sums = tl.zeros([ROWS, BD], tl.float32), ()
        for m in tl.static_range(M):
            own = tl.load(grads[m] + place, mask=inside, other=0.0).to(tl.float32)
            after = tl.load(grads[m] + place + D, mask=more, other=0.0).to(tl.float32)
            grad += own + (after - own) * shares[m]
            more_sums += (sums[m] + own * change,)
        sums = more_sums
        tl.store(dx + place, grad.to(dx.dtype.element_ty), mask=inside)
    into = partials + tl.program_id(0) // blocks * (M * D) + columns
    for m in tl.static_range(M):
        tl.store(into + m * D, tl.sum(sums[m], 0), mask=columns < D)


def _shape(x: Tensor, mu: Tensor, tile: int = TILE) -> dict[str, int]:
    block = min(CHANNELS, max(16, triton.next_power_of_2(x.shape[-1])))
    return {"D": x.shape[-1], "BD": block, "ROWS": tile // block, "M": len(mu)}


@torch.library.custom_op("basedbench::token_shift", mutates_args=())
def operator(x: Tensor, mu: Tensor) -> list[Tensor]:
    """M tensors (B,L,D)."""
    outs = _outputs(x, mu)
    if x.numel():
        shape, rows = _shape(x, mu), x.shape[0] * x.shape[1]
        programs = triton.cdiv(rows, shape["ROWS"]) * triton.cdiv(shape["D"], shape["BD"])
        token_shift_kernel[(programs,)](
            x.contiguous(), mu.contiguous(), tuple(outs), rows, x.shape[1], **shape, num_warps=2
        )  # fmt: skip
    return outs


@operator.register_fake
def _outputs(x: Tensor, mu: Tensor) -> list[Tensor]:
    return [x.new_empty(x.shape) for _ in range(len(mu))]


@torch.library.custom_op("basedbench::token_shift_backward", mutates_args=())
def backward_operator(x: Tensor, mu: Tensor, grads: list[Tensor]) -> list[Tensor]:
    """dx (B,L,D) and the gradient of mu (M,D)."""
    dx, shape, rows = x.new_empty(x.shape), _shape(x, mu, BACKWARD_TILE), x.shape[0] * x.shape[1]
    tiles, blocks = triton.cdiv(rows, shape["ROWS"]), triton.cdiv(shape["D"], shape["BD"])
    parts = max(1, min(tiles, most_programs(PROGRAMS) // blocks))
    partials = x.new_empty((parts, mu.numel()), dtype=torch.float32)
    token_shift_backward_kernel[(parts * blocks,)](
        x.contiguous(), mu.contiguous(), tuple(grad.contiguous() for grad in grads), dx, partials, rows, x.shape[1],
        tiles, **shape, num_warps=2,
    )  # fmt: skip
    return [dx, sum_parts(partials, mu.dtype).view(mu.shape)]


@backward_operator.register_fake
def _(x: Tensor, mu: Tensor, grads: list[Tensor]) -> list[Tensor]:
    return [x.new_empty(x.shape), mu.new_empty(mu.shape)]


def _keep(ctx: Any, inputs: tuple[Tensor, Tensor], output: list[Tensor]) -> None:
    ctx.save_for_backward(*inputs)


def _gradients(ctx: Any, grads: list[Tensor]) -> tuple[Tensor, Tensor]:
    dx, dmu = backward_operator(*ctx.saved_tensors, grads)
    return dx, dmu


operator.register_autograd(_gradients, setup_context=_keep)


def token_shift(x_BLD: Tensor, mu_MD: Tensor) -> list[Tensor]:
    """`token_shift.reference` by the kernels above."""
    outs: list[Tensor] = operator(x_BLD, mu_MD)
    return outs
