"""`row_linear` in Triton: a program per tile of outputs, all rows at once, the weight's tiles as the left operand.

So few rows still fill the products' units: they are the short side. A program asks the L2 cache for its whole part of
the weight before it waits for the kernel before it (ahead_triton.py). Gated, half of a tile's rows are values and half
are their gates: one tile, one product, and the gate where both meet. In parts, gates wait for whole sums.

x is read anew for every tile of outputs: with M rows and tiles of E outputs M / E bytes for each of the weight. At 128
rows that is more than the weight itself, and tiles of 128 outputs over parts of the width (`SPLIT`, summed in a second
launch, in a fixed order) read least.
"""

# mypy: allow-untyped-defs

import torch
import triton
import triton.language as tl
from torch import Tensor

from .ahead_triton import LANES, PIECE, REQUEST, depend, launched_early, request
from .ahead_triton import options as ahead_options

DTYPES = (torch.float16, torch.bfloat16)
JOIN = 512  # outputs of a program that sums parts


@triton.jit
def _weight_row(local, tile, outputs, inner, ROWS: tl.constexpr, GATED: tl.constexpr):
    """The weight's row of a tile's row: plain, or the first half values and the second half their gates."""
    if GATED:
        HALF: tl.constexpr = ROWS // 2
        row = tl.minimum(tile * HALF + local % HALF, inner - 1) + local // HALF * inner
    else:
        row = tl.minimum(tile * ROWS + local, outputs - 1)
    return row


