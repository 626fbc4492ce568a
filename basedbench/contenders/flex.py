"""FlexAttention, compiled: causal attention and sliding-window attention as block-sparse masks."""

from importlib import import_module

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from basedbench.config.throughput import Case
from basedbench.contenders.base import Call, Contender, Tensors
from basedbench.contenders.compiled import compiled

BLOCK = 128  # queries and keys of a block, as in FlexAttention
LONGEST_DENSE = 2**15  # beyond it a mask's entries, of 8 bytes each while its blocks are found, are tens of gigabytes


def band(length: int, window: int, device: str) -> BlockMask:
    """Keys from `window` tokens before a query up to itself."""

    def visible(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) & (query - key <= window)

    if length > LONGEST_DENSE:
        return BlockMask.from_kv_blocks(
            *blocks(length, window, device), BLOCK_SIZE=BLOCK, mask_mod=visible, seq_lengths=(length, length)
        )
    return create_block_mask(visible, None, None, length, length, device=device)


def blocks(length: int, window: int, device: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of each block of queries: how many blocks of keys it sees in part, and which, those first; then the whole ones.

    Shapes (1,1,blocks) and (1,1,blocks,blocks).
    """
    last = torch.arange(BLOCK - 1, length + BLOCK - 1, BLOCK, device=device)
    query, key = last[:, None], last[None, :]
    seen = (key <= query) & (query - key - BLOCK + 1 <= window)
    whole = (key < query) & (query - key + BLOCK - 1 <= window) & (query < length)
    found: list[Tensor] = []
    for mask in (seen & ~whole, whole):
        mask_1 = mask[None, None].int()
        order = torch.argsort(mask_1, dim=-1, descending=True, stable=True)
        found += [mask_1.sum(-1, dtype=torch.int32), order.int()]
    return found[0], found[1], found[2], found[3]


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
        mask = band(case.length, case.config.get("window", case.length), case.device)

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
