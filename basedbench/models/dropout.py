"""Dropout that draws from a generator of its own.

`torch.nn.Dropout` draws from the one global generator of a device, so the masks of a run would depend on what trains
beside it. Here each run brings its own `torch.Generator`: the same seed gives the same masks, alone or side by side,
eagerly or in a CUDA graph (register the generator with the graph before the capture).
"""

import torch
from torch import Tensor, nn

from basedbench.errors import UserError
from basedbench.kernels.draws import Draws


class Dropout(nn.Module):
    """In training, zero each element with probability `p` and divide the rest by 1 - p; otherwise the identity.

    `generator` lives on the device of the inputs; None means PyTorch's global one. `draws` is for those who draw where
    they use what is drawn. UserError for p outside [0, 1).
    """

    def __init__(self, p: float, generator: torch.Generator | None = None) -> None:
        super().__init__()
        if not 0 <= p < 1:
            raise UserError(f"dropout {p} is outside [0, 1); 0 turns it off.")
        self.p = p
        self.generator = generator
        self.draws: Draws | None = None

    @property
    def active(self) -> bool:
        """Whether the next forward drops anything."""
        return self.training and self.p > 0

    def forward(self, x: Tensor) -> Tensor:
        kept = self.draw(x)
        return x if kept is None else x * kept.to(x.dtype).div_(1 - self.p)

    def draw(self, x: Tensor) -> Tensor | None:
        """Which elements of x stay (bool), or None where nothing is dropped."""
        if not self.active:
            return None
        return torch.empty_like(x, dtype=torch.bool).bernoulli_(1 - self.p, generator=self.generator)

    def extra_repr(self) -> str:
        return f"p={self.p}"
