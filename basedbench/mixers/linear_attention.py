"""Linear attention with the feature map elu + 1 (Transformers are RNNs, arXiv 2006.16236).

    y_i = sum_{j <= i} (phi(q_i) . phi(k_j)) v_j / (sum_{j <= i} phi(q_i) . phi(k_j)),   phi(x) = elu(x) + 1

q, k: d to f = feature_dim per head; v: d to d; out: d to d; no biases: BASED with another feature map.
State: per head the features x (values + 1 normaliser), always in fp32 (fp64 for fp64).

    state_bytes = a * feature_dim * (d + heads)

(d = d_model, a = 4 bytes or 8 for fp64.) zoology counts the same elements.
"""

from typing import Any, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from basedbench.kernels import linear_attention, linear_attention_step
from basedbench.mixers.base import Mixer, MixerOptions, State, accumulator_dtype, require_heads
from basedbench.mixers.registry import register


class LinearAttentionOptions(MixerOptions):
    feature_dim: int = Field(16, ge=1, description="Width of queries, keys and features per head.")
    heads: int = Field(1, ge=1, description="Heads; they divide d_model.")


@register
class LinearAttention(Mixer):
    """Causal linear attention with elu + 1 features; (B, L, D) to (B, L, D)."""

    name = "linear_attention"
    Options = LinearAttentionOptions
    options: LinearAttentionOptions

    def __init__(self, d_model: int, **options: Any) -> None:
        super().__init__(d_model, **options)
        keys = self.options.feature_dim * self.options.heads
        self.widths = [keys, keys, d_model]
        self.in_proj = nn.Linear(d_model, sum(self.widths), bias=False)
        self.out_proj = nn.Linear(d_model, d_model, bias=False)

    @classmethod
    def check(cls, d_model: int, options: LinearAttentionOptions) -> None:
        require_heads(cls.name, d_model, options.heads)

    def _project(self, x_xD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q, k, v of (..., H, K)."""
        q, k, v = (part.unflatten(-1, (self.options.heads, -1)) for part in self.in_proj(x_xD).split(self.widths, -1))
        return q, k, v

    def forward(self, x_BLD: Tensor) -> Tensor:
        y_BLHV = cast(Tensor, linear_attention(*self._project(x_BLD)))
        return self.out_proj(y_BLHV.flatten(2))

    def prefill(self, x_BLD: Tensor, max_length: int | None = None) -> tuple[Tensor, State]:
        y_BLHV, state_BHKW = linear_attention(*self._project(x_BLD), return_state=True)
        return self.out_proj(y_BLHV.flatten(2)), {"state": state_BHKW}

    def init_state(
        self,
        batch_size: int,
        max_length: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> State:
        heads = self.options.heads
        shape = (batch_size, heads, self.options.feature_dim, self.d_model // heads + 1)
        return {"state": torch.zeros(shape, dtype=accumulator_dtype(dtype), device=device)}

    def step(self, x_BD: Tensor, state: State) -> tuple[Tensor, State]:
        y_BHV = linear_attention_step(*self._project(x_BD), state["state"])
        return self.out_proj(y_BHV.flatten(1)), state

    def zoology_elements(self, length: int) -> int:
        return self.options.feature_dim * (self.d_model + self.options.heads)
