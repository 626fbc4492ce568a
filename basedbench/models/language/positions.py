"""Where in their sequences tokens stand, and the angles by which their queries and keys turn (`kernels.rotary`)."""

import torch
from torch import Tensor

from basedbench.kernels import rotary_angles
from basedbench.kernels.rotary import Angles
from basedbench.mixers.base import accumulator_dtype


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
        self._known: dict[int, Angles] = {}

    def angles(self, width: int) -> Angles:
        """Of (positions, R), for heads of which `width` numbers turn."""
        if width not in self._known:
            self._known[width] = rotary_angles(self.tensor, width, base=self._base, dtype=self._dtype)
        return self._known[width]
