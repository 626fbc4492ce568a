"""Both gradients of a product with few inputs, y = x W^T, in one pass over the gradient of y.

    dx = dy W,   dW = dy^T x,   dy (T,C),   x (T,R),   W (C,R)

Where R is 8 or 16, dy is nearly all that there is to read. Two products read it twice, and the second one is split over
tokens and added up in a launch of its own. Here a program multiplies tiles of its tokens twice while it has them.
"""

# mypy: allow-untyped-defs

import torch
import triton
import triton.language as tl
from torch import Tensor

from .company import most_programs
from .gluon_modules import is_hopper
from .partial_sums_triton import sum_parts

UNIT = tl.constexpr(8)  # rows of x and dx are so many numbers apart or a multiple: they are loaded 16 bytes at a time
CHANNELS, COLUMNS = 512, 32  # at most, for what a tile takes of shared memory
TOKENS = 64  # of a tile: warpgroup products have no fewer rows
# Fixed, so that sums are made in one order. Twice as many, two a multiprocessor, take as long and leave more to add up.
PROGRAMS = 132
LEAST = 32  # tokens that are worth a program, which leaves C x R sums


@triton.jit(do_not_specialize=["tokens"])
def narrow_gradients_kernel(
    dy, x, weight, dx, partials, tokens, x_row, dx_row, C: tl.constexpr, R: tl.constexpr, RANK: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_R: tl.constexpr, TOKENS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Rows of x and dx lie x_row and dx_row UNITs apart. Programs have as many tokens each, one after another.

    Of the two products the one that stays is begun first. Else it would go on while the loop's next turn begins, and
    the assembler waits for each of its instructions.
    """
    token, channel, column = tl.arange(0, TOKENS), tl.arange(0, BLOCK_C), tl.arange(0, BLOCK_R)
    present = (channel < C)[:, None]
    place = channel[:, None] * R + column[None, :]
    w = tl.load(weight + place, mask=present & (column < R)[None, :], other=0.0)
    total = tl.zeros((BLOCK_C, BLOCK_R), tl.float32)
    share = tl.cdiv(tokens, tl.num_programs(0))
    first = tl.program_id(0) * share
    last = tl.minimum(first + share, tokens)
    for start in tl.range(first, last, TOKENS, num_stages=STAGES):
        inside = (token < last - start)[:, None]
        narrow = inside & (column < R)[None, :]
        wide = inside if C == BLOCK_C else inside & (channel < C)[None, :]
        begin = tl.cast(start, tl.int64)
        g = tl.load(dy + begin * C + token[:, None] * C + channel[None, :], mask=wide, other=0.0)
        x_at = x + begin * (x_row * UNIT) + token[:, None] * (x_row * UNIT) + column[None, :]
        given = tl.load(x_at, mask=narrow, other=0.0)
        total = tl.dot(tl.trans(g), given, total)
        rows = tl.dot(g, w)
        dx_at = dx + begin * (dx_row * UNIT) + token[:, None] * (dx_row * UNIT) + column[None, :]
        tl.store(dx_at, rows.to(dx.dtype.element_ty), mask=narrow)
    place = tl.program_id(0) * (C * RANK) + channel[:, None] * RANK + column[None, :]
    tl.store(partials + place, total, mask=present & (column < RANK)[None, :])


def supported(dy_TC: Tensor, x_TR: Tensor, weight_CR: Tensor, dx_TR: Tensor) -> bool:
    """Whether the kernel takes these; it fills the shared memory of a Hopper."""
    given = dy_TC, x_TR, weight_CR, dx_TR
    half = dy_TC.dtype in (torch.float16, torch.bfloat16) and all(y.dtype == dy_TC.dtype for y in given)
    channels, rank = weight_CR.shape
    small = 0 < channels <= CHANNELS and 0 < rank <= COLUMNS and channels % UNIT.value == rank % UNIT.value == 0
    rows = all(y.stride(1) == 1 and y.stride(0) % UNIT.value == 0 for y in (x_TR, dx_TR))
    return half and small and rows and dy_TC.is_contiguous() and (not dy_TC.is_cuda or is_hopper(dy_TC.device))


def _plan(block_c: int, block_r: int) -> tuple[int, int]:
    """Warps and stages, as many as shared memory has room for."""
    if block_c > 256:
        return 8, 3 if block_r == 16 else 2
    return 4, 4 if block_r == 16 else 3


def narrow_gradients(dy_TC: Tensor, x_TR: Tensor, weight_CR: Tensor, dx_TR: Tensor, given_CQ: Tensor) -> Tensor:
    """Writes dx (T,R), which may have a stride, and returns the gradient (C,Q) of what the weight (C,R) was made of.

    Its first Q columns were `given`, in any dtype. The gradient may be complete only behind `partial_sums.together`.
    """
    channels, rank = given_CQ.shape
    if not supported(dy_TC, x_TR, weight_CR, dx_TR):
        torch.mm(dy_TC, weight_CR, out=dx_TR)
        return (dy_TC.t() @ x_TR)[:, :rank].to(given_CQ.dtype).contiguous()
    tokens, width = x_TR.shape
    block_c, block_r = (max(16, triton.next_power_of_2(n)) for n in (channels, width))
    warps, stages = _plan(block_c, block_r)
    programs = max(1, min(most_programs(PROGRAMS, tokens), triton.cdiv(tokens, LEAST)))
    partials = torch.empty((programs, channels * rank), dtype=torch.float32, device=dy_TC.device)
    narrow_gradients_kernel[(programs,)](
        dy_TC, x_TR, weight_CR.contiguous(), dx_TR, partials, tokens, x_TR.stride(0) // UNIT.value,
        dx_TR.stride(0) // UNIT.value, C=channels, R=width, RANK=rank, BLOCK_C=block_c, BLOCK_R=block_r, TOKENS=TOKENS,
        STAGES=stages, num_warps=warps,
    )  # fmt: skip
    return sum_parts(partials, given_CQ.dtype, (given_CQ,)).view(channels, rank)
