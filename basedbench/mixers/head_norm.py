"""What gated linear mixers end with: a norm over the values of each head, times a gate."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from basedbench.kernels import add_layer_norm
from basedbench.kernels.precision import product_dtype


class GatedHeadNorm(nn.Module):
    """y / sqrt(mean(y^2) + eps) * weight * silu(gate): y (..., H, V) and the gate (..., H V) to (..., H V).

    The mean is over a head's V values; the weight (V,), ones at first, is shared by the heads, or without `gain` none.
    """

    weight: Tensor

    def __init__(self, width: int, *, eps: float = 1e-5, gain: bool = True) -> None:
        super().__init__()
        self.eps = eps
        if gain:
            self.weight = nn.Parameter(torch.ones(width))
        else:
            self.register_buffer("weight", torch.ones(width), persistent=False)

    def forward(self, y_xHV: Tensor, gate_xE: Tensor) -> Tensor:
        dtype = product_dtype(y_xHV) or y_xHV.dtype
        normed_xHV, _ = add_layer_norm(y_xHV, None, self.weight, eps=self.eps, center=False, dtype=dtype)
        return normed_xHV.flatten(-2) * F.silu(gate_xE)
