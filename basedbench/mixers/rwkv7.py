"""RWKV-7: a delta rule whose decay, removal rate and replacement differ by channel (arXiv 2503.14456, section 4).

    x_c = x_t + mu_c (x_{t-1} - x_t)  for c = r, w, k, v, a, g
    r, k, v = W_r x_r, W_k x_k, W_v x_v;   eta = sigmoid(a0 + A x_a);   gate = G_up sigmoid(G_down x_g)
    w = exp(-e^-.5 sigmoid(w0 + W_up tanh(W_down x_w)))
    kappa = k xi / |k xi|  a head;   k = k (1 + (eta - 1) alpha)
    S_t = (diag(w_t) - (eta_t kappa_t) kappa_t^T) S_{t-1} + k_t v_t^T;   y_t = S_t^T r_t
    out = W_out (gate * (groupnorm(y) + (sum over a head of r k rho) v))

|.| has 1e-6 under its root, which counts where `published` starts at kappa = 0. A, W and G are of low rank; mu, xi,
alpha, rho are x_x, k_k, k_a, r_k below, as in the authors' code. From the second layer on RWKV-7 mixes its values with
those of the first layer. A mixer alone has no access to those: there is no such residual here, as there is none in
zoology's runs. State: per head head_dim x head_dim, always in fp32 (fp64 for fp64), and the last input.

    state_bytes = a * d * head_dim + e * d

(d = d_model, a = 4 bytes or 8 for fp64, e = bytes of the asked dtype.) zoology counts the first term's elements.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from basedbench.errors import UserError
from basedbench.kernels import (
    delta_rule,
    delta_rule_step,
    head_norm,
    linear,
    rwkv7_inputs,
    shared_delta_rule,
    token_shift,
)
from basedbench.kernels.precision import product_dtype
from basedbench.kernels.token_shift import mixed
from basedbench.mixers.base import Init, Mixer, MixerOptions, State, accumulator_dtype
from basedbench.mixers.registry import register


class RWKV7Options(MixerOptions):
    head_dim: int = Field(64, ge=1, description="Channels per head; it divides d_model, and the state grows with it.")
    decay_rank: int = Field(16, ge=1, description="Rank of the projection to decays.")
    gate_rank: int = Field(64, ge=1, description="Rank of the projection to output gates.")
    rate_rank: int = Field(16, ge=1, description="Rank of the projection to removal rates.")


class LowRank(nn.Module):
    """up(activation(down(x))); the bias, if any, is that of `up`."""

    def __init__(
        self, d_model: int, rank: int, activation: Callable[[Tensor], Tensor] | None = None, *, bias: bool = True
    ) -> None:
        super().__init__()
        self.activation = activation
        self.down = nn.Linear(d_model, rank, bias=False)
        self.up = nn.Linear(rank, d_model, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.down(x)
        x = x if self.activation is None else self.activation(x)
        return self.up(x) if self.up.bias is None else linear(x, self.up.weight, self.up.bias)


class _Token(NamedTuple):
    """What the rule reads of every token, (..., H, K), and the output gate (..., D)."""

    r: Tensor
    k: Tensor
    v: Tensor
    a: Tensor
    b: Tensor
    g: Tensor
    gate: Tensor


@register
class RWKV7(Mixer):
    """Time mixing of RWKV-7; (B, L, D) to (B, L, D)."""

    name = "rwkv7"
    Options = RWKV7Options
    options: RWKV7Options

    def __init__(self, d_model: int, **options: Any) -> None:
        super().__init__(d_model, **options)
        head_dim = self.options.head_dim
        heads = d_model // head_dim
        self.r_proj, self.k_proj, self.v_proj, self.out_proj = (
            nn.Linear(d_model, d_model, bias=False) for _ in range(4)
        )
        self.w_lora = LowRank(d_model, self.options.decay_rank, torch.tanh)
        self.a_lora = LowRank(d_model, self.options.rate_rank)
        self.g_lora = LowRank(d_model, self.options.gate_rank, torch.sigmoid, bias=False)
        self.x_x = nn.Parameter(torch.empty(6, d_model))
        self.k_k, self.k_a = nn.Parameter(torch.empty(d_model)), nn.Parameter(torch.empty(d_model))
        self.r_k = nn.Parameter(torch.empty(heads, head_dim))
        self.norm = nn.GroupNorm(heads, d_model, eps=head_dim * 1e-5)
        self._initialise_vectors(layers=1)

    @classmethod
    def check(cls, d_model: int, options: RWKV7Options) -> None:
        if d_model % options.head_dim:
            fitting = max(n for n in range(1, options.head_dim + 1) if d_model % n == 0)
            raise UserError(
                f"mixer 'rwkv7': head_dim = {options.head_dim} does not divide d_model = {d_model}; "
                f"nearest below: {fitting}."
            )

    def _heads(self, x_xD: Tensor) -> Tensor:
        return x_xD.unflatten(-1, (-1, self.options.head_dim))

    def _read(self, shifted: list[Tensor]) -> _Token:
        """All that a token and the one before it say, from their mixtures."""
        x_r, x_w, x_k, x_v, x_a, x_g = shifted
        r, k, v, rate, decay = (
            self._heads(x)
            for x in (self.r_proj(x_r), self.k_proj(x_k), self.v_proj(x_v), self.a_lora(x_a), self.w_lora(x_w))
        )
        k, a, b, g = rwkv7_inputs(k, rate, decay, self.k_k.view_as(self.r_k), self.k_a.view_as(self.r_k))
        return _Token(r, k, v, a, b, g, self.g_lora(x_g))

    def _output(self, y_xHV: Tensor, token: _Token) -> Tensor:
        weight_HV, bias_HV = (x.view_as(self.r_k) for x in (self.norm.weight, self.norm.bias))
        bonus, dtype = (token.r, token.k, self.r_k, token.v), product_dtype(y_xHV)
        options: Any = {"gate_xE": token.gate, "activation": "identity", "bonus": bonus, "dtype": dtype}
        return self.out_proj(head_norm(y_xHV, weight_HV, bias_HV, eps=self.norm.eps, center=True, **options))

    def forward(self, x_BLD: Tensor) -> Tensor:
        token = self._read(token_shift(x_BLD, self.x_x))
        y_BLHV, r, k, v = shared_delta_rule(*token[:6])  # the bonus reads r, k and v, too
        return self._output(y_BLHV, token._replace(r=r, k=k, v=v))

    def prefill(self, x_BLD: Tensor, max_length: int | None = None) -> tuple[Tensor, State]:
        token = self._read(token_shift(x_BLD, self.x_x))
        y_BLHV, state_BHKV = delta_rule(*token[:6], return_state=True)
        return self._output(y_BLHV, token), {"previous": x_BLD[:, -1].clone(), "state": state_BHKV}

    def init_state(
        self,
        batch_size: int,
        max_length: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> State:
        shape = (batch_size, *self.r_k.shape, self.options.head_dim)
        return {
            "previous": torch.zeros(batch_size, self.d_model, dtype=dtype, device=device),
            "state": torch.zeros(shape, dtype=accumulator_dtype(dtype), device=device),
        }

    def step(self, x_BD: Tensor, state: State) -> tuple[Tensor, State]:
        token = self._read(mixed(x_BD, state["previous"], self.x_x))
        y_BHV = delta_rule_step(*token[:6], state["state"])
        state["previous"].copy_(x_BD)
        return self._output(y_BHV, token), state

    def zoology_elements(self, length: int) -> int:
        return self.d_model * self.options.head_dim

    def initialise(self, layers: int, init: Init) -> None:
        """`correct`: the authors' init, for the last layer, where the recall recipe has it; its outputs start at zero.

        `published`: what zoology trained: every Linear N(0, .02), and mu, xi, alpha, rho, w0 and a0 all zero. So there
        is no token shift at first, nothing is removed (kappa = 0), and every channel decays by exp(-.3) a token.
        """
        if init == "published":
            super().initialise(layers, init)
            for vector in (self.x_x, self.k_k, self.k_a, self.r_k):
                nn.init.zeros_(vector)
            return
        self._initialise_vectors(layers)
        for projection, scale in ((self.r_proj, 0.5), (self.k_proj, 0.05), (self.v_proj, 0.5), (self.out_proj, 0.0)):
            bound = scale / math.sqrt(self.d_model)
            nn.init.uniform_(projection.weight, -bound, bound)
        for lora in (self.w_lora, self.a_lora, self.g_lora):
            nn.init.zeros_(lora.down.weight)
            wide = max(1.0, lora.up.in_features / lora.up.out_features)
            nn.init.orthogonal_(lora.up.weight, gain=0.1 * math.sqrt(wide))

    @torch.no_grad()
    def _initialise_vectors(self, layers: int) -> None:
        """mu, xi, alpha, rho and the biases w0 and a0, of the last of so many layers."""
        d, head_dim = self.d_model, self.options.head_dim
        channel = torch.arange(d) / d
        linear = torch.arange(d) / max(1, d - 1) - 0.5
        zigzag = torch.arange(d) % head_dim / max(1, head_dim - 1) * 2 - 1
        zigzag = zigzag * zigzag.abs()
        powers = torch.tensor([0.2, 0.9, 0.7, 0.7, 0.0, 0.0]) / layers
        self.x_x.copy_(1 - channel ** powers.unsqueeze(-1))
        self.x_x[4:] = torch.tensor([0.9, 0.2]).unsqueeze(-1)
        self.k_k.copy_(0.71 - 0.1 * linear)
        self.k_a.fill_(1.02)
        self.r_k.fill_(-0.04)
        depth = 1.0 if layers > 1 else 0.0
        assert self.w_lora.up.bias is not None
        assert self.a_lora.up.bias is not None
        self.w_lora.up.bias.copy_(-5.5 + 6 * (linear + 0.5) ** (1 + depth) + 2.5 * zigzag)
        self.a_lora.up.bias.copy_(-0.19 + 0.3 * zigzag + 0.4 * linear)
