"""BASED: linear attention with the second-order Taylor feature map of exp (arXiv 2402.18668, section 4).

    phi(q) . phi(k) = 1 + s + s^2 / 2,   s = q . k / sqrt(f)
    y_i = sum_{j <= i} A_ij v_j / (sum_{j <= i} A_ij + 1e-12),   A_ij = phi(q_i) . phi(k_j)

q, k: d to f = feature_dim per head; v: d to d; out: d to d; no biases, no rotary embedding. With `window` > 0 a
sliding-window attention branch over the same input, with q, k, v of its own, is added before the output projection (the
recall recipe has none).
State: per head the packed features x (values + 1 normaliser), always in fp32 (fp64 for fp64); the branch keeps a ring.

    state_bytes = a * (1 + f + f * (f + 1) // 2) * (d + heads) + (2 * e * d * window + 4) * (window > 0)

(d = d_model, f = feature_dim, a = 4 bytes or 8 for fp64, e = bytes of the asked dtype.) zoology counts the same
elements.
"""

from typing import Any, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from basedbench.kernels import (
    sliding_window,
    sliding_window_step,
    taylor_attention,
    taylor_attention_asked,
    taylor_attention_step,
)
from basedbench.kernels.asked import Asked
from basedbench.kernels.linear_asked import linear_asked
from basedbench.kernels.slices import cut
from basedbench.kernels.taylor_attention import apart
from basedbench.mixers.base import Mixer, MixerOptions, State, accumulator_dtype, project, require_heads
from basedbench.mixers.registry import register
from basedbench.mixers.sliding_window import empty_ring, filled_ring


class BasedOptions(MixerOptions):
    feature_dim: int = Field(
        16, ge=1, description="Width of queries and keys per head; the state grows with its square."
    )
    heads: int = Field(1, ge=1, description="Heads; they divide d_model.")
    window: int = Field(0, ge=0, description="Past tokens seen by an added sliding-window branch; 0: no such branch.")


@register
class Based(Mixer):
    """Causal Taylor linear attention, optionally with a sliding window beside it; (B, L, D) to (B, L, D)."""

    name = "based"
    Options = BasedOptions
    options: BasedOptions

    def __init__(self, d_model: int, **options: Any) -> None:
        super().__init__(d_model, **options)
        keys = self.options.feature_dim * self.options.heads
        self.widths = [keys, keys, d_model] + [d_model] * (3 if self.options.window else 0)
        self.in_proj = nn.Linear(d_model, sum(self.widths), bias=False)
        self.out_proj = nn.Linear(d_model, d_model, bias=False)

    @classmethod
    def check(cls, d_model: int, options: BasedOptions) -> None:
        require_heads(cls.name, d_model, options.heads)

    def _project(self, x_xD: Tensor) -> tuple[Tensor, ...]:
        """q, k, v of the linear attention, then those of the window branch if there is one, each (..., H, K)."""
        return self._split(project(self.in_proj, x_xD))

    def _split(self, p_xE: Tensor) -> tuple[Tensor, ...]:
        return tuple(part.unflatten(-1, (self.options.heads, -1)) for part in cut(p_xE, self.widths))

    def forward(self, x_BLD: Tensor) -> Tensor:
        q_BLHK, k_BLHK, v_BLHV, *local = self._project(x_BLD)
        y_BLHV = cast(Tensor, taylor_attention(q_BLHK, k_BLHK, v_BLHV))
        if local:
            y_BLHV = y_BLHV + sliding_window(local[0], local[1], local[2], self.options.window)
        return self.out_proj(y_BLHV.flatten(2))

    @classmethod
    def packs(cls, options: BasedOptions, *, asked: bool) -> bool:
        return asked and not options.window

    def forward_asked(self, x_BLD: Tensor, asked: Asked) -> Tensor:
        if self.options.window:
            return super().forward_asked(x_BLD, asked)
        keys, heads = self.widths[0], self.options.heads
        kv_BLE, q_BKE = linear_asked(x_BLD, asked.x_BKD, self.in_proj.weight, None, slice(keys))
        k_BLHK, v_BLHV = (part.unflatten(-1, (heads, -1)) for part in cut(kv_BLE, self.widths[1:]))
        q_BKHK = q_BKE.unflatten(-1, (heads, -1))
        y_BKHV = taylor_attention_asked(q_BKHK, k_BLHK, v_BLHV, asked.positions_BK, packing=asked.packing)
        return self.out_proj(y_BKHV.flatten(2))

    def prefill(self, x_BLD: Tensor, max_length: int | None = None) -> tuple[Tensor, State]:
        q_BLHK, k_BLHK, v_BLHV, *local = self._project(x_BLD)
        y_BLHV, state_BHFW = taylor_attention(q_BLHK, k_BLHK, v_BLHV, return_state=True)
        state = dict(zip(("state", "sums"), apart(state_BHFW), strict=True))
        if local:
            y_BLHV = y_BLHV + sliding_window(local[0], local[1], local[2], self.options.window)
            state |= filled_ring(local[1], local[2], self.options.window)
        return self.out_proj(y_BLHV.flatten(2)), state

    def init_state(
        self,
        batch_size: int,
        max_length: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> State:
        heads, window, features = self.options.heads, self.options.window, packed_features(self.options.feature_dim)
        width = self.d_model // heads
        sums = torch.zeros(batch_size, heads, features, dtype=accumulator_dtype(dtype), device=device)
        state = {"state": sums.new_zeros(*sums.shape, width), "sums": sums}
        if window:
            state |= empty_ring((batch_size, window, heads, width), dtype, device)
        return state

    def step(self, x_BD: Tensor, state: State) -> tuple[Tensor, State]:
        return project(self.out_proj, self.step_between(project(self.in_proj, x_BD), state)), state

    def step_between(self, p_BE: Tensor, state: State) -> Tensor:
        """A step from the outputs of `in_proj` to the inputs of `out_proj`."""
        q_BHK, k_BHK, v_BHV, *local = self._split(p_BE)
        y_BHV = taylor_attention_step(q_BHK, k_BHK, v_BHV, state["state"], state["sums"], count_B=state.get("count"))
        if local:
            q_BHK, k_BHK, v_BHV = local
            y_BHV = y_BHV + sliding_window_step(q_BHK, k_BHK, v_BHV, state["k"], state["v"], state["position"])
        return y_BHV.flatten(1)

    def zoology_elements(self, length: int) -> int:
        linear = packed_features(self.options.feature_dim) * (self.d_model + self.options.heads)
        return linear + 2 * self.d_model * self.options.window


def packed_features(feature_dim: int) -> int:
    """Features of the Taylor map, counting each symmetric second-order product once: 1 + f + f (f + 1) / 2."""
    return 1 + feature_dim + feature_dim * (feature_dim + 1) // 2
