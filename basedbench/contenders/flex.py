"""FlexAttention, compiled: causal attention and sliding-window attention as block-sparse masks."""

from importlib import import_module

from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from basedbench.config.throughput import Case
from basedbench.contenders.base import Call, Contender, Tensors
from basedbench.contenders.compiled import compiled


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

        def attention(q_BHLK: Tensor, k_BHLK: Tensor, v_BHLV: Tensor, mask: BlockMask) -> Tensor:
            y_BHLV = flex_attention(q_BHLK, k_BHLK, v_BHLV, block_mask=mask)
            assert isinstance(y_BHLV, Tensor)
            return y_BHLV

        function = compiled(attention)

        def call(tensors: Tensors) -> Tensor:
            q, k, v = (x.transpose(1, 2) for x in tensors.values())
            y: Tensor = function(q, k, v, mask)
            return y.transpose(1, 2)

        return call
