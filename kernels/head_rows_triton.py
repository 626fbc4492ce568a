"""What elementwise kernels over heads share: a program takes one head and some tokens, and reads rows (tokens, values).

So a tile's rows share the parameters of their head, and what these get is summed in registers.
"""

# mypy: allow-untyped-defs

import triton
import triton.language as tl
from torch import Tensor

WIDEST = 1024  # channels of a head
TILE = 1024  # elements of a tile, for two warps: 16 a thread, a handful of tensors beside each other


@triton.jit
def load_rows(pointer, token, row, columns, inside):
    """A head's values of some tokens; `row` from one token to the next."""
    place = token.to(tl.int64)[:, None] * row + columns[None, :]
    return tl.load(pointer + place, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def head_vector(pointer, columns, V: tl.constexpr, PRESENT: tl.constexpr, missing):
    """A head's entries of a parameter (1,BV), `missing` everywhere if there is none."""
    if PRESENT:
        return tl.load(pointer + columns, mask=columns < V, other=0.0).to(tl.float32)[None, :]
    return tl.zeros([1, columns.shape[0]], tl.float32) + missing


@triton.jit
def store_rows(pointer, x, token, row, columns, inside):
    """Rows of a dense output, `row` from one token to the next."""
    place = pointer + token.to(tl.int64)[:, None] * row + columns[None, :]
    tl.store(place, x.to(pointer.dtype.element_ty), mask=inside)


@triton.jit
def unit_scale(x, eps):
    """1 / |x| of each row, as a column."""
    return (1 / tl.sqrt(tl.sum(x * x, 1) + eps))[:, None]


@triton.jit
def unit_gradient(grad, n, scale):
    """The gradient of x, for that of n = x scale, scale = 1 / |x|."""
    return scale * (grad - n * tl.sum(grad * n, 1)[:, None])


def flat_rows(x: Tensor, width: int) -> Tensor:
    """(tokens, H V), rows dense and evenly apart."""
    dense = x.stride(-1) == 1 and (x.shape[-1] == width or x.stride(-2) == x.shape[-1])
    return (x if dense else x.contiguous()).reshape(-1, width)
