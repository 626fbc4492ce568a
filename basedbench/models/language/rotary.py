"""Rotary position embedding (RoFormer, arXiv 2104.09864): pairs of a head's numbers turn with their position.

    y_i = x_i cos(p f_i) - x_{i+R} sin(p f_i)
    y_{i+R} = x_i sin(p f_i) + x_{i+R} cos(p f_i)        i < R = ceil(width / 2),   f_i = base^(-2 i / width)

for the first 2 R numbers of a head; the rest passes through. `width` may be odd (half of 70 is 35): R is rounded up
while the frequencies keep the odd width, as in the code behind the released checkpoints. Angles, their sines and the
products are float32 (float64 for float64).
"""

import torch
from torch import Tensor

from basedbench.mixers.base import accumulator_dtype

Rotation = tuple[Tensor, Tensor]


class Positions:
    """Where in its sequence each token stands, and the cosines and sines there, computed once for all layers.

    `tensor` is (L,) for whole sequences or (B,) for one token each, on the device. `extent` is the number of tokens up
    to and with these as the host knows it, if it does.
    """

    def __init__(self, tensor: Tensor, base: float, dtype: torch.dtype, extent: int | None = None) -> None:
        self.tensor = tensor
        self.extent = extent
        self._base = base
        self._dtype = accumulator_dtype(dtype)
        self._known: dict[int, Rotation] = {}

    def rotation(self, width: int) -> Rotation:
        """cos, sin of (positions, R) for heads of which `width` numbers turn."""
        if width not in self._known:
            exponents = torch.arange(0, width, 2, dtype=self._dtype, device=self.tensor.device) / -width
            angles = self.tensor.to(self._dtype)[:, None] * self._base**exponents
            self._known[width] = angles.cos(), angles.sin()
        return self._known[width]


def rotate(x_XHK: Tensor, cos_XR: Tensor, sin_XR: Tensor) -> Tensor:
    """Turn the first 2 R numbers of every head: x (..., L, H, K) with cos, sin (L, R), or (B, H, K) with (B, R)."""
    pairs = cos_XR.shape[-1]
    first, second, rest = x_XHK.split((pairs, pairs, x_XHK.shape[-1] - 2 * pairs), -1)
    cos, sin = cos_XR.unsqueeze(-2), sin_XR.unsqueeze(-2)
    turned = (first * cos - second * sin, first * sin + second * cos)
    return torch.cat([*(part.to(x_XHK.dtype) for part in turned), rest], -1)
