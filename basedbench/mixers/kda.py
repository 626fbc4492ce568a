"""Kimi delta attention: the delta rule with a decay for each channel (Kimi Linear, arXiv 2510.26692, section 3).

    q, k, v = silu(conv(W x));   q, k = q / |q| / sqrt(K), k / |k|  a head;   beta = sigmoid(W_b x)
    alpha = exp(-A softplus(W_up W_down x + dt_bias))
    S_t = (I - beta_t k_t k_t^T) diag(alpha_t) S_{t-1} + beta_t k_t v_t^T;   y_t = S_t^T q_t
    out = W_out (rmsnorm(y) * sigmoid(G_up G_down x + b))

Both low-rank projections go through `rank` channels, by default as many as a value head has. A = exp(A_log) uniform in
[1, 16], one a head; dt_bias, one a channel, such that its softplus is log-uniform in [1e-3, 1e-1], as in Gated DeltaNet
and Mamba. (The released layer starts it at 0, where a channel forgets half within a token.) State as in DeltaNet.

    state_bytes = a * expand_v * d * d // heads + e * (2 + expand_v) * d * (d_conv - 1)

(d = d_model, a = 4 bytes or 8 for fp64, e = bytes of the asked dtype.) zoology does not have it; the first term's
elements are what it would count.
"""

from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from basedbench.kernels import linear
from basedbench.kernels.head_norm import Activation
from basedbench.mixers.delta import DeltaMixer, DeltaOptions
from basedbench.mixers.mamba import step_size_bias
from basedbench.mixers.registry import register


class KDAOptions(DeltaOptions):
    rank: int = Field(0, ge=0, description="Rank of the projections to decays and gates; 0: the width of a value head.")


@register
class KDA(DeltaMixer):
    """The delta rule with a decay a channel and an output gate; (B, L, D) to (B, L, D)."""

    name = "kda"
    Options = KDAOptions
    options: KDAOptions

    def __init__(self, d_model: int, **options: Any) -> None:
        super().__init__(d_model, **options)
        rank, values = self._further()[0], self.options.expand_v * d_model
        self.decay_proj = nn.Linear(rank, d_model, bias=False)
        self.gate_proj = nn.Linear(rank, values)
        self.A_log = nn.Parameter(torch.empty(self.options.heads).uniform_(1, 16).log())
        self.dt_bias = nn.Parameter(step_size_bias(d_model))

    def _further(self) -> list[int]:
        rank = self.options.rank or self.options.expand_v * self.d_model // self.options.heads
        return [rank, rank]

    def _decay(self, further: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        return self.decay_proj(further[0]), self.A_log, self.dt_bias

    def _gate(self, further: list[Tensor]) -> tuple[Tensor | None, Activation]:
        return linear(further[1], self.gate_proj.weight, self.gate_proj.bias), "sigmoid"
