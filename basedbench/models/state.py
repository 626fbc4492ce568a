"""How large a model's state is: measured from the tensors its decode step carries, and as two published counts."""

from typing import Protocol

import torch

from basedbench.mixers.base import State
from basedbench.models.recall import RecallModel

PUBLISHED_ELEMENT_BYTES = 4  # both published axes count fp32 elements


class Decodes(Protocol):
    """Anything with the decode half of the mixer contract: a mixer or a whole model."""

    def init_state(
        self, batch_size: int, max_length: int, dtype: torch.dtype = ..., device: torch.device | str | None = ...
    ) -> State: ...


def state_bytes(model: Decodes, length: int, dtype: torch.dtype = torch.float32) -> int:
    """Bytes per sequence that decoding carries at `length` tokens, summed over the tensors of `init_state`.

    Accumulated states stay fp32 (fp64 for fp64) whatever `dtype` is asked; caches of past inputs take `dtype`.
    """
    state = model.init_state(1, length, dtype, device="meta")
    return sum(tensor.numel() * tensor.element_size() for tensor in state.values())


def state_bytes_zoology(model: RecallModel, length: int = 1024) -> int:
    """zoology's count: 4 bytes x the elements each layer declares (its known errors included)."""
    return PUBLISHED_ELEMENT_BYTES * sum(mixer.zoology_elements(length) for mixer in model.mixers)


def state_bytes_paper(model: RecallModel, length: int = 1024) -> int:
    """The axis as printed in the BASED paper's Figure 2 (arXiv 2402.18668): zoology's count without BaseConv."""
    return PUBLISHED_ELEMENT_BYTES * sum(mixer.paper_elements(length) for mixer in model.mixers)
