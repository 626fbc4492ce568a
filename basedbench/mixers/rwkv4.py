"""RWKV-4's time mixing (arXiv 2305.13048, section 3.1): a mean of past values, weighted by their keys and their age.

    k_t = W_k s_k(t),  v_t = W_v s_v(t),  r_t = W_r s_r(t),   s_m(t) = mu_m u_t + (1 - mu_m) u_{t-1}
    y_t = (sum_{i<t} exp((t-1-i) w + k_i) v_i + exp(b + k_t) v_t) / (the same with 1 for v)
    out = W_out (sigmoid(r) * y)

per channel, with w = -exp(decay) and the bonus b; no biases, and no channel mixing, which is an MLP's part. The token
shift's mu, the decays and the bonus start as released, from the channel and from how deep in the model the layer is
(`depth`). The recall recipe's init leaves these alone and makes the four projections N(0, .02); the released one makes
all but W_v 0.
State: the last input, and per channel the two sums and the running maximum of the exponents that keeps them in range;
these three always in fp32 (fp64 for fp64).

    state_bytes = e * d + 3 * a * d

(d = d_model, e = bytes of the asked dtype, a = 4 bytes or 8 for fp64.) zoology does not count it; counted as here.
"""

import math
from collections.abc import Mapping
from typing import Any, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from basedbench.kernels import token_shift, wkv4, wkv4_step
from basedbench.kernels.asked import Asked
from basedbench.kernels.token_shift import mixed
from basedbench.kernels.wkv4 import empty_state
from basedbench.mixers.base import Init, Mixer, MixerOptions, State, accumulator_dtype
from basedbench.mixers.mamba import negative_exp
from basedbench.mixers.registry import register


class RWKV4Options(MixerOptions):
    depth: float = Field(
        1.0, ge=0, le=1, description="Where in the model the layer is, 0 first, 1 last: sets where training starts."
    )


@register
class RWKV4(Mixer):
    """RWKV-4's time mixing; (B, L, D) to (B, L, D)."""

    name = "rwkv4"
    Options = RWKV4Options
    options: RWKV4Options

    def __init__(self, d_model: int, **options: Any) -> None:
        super().__init__(d_model, **options)
        self.mix_k, self.mix_v, self.mix_r, self.decay, self.bonus = (
            nn.Parameter(torch.empty(d_model)) for _ in range(5)
        )
        self.k_proj, self.v_proj, self.r_proj, self.out_proj = (
            nn.Linear(d_model, d_model, bias=False) for _ in range(4)
        )
        self._start(layers=2)

    @classmethod
    def init_matters(cls, options: Mapping[str, Any]) -> bool:
        return False

    def initialise(self, layers: int, init: Init) -> None:
        """Linear N(0, .02); token shift, decay and bonus as released for a model of so many layers."""
        super().initialise(layers, init)
        self._start(layers)

    @torch.no_grad()
    def _start(self, layers: int) -> None:
        """Token shift, decay and bonus as released."""
        depth, channels = self.options.depth, torch.arange(self.d_model)
        share = channels / self.d_model
        power = 1 - depth * (layers - 1) / layers
        self.mix_k.copy_(share**power)
        self.mix_v.copy_(share**power + 0.3 * depth)
        self.mix_r.copy_(share ** (power / 2))
        self.decay.copy_(8 * (channels / max(1, self.d_model - 1)) ** (0.7 + 1.3 * depth) - 5)
        self.bonus.copy_(math.log(0.3) + ((channels + 1) % 3 - 1) / 2)

    def _shares(self) -> Tensor:
        """How much of the token before k, v and r see (3,D)."""
        return 1 - torch.stack([self.mix_k, self.mix_v, self.mix_r])

    def _project(self, shifted: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """k, v and the output's gate, given the mixtures of each token with the one before it."""
        k_xD, v_xD, r_xD = (proj(x) for proj, x in zip((self.k_proj, self.v_proj, self.r_proj), shifted, strict=True))
        return k_xD, v_xD, r_xD.sigmoid()

    def _read(self, x_BLD: Tensor) -> tuple[Tensor, Tensor]:
        """The outputs' gate, and what it is multiplied by."""
        k_BLD, v_BLD, r_BLD = self._project(token_shift(x_BLD, self._shares()))
        return r_BLD, cast(Tensor, wkv4(k_BLD, v_BLD, negative_exp(self.decay), self.bonus))

    def forward(self, x_BLD: Tensor) -> Tensor:
        r_BLD, y_BLD = self._read(x_BLD)
        return self.out_proj(r_BLD * y_BLD)

    def forward_asked(self, x_BLD: Tensor, asked: Asked) -> Tensor:
        r_BLD, y_BLD = self._read(x_BLD)
        return self.out_proj(asked.rows(r_BLD * y_BLD))

    def prefill(self, x_BLD: Tensor, max_length: int | None = None) -> tuple[Tensor, State]:
        k_BLD, v_BLD, r_BLD = self._project(token_shift(x_BLD, self._shares()))
        y_BLD, sums_B3D = wkv4(k_BLD, v_BLD, negative_exp(self.decay), self.bonus, return_state=True)
        last_BD = x_BLD[:, -1].clone(memory_format=torch.contiguous_format)
        return self.out_proj(r_BLD * y_BLD), {"last": last_BD, "sums": sums_B3D}

    def init_state(
        self,
        batch_size: int,
        max_length: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> State:
        last_BD = torch.zeros(batch_size, self.d_model, dtype=dtype, device=device)
        return {"last": last_BD, "sums": empty_state(last_BD.to(accumulator_dtype(dtype)))}

    def step(self, x_BD: Tensor, state: State) -> tuple[Tensor, State]:
        k_BD, v_BD, r_BD = self._project(mixed(x_BD, state["last"], self._shares()))
        state["last"].copy_(x_BD)
        return self.out_proj(r_BD * wkv4_step(k_BD, v_BD, negative_exp(self.decay), self.bonus, state["sums"])), state
