"""What DeltaNet, Gated DeltaNet and Kimi delta attention share; each file says what is its own.

    q, k, v = silu(conv(W x));   q, k = q / |q| / sqrt(K), k / |k|  a head;   beta = sigmoid(W_b x)
    S_t = (I - beta_t k_t k_t^T) diag(alpha_t) S_{t-1} + beta_t k_t v_t^T;   y_t = S_t^T q_t
    out = W_out gated(rmsnorm(y))

K = d / heads; |k| is sqrt(sum k^2 + 1e-6); the norm is a head's, with one gain for all heads. No biases in convolution,
projections in and projection out. The recall recipe draws every Linear from N(0, .02), the projection out too (it has
another name in the released layers than those that are scaled down); convolutions, gains, A_log, dt_bias stay as they
were constructed. That is what Mixer.initialise does, whatever the init.
"""

from collections.abc import Sequence
from typing import Any, ClassVar, TypeAlias

import torch
from pydantic import Field
from torch import Tensor, nn

from basedbench.kernels import delta_inputs, head_norm, layer_delta_rule, layer_delta_rule_step
from basedbench.kernels.asked import Asked
from basedbench.kernels.head_norm import Activation
from basedbench.kernels.precision import product_dtype
from basedbench.mixers.base import Mixer, MixerOptions, State, accumulator_dtype, project_aligned, require_heads
from basedbench.mixers.conv import ShortConv

Rule: TypeAlias = tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]


class DeltaOptions(MixerOptions):
    heads: int = Field(2, ge=1, description="Heads; they divide d_model, and the state is d_model^2 / heads numbers.")
    d_conv: int = Field(4, ge=2, le=64, description="Tokens under the short convolution.")
    expand_v: int = Field(1, ge=1, description="Values per unit of d_model.")


class DeltaMixer(Mixer):
    """Projections, convolution, delta rule, norm. `_further` adds projections; `_decay` and `_gate` use them."""

    Options: ClassVar[type[DeltaOptions]] = DeltaOptions
    options: DeltaOptions

    def __init__(self, d_model: int, **options: Any) -> None:
        super().__init__(d_model, **options)
        values = self.options.expand_v * d_model
        self.widths = [d_model, d_model, values]
        # Beta last: what lies behind two heads' numbers would be read in small pieces.
        self.in_widths = [sum(self.widths), *self._further(), self.options.heads]
        self.in_proj = nn.Linear(d_model, sum(self.in_widths), bias=False)
        self.conv = ShortConv(sum(self.widths), self.options.d_conv, activation="silu", bias=False)
        self.norm = nn.RMSNorm(values // self.options.heads, eps=1e-5)
        self.out_proj = nn.Linear(values, d_model, bias=False)

    @classmethod
    def check(cls, d_model: int, options: Any) -> None:
        require_heads(cls.name, d_model, options.heads)

    def _further(self) -> list[int]:
        """Widths of projections beside those to q, k, v and beta, the widest first; `_decay` and `_gate` get them."""
        return []

    def _decay(self, further: list[Tensor]) -> tuple[Tensor, Tensor, Tensor] | tuple[()]:
        """Logits of the decays (..., H or H K), A_log (H,) and the logits' bias, or nothing for alpha = 1."""
        return ()

    def _gate(self, further: list[Tensor]) -> tuple[Tensor | None, Activation]:
        """What the normed outputs are multiplied by, (..., H V) before its activation, or None."""
        return None, "silu"

    def _rule(self, mixed: Sequence[Tensor], beta: Tensor, further: list[Tensor]) -> Rule:
        """The convolution's three outputs and beta's inputs (..., H) -> q, k, v, beta, g of the delta rule."""
        q, k, v = (x.unflatten(-1, (self.options.heads, -1)) for x in mixed)
        q, k, beta, g = delta_inputs(q, k, beta, *self._decay(further))
        return q, k, v, beta, g

    def _output(self, y_xHV: Tensor, further: list[Tensor], asked: Asked | None = None) -> Tensor:
        gate_xE, activation = self._gate(further)
        if asked is not None:
            y_xHV = asked.rows(y_xHV.flatten(2)).unflatten(-1, y_xHV.shape[2:])
            gate_xE = None if gate_xE is None else asked.rows(gate_xE)
        options: Any = {"gate_xE": gate_xE, "activation": activation, "dtype": product_dtype(y_xHV)}
        return self.out_proj(head_norm(y_xHV, self.norm.weight, eps=1e-5, **options))

    def _recall(self, x_BLD: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Values (B, L, H, V), and what `_gate` reads."""
        projected = project_aligned(self.in_proj, x_BLD)
        q, k, v, *further, beta = self.conv.split(projected, [*self.widths, *self.in_widths[1:]])
        return layer_delta_rule(*self._rule((q, k, v), beta, further)), further

    def forward(self, x_BLD: Tensor) -> Tensor:
        return self._output(*self._recall(x_BLD))

    def forward_asked(self, x_BLD: Tensor, asked: Asked) -> Tensor:
        return self._output(*self._recall(x_BLD), asked)

    def prefill(self, x_BLD: Tensor, max_length: int | None = None) -> tuple[Tensor, State]:
        mixed, *further, beta = self.in_proj(x_BLD).split(self.in_widths, -1)
        mixed, conv_BES = self.conv.prefill(mixed)
        rule = self._rule(mixed.split(self.widths, -1), beta, further)
        y_BLHV, state_BHKV = layer_delta_rule(*rule, return_state=True)
        return self._output(y_BLHV, further), {"conv": conv_BES, "state": state_BHKV}

    def init_state(
        self,
        batch_size: int,
        max_length: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> State:
        heads = self.options.heads
        shape = (batch_size, heads, self.d_model // heads, self.options.expand_v * self.d_model // heads)
        return {
            "conv": self.conv.init_state(batch_size, dtype, device),
            "state": torch.zeros(shape, dtype=accumulator_dtype(dtype), device=device),
        }

    def step(self, x_BD: Tensor, state: State) -> tuple[Tensor, State]:
        mixed, *further, beta = self.in_proj(x_BD).split(self.in_widths, -1)
        mixed = self.conv.step(mixed, state["conv"])
        y_BHV = layer_delta_rule_step(*self._rule(mixed.split(self.widths, -1), beta, further), state["state"])
        return self._output(y_BHV, further), state

    def zoology_elements(self, length: int) -> int:
        return self.options.expand_v * self.d_model**2 // self.options.heads
