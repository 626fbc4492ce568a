"""Mamba: a selective state space model (arXiv 2312.00752, section 3).

    x, z = split(W_in u);   x = silu(conv(x));   dt, B, C = split(W_x x);   dt = softplus(W_dt dt + b_dt)
    h_t = exp(dt_t A) h_{t-1} + dt_t B_t x_t;   y_t = C_t h_t + D x_t;   out = W_out (y * silu(z))

A = -exp(A_log), A_log = log(1 ... d_state) in every channel, D = 1, dt_rank = ceil(d / 16), b_dt such that
softplus(b_dt) is log-uniform in [1e-3, 1e-1]. Only conv and dt have biases. It sits in a block of its own (RMSNorm).
State: per channel d_state numbers, always in fp32 (fp64 for fp64), and the last d_conv - 1 inputs of the convolution.

    state_bytes = a * expand * d * d_state + e * expand * d * (d_conv - 1)

(d = d_model, a = 4 bytes or 8 for fp64, e = bytes of the asked dtype.) zoology counts expand d d_state, no convolution.
"""

import math
from typing import Any, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from basedbench.kernels import selective_scan, selective_scan_step, selective_ssm, selective_ssm_asked
from basedbench.kernels.asked import Asked
from basedbench.kernels.linear_asked import linear_asked
from basedbench.kernels.packing import Packing
from basedbench.kernels.precision import negative_exp
from basedbench.kernels.row_linear import row_linear
from basedbench.mixers.base import (
    Init,
    Mixer,
    MixerOptions,
    State,
    accumulator_dtype,
    normal_linear_,
    project,
    residual_std,
)
from basedbench.mixers.conv import ShortConv
from basedbench.mixers.registry import register


class MambaOptions(MixerOptions):
    d_state: int = Field(16, ge=1, description="State numbers per channel (N).")
    d_conv: int = Field(4, ge=2, le=64, description="Tokens under the short convolution.")
    expand: int = Field(2, ge=1, description="Channels per unit of d_model.")


@register
class Mamba(Mixer):
    """Selective state space mixer; (B, L, D) to (B, L, D)."""

    name = "mamba"
    Options = MambaOptions
    block = "mamba"
    options: MambaOptions

    def __init__(self, d_model: int, **options: Any) -> None:
        super().__init__(d_model, **options)
        inner, d_state, dt_rank = self.options.expand * d_model, self.options.d_state, math.ceil(d_model / 16)
        self.widths = [dt_rank, d_state, d_state]
        self.in_proj = nn.Linear(d_model, 2 * inner, bias=False)
        self.conv = ShortConv(inner, self.options.d_conv, activation="silu")
        self.x_proj = nn.Linear(inner, sum(self.widths), bias=False)
        self.dt_proj = nn.Linear(dt_rank, inner)
        self.A_log = nn.Parameter(torch.arange(1.0, d_state + 1).log().repeat(inner, 1))
        self.D = nn.Parameter(torch.ones(inner))
        self.out_proj = nn.Linear(inner, d_model, bias=False)
        self.initialise(layers=1, init="correct")

    def _scan_inputs(self, x_xE: Tensor, *, log_A: bool = False) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """delta, A (or log(-A)), B, C of the scan over x."""
        dt, B, C = project(self.x_proj, x_xE).split(self.widths, -1)
        return row_linear(dt, self.dt_proj.weight), self.A_log if log_A else negative_exp(self.A_log), B, C

    def _constants(self) -> dict[str, Any]:
        return {"D_D": self.D, "delta_bias_D": self.dt_proj.bias, "delta_softplus": True}

    def _between(self) -> tuple[Tensor, ...]:
        """Of what lies between the two projections."""
        weights = self.conv.weight, self.conv.bias, self.x_proj.weight, self.dt_proj.weight
        return cast(tuple[Tensor, ...], (*weights, self.dt_proj.bias, self.A_log, self.D))

    @classmethod
    def packs(cls, options: MambaOptions, *, asked: bool) -> bool:
        return True

    def forward(self, x_BLD: Tensor, packing: Packing | None = None) -> Tensor:
        return self.out_proj(selective_ssm(self.in_proj(x_BLD), *self._between(), packing=packing))

    def forward_asked(self, x_BLD: Tensor, asked: Asked) -> Tensor:
        inner = len(self.A_log)
        x_BLE, z_BKE = linear_asked(x_BLD, asked.x_BKD, self.in_proj.weight, None, slice(inner, None))
        return self.out_proj(selective_ssm_asked(x_BLE, z_BKE, asked, *self._between()))

    def prefill(self, x_BLD: Tensor, max_length: int | None = None) -> tuple[Tensor, State]:
        x_BLE, z_BLE = self.in_proj(x_BLD).chunk(2, -1)
        x_BLE, conv_BES = self.conv.prefill(x_BLE)
        y_BLE, state_BEN = selective_scan(
            x_BLE, *self._scan_inputs(x_BLE), z_BLD=z_BLE, return_state=True, **self._constants()
        )
        return self.out_proj(y_BLE), {"conv": conv_BES, "state": state_BEN.contiguous()}

    def init_state(
        self,
        batch_size: int,
        max_length: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> State:
        shape = (batch_size, *self.A_log.shape)
        return {
            "conv": self.conv.init_state(batch_size, dtype, device),
            "state": torch.zeros(shape, dtype=accumulator_dtype(dtype), device=device),
        }

    def step(self, x_BD: Tensor, state: State) -> tuple[Tensor, State]:
        return project(self.out_proj, self.step_between(project(self.in_proj, x_BD), state)), state

    def step_between(self, p_BE: Tensor, state: State) -> Tensor:
        """A step from the outputs of `in_proj` to the inputs of `out_proj`."""
        x_BE, z_BE = p_BE.chunk(2, -1)
        x_BE = self.conv.step(x_BE, state["conv"])
        inputs = self._scan_inputs(x_BE, log_A=True)
        return selective_scan_step(
            x_BE, *inputs, state["state"], z_BD=z_BE, log_A=True, count_B=state.get("count"), **self._constants()
        )

    def zoology_elements(self, length: int) -> int:
        return self.options.expand * self.d_model * self.options.d_state

    def initialise(self, layers: int, init: Init) -> None:
        """`correct`: mamba_ssm's init. `published`: zoology's older one, behind every published point, which overwrote
        the Linear weights with N(0, .02) and zeroed the bias of dt, so that all steps start at softplus(0) = .69.
        """
        if init == "published":
            super().initialise(layers, init)
            normal_linear_(self.out_proj, residual_std(layers))
            return
        for linear in (self.in_proj, self.x_proj, self.out_proj):
            linear.reset_parameters()
        scale = self.dt_proj.in_features**-0.5
        nn.init.uniform_(self.dt_proj.weight, -scale, scale)
        with torch.no_grad():
            self.out_proj.weight /= math.sqrt(layers)
            self.dt_proj.bias.copy_(step_size_bias(len(self.dt_proj.bias)))


def step_size_bias(size: int) -> Tensor:
    """b such that softplus(b) is log-uniform in [1e-3, 1e-1]."""
    dt = torch.empty(size).uniform_(math.log(1e-3), math.log(1e-1)).exp()
    return dt + torch.log(-torch.expm1(-dt))
