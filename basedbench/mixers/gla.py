"""GLA: gated linear attention (arXiv 2312.06635, section 4), as in the recall figure that its authors' layer is in.

    q, k, v, z = W u;   g = logsigmoid(W_2 W_1 u + b) / 16
    S_t = diag(exp(g_t)) S_{t-1} + k_t v_t^T;   y_t = S_t^T q_t / sqrt(K);   out = W_out (rmsnorm(y) * silu(z))

Per head of K = expand_k d / heads keys and V = expand_v d / heads values; the norm is over a head's values. W_1 has 16
rows; b is the only bias, and starts at 0: decays start at exp(-.043). With `d_conv` > 0 q, k and v go through
silu(conv(.)) first, a short convolution without bias (the recall recipe has none).
State: per head K x V numbers, always in fp32 (fp64 for fp64), and the last d_conv - 1 inputs of the convolution.

    state_bytes = (a * int(round(expand_k * d, 6)) * int(round(expand_v * d, 6)) // heads
        + e * (2 * int(round(expand_k * d, 6)) + int(round(expand_v * d, 6))) * max(d_conv - 1, 0))

(d = d_model, a = 4 bytes or 8 for fp64, e = bytes of the asked dtype.) zoology counts the same elements, and none for
the convolution. The recall recipe's init leaves the norm's weights at 1; all else is Linear or convolution.
"""

import math
from typing import Any, cast

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from basedbench.errors import UserError
from basedbench.kernels import gated_linear_attention, gated_linear_attention_step, linear
from basedbench.kernels.asked import Asked
from basedbench.mixers.base import Mixer, MixerOptions, State, accumulator_dtype
from basedbench.mixers.conv import ShortConv
from basedbench.mixers.head_norm import GatedHeadNorm
from basedbench.mixers.registry import register

GATE_NORMALISER = 16  # of the gate's logits: what keeps decays near 1


class GLAOptions(MixerOptions):
    heads: int = Field(2, ge=1, description="Heads; they divide the keys and the values.")
    expand_k: float = Field(0.5, gt=0, description="Keys of all heads per unit of d_model.")
    expand_v: float = Field(1.0, gt=0, description="Values of all heads per unit of d_model.")
    decay_rank: int = Field(16, ge=1, description="Rank of the decays' projection.")
    d_conv: int = Field(0, ge=0, le=64, description="Tokens under a short convolution of q, k and v; 0: none.")


