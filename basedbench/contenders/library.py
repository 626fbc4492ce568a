"""PyTorch's own functions where an operator is usually written with them, as it stands and compiled.

Losses: F.cross_entropy of float32 logits, as training loops take it (in half precision it rounds them, too much for the
operators' tolerance), and an argmax for the hits, which training would leave out.
"""

from importlib import import_module

import torch.nn.functional as F
from torch import Tensor

from basedbench.config.throughput import Case
from basedbench.contenders.base import Call, Contender, Tensors, needs_cuda
from basedbench.contenders.compiled import compiled


def _cross_entropy(x_ND: Tensor, weight_VD: Tensor, target_N: Tensor) -> tuple[Tensor, Tensor]:
    logits_NV = F.linear(x_ND, weight_VD)
    return F.cross_entropy(logits_NV.float(), target_N, reduction="none"), logits_NV.argmax(-1) == target_N


class Library(Contender):
    """Called as it is."""

    name = "torch"
    operators = ("linear_cross_entropy",)
    package = "torch"

    def build(self, case: Case) -> Call:
        return lambda tensors: _cross_entropy(**tensors)


class Compiled(Library):
    """By torch.compile, for the case's shape alone."""

    name = "torch-compile"

    def limits(self, case: Case) -> str | None:
        return needs_cuda(case)

    def imports(self, case: Case) -> None:
        import_module("torch._inductor.compile_fx")

    def build(self, case: Case) -> Call:
        function = compiled(_cross_entropy)

        def call(tensors: Tensors) -> tuple[Tensor, ...]:
            found = function(**tensors)
            assert isinstance(found, tuple)
            return found

        return call
