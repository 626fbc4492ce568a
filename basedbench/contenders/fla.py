"""flash-linear-attention (https://github.com/fla-org/flash-linear-attention): Taylor and linear attention in Triton.

Its `based` kernels divide by the sum of the weights + 1e-6 and its linear attention by the sum + 1e-10, where the
operators here add 1e-12: no difference at their precision. Its linear attention takes mapped features, so elu + 1 is
timed with it.
"""

import torch.nn.functional as F
from torch import Tensor

from basedbench.config.throughput import Case
from basedbench.contenders.base import Call, Contender, Tensors, needs_cuda


class _Fla(Contender):
    package = "flash-linear-attention"

    def limits(self, case: Case) -> str | None:
        if case.mode == "decode":
            return "flash-linear-attention is compared on whole sequences only"
        return needs_cuda(case)


class FusedChunkBased(_Fla):
    """Taylor attention walking the sequence with a state."""

    name = "fla-fused-chunk"
    operators = ("taylor_attention",)

    def limits(self, case: Case) -> str | None:
        too_wide = "its state form takes key widths up to 16" if case.key_dim > 16 else None
        return super().limits(case) or too_wide

    def build(self, case: Case) -> Call:
        from fla.ops.based import fused_chunk_based

        return lambda tensors: fused_chunk_based(*tensors.values())


class ParallelBased(_Fla):
    """Taylor attention in its quadratic form."""

    name = "fla-parallel"
    operators = ("taylor_attention",)

    def limits(self, case: Case) -> str | None:
        too_wide = "its quadratic form takes key widths up to 128" if case.key_dim > 128 else None
        return super().limits(case) or too_wide

    def build(self, case: Case) -> Call:
        from fla.ops.based import parallel_based

        return lambda tensors: parallel_based(*tensors.values())


class ChunkLinear(_Fla):
    """Linear attention in chunks."""

    name = "fla-chunk"
    operators = ("linear_attention",)

    def build(self, case: Case) -> Call:
        from fla.ops.linear_attn import chunk_linear_attn

        def call(tensors: Tensors) -> Tensor:
            q, k, v = tensors.values()
            # The scale cancels against the normaliser; 1 keeps both away from its small constant.
            y: Tensor = chunk_linear_attn(F.elu(q) + 1, F.elu(k) + 1, v, scale=1.0, normalize=True)[0]
            return y

        return call
