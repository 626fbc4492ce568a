"""Gated DeltaNet: the delta rule with one decay a head (arXiv 2412.06464, section 3).

    q, k, v = silu(conv(W x));   q, k = q / |q| / sqrt(K), k / |k|  a head;   beta = sigmoid(W_b x)
    alpha = exp(-A softplus(W_a x + dt_bias))
    S_t = alpha_t (I - beta_t k_t k_t^T) S_{t-1} + beta_t k_t v_t^T;   y_t = S_t^T q_t;   out = W_out rmsnorm(y)

Decays as in Mamba-2: A = exp(A_log) uniform in (0, 16], dt_bias such that its softplus is log-uniform in [1e-3, 1e-1],
one of each a head. As in the recall recipe, two heads and twice as many values as keys; with `gate` the normed outputs
are multiplied by silu(W_g x), as in the paper's language models. State as in DeltaNet.

    state_bytes = a * expand_v * d * d // heads + e * (2 + expand_v) * d * (d_conv - 1)

(d = d_model, a = 4 bytes or 8 for fp64, e = bytes of the asked dtype.) zoology counts the first term's elements.
"""

from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from basedbench.kernels.head_norm import Activation
from basedbench.mixers.delta import DeltaMixer, DeltaOptions
from basedbench.mixers.mamba import step_size_bias
from basedbench.mixers.registry import register


class GatedDeltaNetOptions(DeltaOptions):
    expand_v: int = Field(2, ge=1, description="Values per unit of d_model.")
    gate: bool = Field(False, description="Whether outputs are multiplied by silu of a projection of the input.")


@register
class GatedDeltaNet(DeltaMixer):
    """The delta rule with a decay a head; (B, L, D) to (B, L, D)."""

    name = "gated_delta_net"
    Options = GatedDeltaNetOptions
    options: GatedDeltaNetOptions

    def __init__(self, d_model: int, **options: Any) -> None:
        super().__init__(d_model, **options)
        self.A_log = nn.Parameter(torch.empty(self.options.heads).uniform_(1e-3, 16).log())
        self.dt_bias = nn.Parameter(step_size_bias(self.options.heads))

    def _further(self) -> list[int]:
        return [self.options.expand_v * self.d_model] * self.options.gate + [self.options.heads]

    def _decay(self, further: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        return further[-1], self.A_log, self.dt_bias

    def _gate(self, further: list[Tensor]) -> tuple[Tensor | None, Activation]:
        return further[0] if self.options.gate else None, "silu"