@register
class GLA(Mixer):
    """Gated linear attention with an output gate; (B, L, D) to (B, L, D)."""

    name = "gla"
    Options = GLAOptions
    options: GLAOptions

    def __init__(self, d_model: int, **options: Any) -> None:
        super().__init__(d_model, **options)
        self.keys, self.values = expanded(d_model, self.options.expand_k), expanded(d_model, self.options.expand_v)
        self.qkv_widths = [self.keys, self.keys, self.values]
        self.in_widths = [sum(self.qkv_widths), self.values, self.options.decay_rank]
        self.in_proj = nn.Linear(d_model, sum(self.in_widths), bias=False)
        self.decay_proj = nn.Linear(self.options.decay_rank, self.keys)
        width = self.options.d_conv
        self.conv = ShortConv(sum(self.qkv_widths), width, activation="silu", bias=False) if width > 1 else None
        self.norm = GatedHeadNorm(self.values // self.options.heads)
        self.out_proj = nn.Linear(self.values, d_model, bias=False)

    @classmethod
    def check(cls, d_model: int, options: GLAOptions) -> None:
        check_expansions(cls.name, d_model, options.heads, expand_k=options.expand_k, expand_v=options.expand_v)
        if options.d_conv == 1:
            raise UserError("mixer 'gla': d_conv = 1 would mix no tokens; give 0 for none, or at least 2.")

    def _project(self, x_xD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q, k and v side by side, the output gate's logits, and the logarithms of the decays (..., H, K)."""
        qkv_xE, gate_xE, low_xR = self.in_proj(x_xD).split(self.in_widths, -1)
        logits_xE = linear(low_xR, self.decay_proj.weight, self.decay_proj.bias)
        g_xE = F.logsigmoid(logits_xE.to(accumulator_dtype(logits_xE.dtype))) / GATE_NORMALISER
        return qkv_xE, gate_xE, self._heads(g_xE)

    def _heads(self, x_xE: Tensor) -> Tensor:
        return x_xE.unflatten(-1, (self.options.heads, -1))

    def _split(self, qkv_xE: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q, scaled, k and v of (..., H, K)."""
        q, k, v = (self._heads(part) for part in qkv_xE.split(self.qkv_widths, -1))
        return q * q.shape[-1] ** -0.5, k, v

    def _attend(self, x_BLD: Tensor) -> tuple[Tensor, Tensor]:
        """Values (B, L, H, V) and the gate's logits."""
        qkv_BLE, gate_BLE, g_BLHK = self._project(x_BLD)
        qkv_BLE = qkv_BLE if self.conv is None else self.conv(qkv_BLE)
        return cast(Tensor, gated_linear_attention(*self._split(qkv_BLE), g_BLHK)), gate_BLE

    def forward(self, x_BLD: Tensor) -> Tensor:
        return self.out_proj(self.norm(*self._attend(x_BLD)))

    def forward_asked(self, x_BLD: Tensor, asked: Asked) -> Tensor:
        y_BLHV, gate_BLE = self._attend(x_BLD)
        return self.out_proj(self.norm(self._heads(asked.rows(y_BLHV.flatten(2))), asked.rows(gate_BLE)))

    def prefill(self, x_BLD: Tensor, max_length: int | None = None) -> tuple[Tensor, State]:
        qkv_BLE, gate_BLE, g_BLHK = self._project(x_BLD)
        state: State = {}
        if self.conv is not None:
            qkv_BLE, state["conv"] = self.conv.prefill(qkv_BLE)
        y_BLHV, state["state"] = gated_linear_attention(*self._split(qkv_BLE), g_BLHK, return_state=True)
        return self.out_proj(self.norm(y_BLHV, gate_BLE)), state

    def init_state(
        self,
        batch_size: int,
        max_length: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> State:
        heads = self.options.heads
        shape = (batch_size, heads, self.keys // heads, self.values // heads)
        state = {"state": torch.zeros(shape, dtype=accumulator_dtype(dtype), device=device)}
        return state if self.conv is None else state | {"conv": self.conv.init_state(batch_size, dtype, device)}

    def step(self, x_BD: Tensor, state: State) -> tuple[Tensor, State]:
        qkv_BE, gate_BE, g_BHK = self._project(x_BD)
        qkv_BE = qkv_BE if self.conv is None else self.conv.step(qkv_BE, state["conv"])
        y_BHV = gated_linear_attention_step(*self._split(qkv_BE), g_BHK, state["state"])
        return self.out_proj(self.norm(y_BHV, gate_BE)), state

    def zoology_elements(self, length: int) -> int:
        return self.keys * self.values // self.options.heads


def expanded(d_model: int, expansion: float) -> int:
    """Channels for so many per unit of d_model, rounded down: 114 of 200 x 0.57, which is 113.99999999999999."""
    return math.floor(round(expansion * d_model, 6))


def check_expansions(mixer: str, d_model: int, heads: int, **expansions: float) -> None:
    """UserError unless `heads` divides d_model times every expansion; names the nearest number of heads that does."""
    for name, expansion in expansions.items():
        channels = expanded(d_model, expansion)
        if channels < 1:
            raise UserError(f"mixer {mixer!r}: {name} = {expansion:g} leaves no channel of d_model = {d_model}.")
        if channels % heads:
            fitting = max(n for n in range(1, heads + 1) if channels % n == 0)
            raise UserError(
                f"mixer {mixer!r}: heads = {heads} does not divide {name} * d_model = {channels}; "
                f"nearest below: {fitting}."
            )
