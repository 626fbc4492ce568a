"""The index of the largest number of each row: the choice of the next token.

The first one of several; a NaN counts as larger than every number. PyTorch's reduction leaves most of a GPU idle with
rows as few and long as logits are.
"""

import torch
from torch import Tensor

from .costs import total_bytes
from .shapes import checked_shapes

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def reference(x_BV: Tensor) -> Tensor:
    """`row_argmax` in PyTorch, any device."""
    return x_BV.argmax(-1)


@checked_shapes(out="B")
def row_argmax(x_BV: Tensor, *, out: Tensor | None = None) -> Tensor:
    """x (B,V) -> int64 (B,), written into `out` where that is given."""
    if x_BV.is_cuda and x_BV.dtype in DTYPES and x_BV.numel():
        from .row_argmax_triton import operator

        chosen_B = torch.empty(len(x_BV), dtype=torch.int64, device=x_BV.device) if out is None else out
        operator(x_BV, chosen_B)
        return chosen_B
    chosen_B = reference(x_BV)
    return chosen_B if out is None else out.copy_(chosen_B)


def bytes_moved(*, rows: int, width: int, element_bytes: int = 2) -> int:
    """x in, an index of 8 bytes out."""
    return total_bytes(rows * width, 0, element_bytes=element_bytes, backward=False) + 8 * rows
