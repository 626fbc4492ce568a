"""What gated linear mixers end with: a norm over the values of each head, times a gate."""

import torch
from torch import Tensor, nn

from basedbench.kernels import head_norm
from basedbench.kernels.precision import product_dtype


class GatedHeadNorm(nn.Module):
    """y / sqrt(mean(y^2) + eps) * weight * silu(gate): y (..., H, V) and the gate (..., H V) to (..., H V).

    The mean is over a head's V values; the weight (V,), ones at first, is shared by the heads, or without `gain` none.
    """

    def __init__(self, width: int, *, eps: float = 1e-5, gain: bool = True) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width)) if gain else None

    def forward(self, y_xHV: Tensor, gate_xE: Tensor) -> Tensor:
        return head_norm(y_xHV, self.weight, gate_xE=gate_xE, eps=self.eps, dtype=product_dtype(y_xHV))
