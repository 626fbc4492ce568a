"""Softmax attention (arXiv 1706.03762) as in the recall recipe: fused qkv with bias, no positional embedding.

    y_i = sum_{j <= i} softmax_j(q_i . k_j / sqrt(K)) v_j,   out = W y + b        K = d / heads

State: every past key and value. `init_state` and `prefill(x, max_length)` reserve room for max_length tokens and carry
a position; `prefill(x)` returns a cache of exactly its length, which each step lengthens by one.

    state_bytes = 2 * e * d * L + 4

(d = d_model, L = max_length, e = bytes of the asked dtype; 4 for the position.) zoology counts 2 d L elements.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from basedbench.mixers.base import Init, Mixer, MixerOptions, State, normal_linear_, require_heads, residual_std
from basedbench.mixers.registry import register
from basedbench.models.dropout import Dropout


class AttentionOptions(MixerOptions):
    heads: int = Field(1, ge=1, description="Attention heads; they divide d_model.")
    dropout: float = Field(0.1, ge=0, lt=1, description="Dropout on the attention weights in training.")


@register
class Attention(Mixer):
    """Causal softmax attention; (B, L, D) to (B, L, D)."""

    name = "attention"
    Options = AttentionOptions
    options: AttentionOptions

    def __init__(self, d_model: int, **options: Any) -> None:
        super().__init__(d_model, **options)
        self.qkv = nn.Linear(d_model, 3 * d_model)
        self.out_proj = nn.Linear(d_model, d_model)
        self.dropout = Dropout(self.options.dropout)

    @classmethod
    def check(cls, d_model: int, options: AttentionOptions) -> None:
        require_heads(cls.name, d_model, options.heads)

    def _project(self, x_xD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q, k, v of (..., H, K)."""
        q, k, v = self.qkv(x_xD).unflatten(-1, (3, self.options.heads, -1)).unbind(-3)
        return q, k, v

    def forward(self, x_BLD: Tensor) -> Tensor:
        q_BLHK, k_BLHK, v_BLHK = self._project(x_BLD)
        if self.dropout.active:
            y_BLHK = dropped_attention(q_BLHK, k_BLHK, v_BLHK, self.dropout)
        else:
            y_BLHK = causal_attention(q_BLHK, k_BLHK, v_BLHK)
        return self.out_proj(y_BLHK.flatten(2))

    def prefill(self, x_BLD: Tensor, max_length: int | None = None) -> tuple[Tensor, State]:
        q_BLHK, k_BLHK, v_BLHK = self._project(x_BLD)
        y_BLD = self.out_proj(causal_attention(q_BLHK, k_BLHK, v_BLHK).flatten(2))
        if max_length is None:
            return y_BLD, {"k": k_BLHK.contiguous(), "v": v_BLHK.contiguous()}
        batch, length, _ = x_BLD.shape
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
        return self.out_proj(y_BHxK.flatten(1)), state

    def zoology_elements(self, length: int) -> int:
        return 2 * self.d_model * length

    def initialise(self, layers: int, init: Init) -> None:
        super().initialise(layers, init)
        normal_linear_(self.out_proj, residual_std(layers))


def causal_attention(q_BLHK: Tensor, k_BLHK: Tensor, v_BLHK: Tensor) -> Tensor:
    """Causal softmax attention by PyTorch's fused kernels; (B, L, H, K)."""
    q_BHLK, k_BHLK, v_BHLK = (x.transpose(1, 2) for x in (q_BLHK, k_BLHK, v_BLHK))
    return F.scaled_dot_product_attention(q_BHLK, k_BHLK, v_BHLK, is_causal=True).transpose(1, 2)


def dropped_attention(
    q_BLHK: Tensor, k_BLHK: Tensor, v_BLHK: Tensor, dropout: Dropout, window: int | None = None
) -> Tensor:
    """Causal softmax attention whose weights pass through `dropout`; with a window, over keys i - window ... i.

    Written out because the fused kernels cannot draw from a generator of ours. Quadratic memory in L.
    """
    batch, length, heads, width = q_BLHK.shape
    far = torch.full((length, length), -math.inf, dtype=q_BLHK.dtype, device=q_BLHK.device)
    bias_LL = far.triu(1) if window is None else far.triu(1) + far.tril(-window - 1)
    q_XLK, k_XLK, v_XLK = (x.transpose(1, 2).reshape(-1, length, width) for x in (q_BLHK, k_BLHK, v_BLHK))
    scores_XLL = torch.baddbmm(bias_LL, q_XLK, k_XLK.transpose(1, 2), alpha=1 / math.sqrt(width))
    y_XLK = torch.bmm(dropout(scores_XLL.softmax(-1)), v_XLK)
    return y_XLK.view(batch, heads, length, width).transpose(1, 2)


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
