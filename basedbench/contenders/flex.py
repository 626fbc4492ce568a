"""FlexAttention, compiled: causal attention and sliding-window attention as block-sparse masks."""

from importlib import import_module

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from basedbench.config.throughput import Case
from basedbench.contenders.base import Call, Contender, Tensors


class Flex(Contender):
    """torch.compile of flex_attention; the mask is built with the call, outside the timing, as a model would."""

    name = "flex"
    operators = ("attention", "sliding_window")
    package = "torch"

    def limits(self, case: Case) -> str | None:
        if case.mode == "decode":
            return "FlexAttention is compared on whole sequences only"
        if case.mode == "fwd_bwd" and case.device == "cpu":
            return "FlexAttention has no backward on a CPU"
        return None

    def imports(self, case: Case) -> None:
        import_module("torch._inductor.compile_fx")

    def build(self, case: Case) -> Call:
        window = case.config.get("window", case.length)

        def visible(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            return (key <= query) & (query - key <= window)

        mask = create_block_mask(visible, None, None, case.length, case.length, device=case.device)
        compiled = torch.compile(flex_attention, dynamic=False)

        def call(tensors: Tensors) -> Tensor:
            q, k, v = (x.transpose(1, 2) for x in tensors.values())
            y = compiled(q, k, v, block_mask=mask)
            assert isinstance(y, Tensor)
            return y.transpose(1, 2)

        return call