@triton.jit
def product_kernel(
    x, weight, bias, y, rows, outputs, inner, x_row, ahead, ahead_rows, ahead_pieces, ahead_bytes,
    K: tl.constexpr, ROWS: tl.constexpr, BATCH: tl.constexpr, WIDTH: tl.constexpr, SPLIT: tl.constexpr,
    GATED: tl.constexpr, HAS_BIAS: tl.constexpr, EARLY: tl.constexpr, AHEAD: tl.constexpr,
):  # fmt: skip
    """SPLIT > 1: y (SPLIT, rows, outputs) float32, one part of the width each."""
    STEPS: tl.constexpr = K // WIDTH
    tile, part = tl.program_id(0), tl.program_id(1)
    local, k = tl.arange(0, ROWS), tl.arange(0, WIDTH)
    begin, end = part * STEPS // SPLIT, (part + 1) * STEPS // SPLIT
    if EARLY:
        COLUMNS: tl.constexpr = PIECE // 2
        pieces = (end - begin) * WIDTH // COLUMNS * ROWS
        for start in range(0, pieces, LANES):
            piece = start + tl.arange(0, LANES)
            row = _weight_row(piece % ROWS, tile, outputs, inner, ROWS, GATED).to(tl.int64)
            place = weight.to(tl.int64) + (row * K + begin * WIDTH + piece // ROWS * COLUMNS) * 2
            tl.inline_asm_elementwise(
                REQUEST, "=r,l,r,r", [place, piece, pieces], dtype=tl.int32, is_pure=False, pack=1
            )
        depend()
    row = _weight_row(local, tile, outputs, inner, ROWS, GATED)
    b = tl.program_id(2) * BATCH + tl.arange(0, BATCH)
    weight += row.to(tl.int64)[:, None] * K + k[None, :]
    x += tl.minimum(b, rows - 1)[None, :] * x_row + k[:, None]
    y_EB = tl.zeros((ROWS, BATCH), tl.float32)
    for step in range(begin, end):
        w_ED = tl.load(weight + step * WIDTH, eviction_policy="evict_first")
        x_DB = tl.load(x + step * WIDTH, eviction_policy="evict_last")
        y_EB = tl.dot(w_ED, x_DB, y_EB, input_precision="ieee")
    if AHEAD:
        request(ahead, ahead_rows, ahead_pieces, ahead_bytes)
    if HAS_BIAS:
        y_EB += tl.load(bias + row).to(tl.float32)[:, None]
    y += part.to(tl.int64) * rows * outputs
    if GATED:
        value, gate = tl.split(tl.permute(tl.reshape(y_EB, (2, ROWS // 2, BATCH)), (1, 2, 0)))
        y_EB = value * gate * tl.sigmoid(gate)
        e = tile * (ROWS // 2) + tl.arange(0, ROWS // 2)
        width = inner
    else:
        e, width = tile * ROWS + local, outputs
    inside = (b < rows)[:, None] & (e < width)[None, :]
    tl.store(y + b[:, None] * width + e[None, :], tl.trans(y_EB).to(y.dtype.element_ty), mask=inside)


@triton.jit
def _summed(parts, at, inside, elements, SPLIT: tl.constexpr):
    total = tl.load(parts + at, mask=inside, other=0.0)
    for part in tl.static_range(1, SPLIT):
        total += tl.load(parts + part * elements + at, mask=inside, other=0.0)
    return total


@triton.jit
def join_kernel(
    parts, bias, y, rows, outputs, width,
    SPLIT: tl.constexpr, BLOCK: tl.constexpr, GATED: tl.constexpr, HAS_BIAS: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """Sum the parts (SPLIT, rows, outputs), in the order of the width, to y (rows, width)."""
    if EARLY:
        depend()
    element = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside, e = element < rows * width, element % width
    at = element // width * outputs + e
    total = _summed(parts, at, inside, rows * outputs, SPLIT)
    if HAS_BIAS:
        total += tl.load(bias + e, mask=inside, other=0.0).to(tl.float32)
    if GATED:
        gate = _summed(parts, at + width, inside, rows * outputs, SPLIT)
        total *= gate * tl.sigmoid(gate)
    tl.store(y + element, total.to(y.dtype.element_ty), mask=inside)


@torch.library.custom_op("basedbench::row_linear", mutates_args=())
def operator(
    x: Tensor, weight: Tensor, bias: Tensor | None, gated: bool, outputs: int, width: int, split: int, stages: int,
    warps: int, ahead: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """y (B,E) or (B,E/2). Tiles of `outputs` rows of the weight and `width` columns."""
    x = x if x.stride(1) == 1 else x.contiguous()
    (rows, K), E = x.shape, len(weight)
    y = x.new_empty((rows, E // 2 if gated else E))
    if not y.numel():
        return y
    parts = y if split == 1 else x.new_empty((split, rows, E), dtype=torch.float32)
    batch = min(128, max(16, triton.next_power_of_2(rows)))
    early = launched_early(weight)
    paired = gated and split == 1
    grid = triton.cdiv(E, outputs) if not paired else triton.cdiv(E // 2, outputs // 2), split, triton.cdiv(rows, batch)
    product_kernel[grid](
        x, weight, bias, parts, rows, E, E // 2, x.stride(0), K=K, ROWS=outputs, BATCH=batch, WIDTH=width, SPLIT=split,
        GATED=paired, HAS_BIAS=bias is not None and split == 1, num_warps=warps, num_stages=stages,
        **(ahead_options(ahead) | early),
    )  # fmt: skip
    if split > 1:
        join_kernel[(triton.cdiv(y.numel(), JOIN),)](
            parts, bias, y, rows, E, y.shape[1], SPLIT=split, BLOCK=JOIN, GATED=gated, HAS_BIAS=bias is not None,
            **early,
        )  # fmt: skip
    return y


@operator.register_fake
def _(x, weight, bias, gated, outputs, width, split, stages, warps, ahead=None):
    return x.new_empty((len(x), len(weight) // 2 if gated else len(weight)))


def unsupported(x: Tensor, weight: Tensor, bias: Tensor | None, gated: bool, tiles: dict[str, int]) -> str | None:
    """Why the kernel does not take these inputs, or None if it does."""
    given = [x, weight] if bias is None else [x, weight, bias]
    if any(one.dtype != weight.dtype for one in given) or weight.dtype not in DTYPES:
        return "inputs must be float16 or bfloat16, all the same"
    if not weight.is_contiguous() or weight.shape[1] % tiles.get("width", 64):
        return "the weight must be contiguous, its width a multiple of the tiles'"
    if gated and (bias is not None or len(weight) % 2):
        return "a gate has no bias and an even number of outputs"
    if torch.is_grad_enabled() and any(one.requires_grad for one in given):
        return "no gradient"
    return None


def row_linear(
    x_BD: Tensor, weight_ED: Tensor, bias_E: Tensor | None, gated: bool, *,
    ahead: Tensor | None = None, outputs: int = 64, width: int = 64, split: int = 1, stages: int = 4, warps: int = 4,
) -> Tensor:  # fmt: skip
    """`row_linear.reference` by the kernels above."""
    y_BE: Tensor = operator(x_BD, weight_ED, bias_E, gated, outputs, width, split, stages, warps, ahead)
    return y_BE
