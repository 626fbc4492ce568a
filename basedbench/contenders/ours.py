"""basedbench's own implementations: the public functions of basedbench.kernels, and their PyTorch references."""

import torch
from torch import Tensor

from basedbench import __version__
from basedbench.config.throughput import OPERATOR_AXES, Case
from basedbench.contenders.base import Call, Contender, Tensors
from basedbench.contenders.operators import bind, operator_of
from basedbench.kernels import attention_decode


class Ours(Contender):
    """The public functions: Triton on a GPU where there is a kernel, the reference elsewhere."""

    name = "ours"
    operators = tuple(OPERATOR_AXES)

    @property
    def version(self) -> str | None:
        return __version__

    def limits(self, case: Case) -> str | None:
        if case.operator == "attention" and case.mode != "decode":
            return "ours computes attention in decoding only"
        return None

    def build(self, case: Case) -> Call:
        if case.operator == "attention":
            return attention_step()
        public = operator_of(case).public
        assert public is not None  # every other operator has one
        return bind(public, case)


class Reference(Contender):
    """The PyTorch references, eager."""

    name = "reference"
    operators = tuple(OPERATOR_AXES)
    package = "torch"

    def build(self, case: Case) -> Call:
        return bind(operator_of(case).reference, case)


def attention_step() -> Call:
    """`attention_decode` on a cache whose last token is the new one: it is read as an input and written again.

    The lengths are made in the first call: they are no part of the step.
    """
    lengths: dict[torch.device, Tensor] = {}

    def call(tensors: Tensors) -> Tensor:
        q_BHK, k_BLHK, v_BLHV = tensors.values()
        last = k_BLHK.shape[1] - 1
        if q_BHK.device not in lengths:
            lengths[q_BHK.device] = torch.full((len(q_BHK),), last, dtype=torch.int32, device=q_BHK.device)
        k_BHK, v_BHV = k_BLHK[:, last], v_BLHV[:, last]
        if not q_BHK.is_cuda:  # the reference would write the caches' last rows to themselves, which PyTorch may refuse
            k_BHK, v_BHV = k_BHK.clone(), v_BHV.clone()
        return attention_decode(q_BHK, k_BHK, v_BHV, k_BLHK, v_BLHV, lengths[q_BHK.device])

    return call
