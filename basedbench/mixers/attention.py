"""Softmax attention (arXiv 1706.03762) as in the recall recipe: fused qkv with bias, no positional embedding.

    y_i = sum_{j <= i} softmax_j(q_i . k_j / sqrt(K)) v_j,   out = W y + b        K = d / heads

State: every past key and value. `init_state` and `prefill(x, max_length)` reserve room for max_length tokens and carry
a position; `prefill(x)` returns a cache of exactly its length, which each step lengthens by one.

    state_bytes = 2 * e * d * L + 4

(d = d_model, L = max_length, e = bytes of the asked dtype; 4 for the position.) zoology counts 2 d L elements.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from basedbench.mixers.base import State, check_room
from basedbench.mixers.registry import register
from basedbench.mixers.softmax import SoftmaxMixer, SoftmaxOptions, dropped_attention


@register
class Attention(SoftmaxMixer):
    """Causal softmax attention; (B, L, D) to (B, L, D)."""

    name = "attention"
    Options = SoftmaxOptions
    options: SoftmaxOptions

    def forward(self, x_BLD: Tensor) -> Tensor:
        q_BLHK, k_BLHK, v_BLHK = self._project(x_BLD)
        if self.dropout.active:
            y_BLHK = dropped_attention(q_BLHK, k_BLHK, v_BLHK, self.dropout)
        else:
            y_BLHK = causal_attention(q_BLHK, k_BLHK, v_BLHK)
        return self._output(y_BLHK)

    def prefill(self, x_BLD: Tensor, max_length: int | None = None) -> tuple[Tensor, State]:
        q_BLHK, k_BLHK, v_BLHK = self._project(x_BLD)
        y_BLD = self._output(causal_attention(q_BLHK, k_BLHK, v_BLHK))
        if max_length is None:
            return y_BLD, {"k": k_BLHK.contiguous(), "v": v_BLHK.contiguous()}
        batch, length, _ = x_BLD.shape
        check_room(self.name, length, max_length)
        state = self.init_state(batch, max_length, x_BLD.dtype, x_BLD.device)
        state["k"][:, :length] = k_BLHK
        state["v"][:, :length] = v_BLHK
        state["position"].fill_(length)
        return y_BLD, state

    def init_state(
        self,
        batch_size: int,
        max_length: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> State:
        heads = self.options.heads
        shape = (batch_size, max_length, heads, self.d_model // heads)
        return {
            "k": torch.zeros(shape, dtype=dtype, device=device),
            "v": torch.zeros(shape, dtype=dtype, device=device),
            "position": torch.zeros(batch_size, dtype=torch.int32, device=device),
        }

    def step(self, x_BD: Tensor, state: State) -> tuple[Tensor, State]:
        q_BHK, k_BHK, v_BHK = self._project(x_BD)
        mask_BxxL = None
        if "position" in state:
            mask_BxxL = _append(k_BHK, v_BHK, state)
        else:
            state = {name: torch.cat((state[name], new[:, None]), 1) for name, new in (("k", k_BHK), ("v", v_BHK))}
        k_BHLK, v_BHLK = (state[name].to(q_BHK.dtype).transpose(1, 2) for name in ("k", "v"))
        y_BHxK = F.scaled_dot_product_attention(q_BHK[:, :, None], k_BHLK, v_BHLK, attn_mask=mask_BxxL)
        return self._output(y_BHxK.squeeze(2)), state

    def zoology_elements(self, length: int) -> int:
        return 2 * self.d_model * length


def causal_attention(q_BLHK: Tensor, k_BLHK: Tensor, v_BLHK: Tensor) -> Tensor:
    """Causal softmax attention by PyTorch's fused kernels; (B, L, H, K)."""
    q_BHLK, k_BHLK, v_BHLK = (x.transpose(1, 2) for x in (q_BLHK, k_BLHK, v_BLHK))
    return F.scaled_dot_product_attention(q_BHLK, k_BHLK, v_BHLK, is_causal=True).transpose(1, 2)


def _append(k_BHK: Tensor, v_BHK: Tensor, state: State) -> Tensor:
    """Write one token into the reserved cache, in place; returns which keys it may see, (B, 1, 1, L) bool."""
    position_B = state["position"]
    for name, new_BHK in (("k", k_BHK), ("v", v_BHK)):
        index_BxHK = position_B.long().view(-1, 1, 1, 1).expand(-1, 1, *new_BHK.shape[1:])
        state[name].scatter_(1, index_BxHK, new_BHK[:, None].to(state[name].dtype))
    slot_L = torch.arange(state["k"].shape[1], device=position_B.device)
    mask_BL = slot_L <= position_B[:, None]
    position_B += 1
    return mask_BL[:, None, None]
