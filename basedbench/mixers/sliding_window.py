"""Sliding-window attention as in the recall recipe: softmax attention over keys i - window ... i.

    y_i = sum_{i - window <= j <= i} softmax_j(q_i . k_j / sqrt(K)) v_j,   out = W y + b        K = d / heads

Fused qkv with bias, no positional embedding; the released recipe uses no attention dropout here. Longformer (arXiv
2004.05150), BASED (2402.18668). State: a ring of the last `window` keys and values, and the number of tokens seen.

    state_bytes = 2 * e * d * window + 4

(d = d_model, e = bytes of the asked dtype; 4 for the position.) zoology counts 2 d window elements.
"""

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from basedbench.kernels import sliding_window, sliding_window_asked, sliding_window_step
from basedbench.kernels.asked import Asked
from basedbench.mixers.base import State
from basedbench.mixers.registry import register
from basedbench.mixers.softmax import SoftmaxMixer, SoftmaxOptions, dropped_attention


class SlidingWindowOptions(SoftmaxOptions):
    window: int = Field(64, ge=1, description="Past tokens that a token sees besides itself.")
    dropout: float = Field(
        0.0, ge=0, lt=1, description="Dropout on the attention weights in training (quadratic memory)."
    )


@register
class SlidingWindow(SoftmaxMixer):
    """Causal softmax attention over window + 1 keys; (B, L, D) to (B, L, D)."""

    name = "sliding_window"
    Options = SlidingWindowOptions
    options: SlidingWindowOptions

    def forward(self, x_BLD: Tensor) -> Tensor:
        q_BLHK, k_BLHK, v_BLHK = self._project(x_BLD)
        if self.dropout.active:
            y_BLHK = dropped_attention(q_BLHK, k_BLHK, v_BLHK, self.dropout, self.options.window)
        else:
            y_BLHK = sliding_window(q_BLHK, k_BLHK, v_BLHK, self.options.window)
        return self._output(y_BLHK)

    @classmethod
    def packs(cls, options: SlidingWindowOptions, *, asked: bool) -> bool:
        return asked and not options.dropout

    def forward_asked(self, x_BLD: Tensor, asked: Asked) -> Tensor:
        if self.dropout.active:
            return super().forward_asked(x_BLD, asked)
        q_BKHK, k_BLHK, v_BLHK = self._project_asked(x_BLD, asked)
        rest = asked.positions_BK, self.options.window
        y_BKHK = sliding_window_asked(q_BKHK, k_BLHK, v_BLHK, *rest, packing=asked.packing, bias_E=self.qkv.bias)
        return self._output(y_BKHK)

    def prefill(self, x_BLD: Tensor, max_length: int | None = None) -> tuple[Tensor, State]:
        q_BLHK, k_BLHK, v_BLHK = self._project(x_BLD)
        y_BLHK = sliding_window(q_BLHK, k_BLHK, v_BLHK, self.options.window)
        return self._output(y_BLHK), filled_ring(k_BLHK, v_BLHK, self.options.window)

    def init_state(
        self,
        batch_size: int,
        max_length: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> State:
        heads = self.options.heads
        return empty_ring((batch_size, self.options.window, heads, self.d_model // heads), dtype, device)

    def step(self, x_BD: Tensor, state: State) -> tuple[Tensor, State]:
        y_BHK = sliding_window_step(*self._project(x_BD), state["k"], state["v"], state["position"])
        return self._output(y_BHK), state

    def zoology_elements(self, length: int) -> int:
        return 2 * self.d_model * self.options.window


def empty_ring(
    shape_BWHK: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device | str | None = None
) -> State:
    """A ring of keys and values before the first token."""
    return {
        "k": torch.zeros(shape_BWHK, dtype=dtype, device=device),
        "v": torch.zeros(shape_BWHK, dtype=dtype, device=device),
        "position": torch.zeros(shape_BWHK[0], dtype=torch.int32, device=device),
    }


def filled_ring(k_BLHK: Tensor, v_BLHK: Tensor, window: int) -> State:
    """The ring after L tokens: token t lies in slot t mod window."""
    batch, length = k_BLHK.shape[:2]
    position_B = torch.full((batch,), length, dtype=torch.int32, device=k_BLHK.device)
    return {"k": _ring(k_BLHK, window), "v": _ring(v_BLHK, window), "position": position_B}


def _ring(x_BLHK: Tensor, window: int) -> Tensor:
    length = x_BLHK.shape[1]
    if length < window:
        return F.pad(x_BLHK, (0, 0, 0, 0, 0, window - length))
    return x_BLHK[:, length - window :].roll(length % window, 1)
