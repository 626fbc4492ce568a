"""torch.nn.functional.scaled_dot_product_attention, pinned to one backend each.

Left alone, torch chooses by device, dtype and shape; a comparison must say which kernel it timed. On a CPU the flash
backend is torch's own blocked kernel. The (B,L,H,K) tensors are passed as transposed views, which all backends take.
"""

from contextlib import AbstractContextManager

import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from basedbench.config.throughput import Case
from basedbench.contenders.base import Call, Contender, Tensors, needs_cuda, needs_half


class Sdpa(Contender):
    """One backend of scaled_dot_product_attention."""

    operators = ("attention",)
    package = "torch"

    def __init__(self, name: str, backend: SDPBackend) -> None:
        self.name, self.backend = name, backend

    def limits(self, case: Case) -> str | None:
        if self.backend is SDPBackend.MATH:
            return None
        if case.key_dim != case.value_dim and self.backend is not SDPBackend.EFFICIENT_ATTENTION:
            return f"{self.name} needs equal key and value widths"
        if self.backend is SDPBackend.FLASH_ATTENTION and case.device == "cpu":
            return None
        if self.backend is not SDPBackend.EFFICIENT_ATTENTION:
            return needs_cuda(case) or needs_half(case)
        return needs_cuda(case)

    def context(self, case: Case) -> AbstractContextManager[object]:
        return sdpa_kernel(self.backend)

    def build(self, case: Case) -> Call:
        def sequence(tensors: Tensors) -> object:
            q, k, v = (x.transpose(1, 2) for x in tensors.values())
            return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)

        def step(tensors: Tensors) -> object:
            q_BHK, k, v = tensors.values()
            # One query reads the whole cache: causal masking would only rule out the fastest kernels.
            y = F.scaled_dot_product_attention(q_BHK.unsqueeze(2), k.transpose(1, 2), v.transpose(1, 2))
            return y.squeeze(2)

        return step if case.mode == "decode" else sequence  # type: ignore[return-value]


BACKENDS = (
    Sdpa("sdpa-flash", SDPBackend.FLASH_ATTENTION),
    Sdpa("sdpa-cudnn", SDPBackend.CUDNN_ATTENTION),
    Sdpa("sdpa-efficient", SDPBackend.EFFICIENT_ATTENTION),
    Sdpa("sdpa-math", SDPBackend.MATH),
)
