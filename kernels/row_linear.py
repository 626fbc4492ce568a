"""Products of a few rows with a large weight, as a decode step has them: y = x W^T + b, or gated as SwiGLU.

    y = x W^T + b            gated:   [a, g] = x W^T,   y = a silu(g)         (the halves of W's rows; `swiglu`)

Memory bound: the weight passes once, for 2 M multiply-adds a number, M rows. PyTorch's products (cuBLAS) take it, but
for the shapes in `TABLE`, where the kernel of `row_linear_triton` was measured to be faster. Products accumulate in
float32; gated, y is rounded once, after the gate.
"""

import torch.nn.functional as F
from torch import Tensor

from .costs import total_bytes, total_flops
from .swiglu import reference as gate
from .swiglu import swiglu

Shape = tuple[int, int, bool]  # outputs (rows of the weight), width, gated
# Tiles by shape and the largest number of rows they are for. Only what was measured to be faster stands here.
TABLE: dict[Shape, dict[int, dict[str, int]]] = {}


def reference(x_BD: Tensor, weight_ED: Tensor, bias_E: Tensor | None = None, *, gated: bool = False) -> Tensor:
    """`row_linear` in PyTorch: any device."""
    y_BE = F.linear(x_BD, weight_ED, bias_E)
    return gate(y_BE) if gated else y_BE


def row_linear(
    x_BD: Tensor,
    weight_ED: Tensor,
    bias_E: Tensor | None = None,
    *,
    gated: bool = False,
    ahead: Tensor | None = None,
) -> Tensor:
    """x (B,D), weight (E,D), bias (E,) -> y (B,E), gated (B,E/2).

    `ahead` is what the next product reads (ahead_triton.py); PyTorch's product alone cannot ask for it.
    """
    tiles = chosen(len(x_BD), len(weight_ED), weight_ED.shape[1], gated) if x_BD.is_cuda else None
    if tiles is not None:
        from . import row_linear_triton as kernels

        if kernels.unsupported(x_BD, weight_ED, bias_E, gated, tiles) is None:
            return kernels.row_linear(x_BD, weight_ED, bias_E, gated, ahead=ahead, **tiles)
    y_BE = F.linear(x_BD, weight_ED, bias_E)
    return swiglu(y_BE, ahead=ahead) if gated else y_BE


def chosen(rows: int, outputs: int, width: int, gated: bool) -> dict[str, int] | None:
    """The kernel's tiles for this shape, or None where PyTorch's product is as fast or nobody has measured."""
    sizes = TABLE.get((outputs, width, gated), {})
    return sizes.get(min((most for most in sizes if most >= rows), default=0))


def flops(*, rows: int, width: int, outputs: int, gated: bool = False) -> int:
    """2 D E per row, and three per output of the gate."""
    return total_flops(rows * outputs * (2 * width) + (rows * outputs // 2 * 3 if gated else 0), backward=False)


def bytes_moved(*, rows: int, width: int, outputs: int, element_bytes: int = 2, gated: bool = False) -> int:
    """x and weight in, y out."""
    written = rows * (outputs // 2 if gated else outputs)
    return total_bytes(rows * width + outputs * width, written, element_bytes=element_bytes, backward=False)
