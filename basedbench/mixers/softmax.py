"""What the mixers with softmax attention share: projections, dropout on the weights, initialisation."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from basedbench.kernels import linear
from basedbench.kernels.asked import Asked
from basedbench.kernels.linear_asked import linear_asked
from basedbench.kernels.slices import cut
from basedbench.mixers.base import Init, Mixer, MixerOptions, normal_linear_, require_heads, residual_std
from basedbench.models.dropout import Dropout


class SoftmaxOptions(MixerOptions):
    heads: int = Field(1, ge=1, description="Attention heads; they divide d_model.")
    dropout: float = Field(0.1, ge=0, lt=1, description="Dropout on the attention weights in training.")


class SoftmaxMixer(Mixer):
    """Fused qkv with bias, out_proj with bias; what lies between is the derived class's."""

    options: Any  # a SoftmaxOptions, or what a derived class makes of it

    def __init__(self, d_model: int, **options: Any) -> None:
        super().__init__(d_model, **options)
        self.qkv = nn.Linear(d_model, 3 * d_model)
        self.out_proj = nn.Linear(d_model, d_model)
        self.dropout = Dropout(self.options.dropout)

    @classmethod
    def check(cls, d_model: int, options: SoftmaxOptions) -> None:
        require_heads(cls.name, d_model, options.heads)

    @classmethod
    def init_matters(cls, options: Mapping[str, Any]) -> bool:
        return False

    def initialise(self, layers: int, init: Init) -> None:
        super().initialise(layers, init)
        normal_linear_(self.out_proj, residual_std(layers))

    def _project(self, x_xD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q, k, v of (..., H, K)."""
        parts = cut(linear(x_xD, self.qkv.weight, self.qkv.bias), [self.d_model] * 3)
        q, k, v = (part.unflatten(-1, (self.options.heads, -1)) for part in parts)
        return q, k, v

    def _project_asked(self, x_BLD: Tensor, asked: Asked) -> tuple[Tensor, Tensor, Tensor]:
        """q of (B, K, H, K) at asked tokens; k and v of (B, L, H, K). The bias gets no gradient from them."""
        kv, q = linear_asked(x_BLD, asked.x_BKD, self.qkv.weight, self.qkv.bias.detach(), slice(self.d_model))
        k, v = cut(kv, [self.d_model] * 2)
        q, k, v = (part.unflatten(-1, (self.options.heads, -1)) for part in (q, k, v))
        return q, k, v

    def _output(self, y_xHK: Tensor) -> Tensor:
        """(..., H, K) -> (..., D)."""
        return linear(y_xHK.flatten(-2), self.out_proj.weight, self.out_proj.bias)


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
