"""Tokens whose outputs are asked for: a model that is trained and judged at a few positions needs no others at its end.

    out_k = x_(p_k)        p: the asked positions of an example

Their rows are taken where a layer no longer mixes tokens: what follows costs K rows instead of L, and its gradient
comes back as K rows. `slots` says for every token where its row lies among those, so that a backward pass can write
rows and zeros in one pass instead of clearing and scattering.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from .packing import Packing


class Questions(NamedTuple):
    """Which tokens of a batch are asked for.

    positions_BK: int64, distinct within an example. slots_BL: int32, the token's row b K + k, or -1. With `packing` the
    slots are (1,T), and positions still those within an example.
    """

    positions_BK: Tensor
    slots_BL: Tensor
    packing: Packing | None = None

    def rows(self, y_BLE: Tensor) -> Tensor:
        """Rows of a tensor (B,L,E), or with `packing` (1,T,E), at the asked tokens -> (B,K,E)."""
        if self.packing is None:
            return take_rows(y_BLE, self.positions_BK, self.slots_BL)
        at_xK = (self.positions_BK + self.packing.starts_B[:-1, None]).view(1, -1)
        return take_rows(y_BLE, at_xK, self.slots_BL).view(*self.positions_BK.shape, -1)


class Asked(NamedTuple):
    """The asked tokens of a batch, and what a layer reads at them: x_BKD, the rows of x_BLD there."""

    questions: Questions
    x_BKD: Tensor

    @property
    def positions_BK(self) -> Tensor:  # noqa: N802
        """See `Questions`."""
        return self.questions.positions_BK

    @property
    def slots_BL(self) -> Tensor:  # noqa: N802
        """See `Questions`."""
        return self.questions.slots_BL

    @property
    def packing(self) -> Packing | None:
        """See `Questions`."""
        return self.questions.packing

    def rows(self, y_BLE: Tensor) -> Tensor:
        """Those of another tensor: see `Questions`."""
        return self.questions.rows(y_BLE)


def slots_of(positions_BK: Tensor, length: int) -> Tensor:
    """The slots (B,L) int32 of `Asked`, from positions (B,K) int64; any device."""
    batch, asked = positions_BK.shape
    rows = torch.arange(batch * asked, dtype=torch.int32, device=positions_BK.device).view(batch, asked)
    slots = torch.full((batch, length), -1, dtype=torch.int32, device=positions_BK.device)
    return slots.scatter_(1, positions_BK, rows)


def questions_at(positions_BK: Tensor, length: int) -> Questions:
    """`Questions` at these positions of examples of one length."""
    return Questions(positions_BK, slots_of(positions_BK, length))


def ask(x_BLD: Tensor, questions: Questions) -> Asked:
    """`Asked` with rows of x (B,L,D) taken here."""
    return Asked(questions, questions.rows(x_BLD))


def reference(x_BLD: Tensor, positions_BK: Tensor) -> Tensor:
    """`take_rows` in PyTorch: differentiable, any device."""
    return x_BLD.gather(1, positions_BK[..., None].expand(-1, -1, x_BLD.shape[-1]))


def take_rows(x_BLD: Tensor, positions_BK: Tensor, slots_BL: Tensor) -> Tensor:
    """Rows of x (B,L,D) at `positions_BK` -> (B,K,D), contiguous. `slots_BL`: see `Asked`; what the gradient reads."""
    if x_BLD.is_cuda:
        from .asked_triton import take_rows as by_triton

        return by_triton(x_BLD, positions_BK, slots_BL)
    return reference(x_BLD, positions_BK)
