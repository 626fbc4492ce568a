"""Mamba-2: state space duality, one decay per head (arXiv 2405.21060, section 7).

    z, xBC, dt = split(W_in u);   x, B, C = split(silu(conv(xBC)));   dt = softplus(dt + dt_bias)
    h_t = exp(dt_t A) h_{t-1} + dt_t x_t B_t^T;   y_t = h_t C_t + D x_t;   out = W_out rmsnorm(y * silu(z))

Per head of head_dim channels, B and C shared by the heads of a group. A = -exp(A_log), uniform in -[1, 16], D = 1,
dt_bias such that softplus(dt_bias) is log-uniform in [1e-3, 1e-1]. Only the convolution has a bias. It sits in Mamba's
block. State: per head head_dim x d_state numbers, always in fp32 (fp64 for fp64), and the last d_conv - 1 inputs of the
convolution.

    state_bytes = a * expand * d * d_state + e * (expand * d + 2 * groups * d_state) * (d_conv - 1)

(d = d_model, a = 4 bytes or 8 for fp64, e = bytes of the asked dtype.) zoology counts expand d d_state, no convolution.
"""

import math
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from basedbench.errors import UserError
from basedbench.kernels import add_layer_norm, ssd, ssd_step
from basedbench.kernels.asked import Asked
from basedbench.kernels.linear_asked import linear_asked
from basedbench.kernels.packing import Packing
from basedbench.kernels.precision import negative_exp, product_dtype
from basedbench.kernels.short_conv import MOST_TAPS
from basedbench.kernels.split_ssd import split_ssd
from basedbench.kernels.split_ssd_asked import split_ssd_asked
from basedbench.kernels.ssd import WALKED_CHANNELS, WALKED_STATES
from basedbench.mixers.base import (
    Init,
    Mixer,
    MixerOptions,
    State,
    accumulator_dtype,
    aligned,
    normal_linear_,
    project,
    project_aligned,
    residual_std,
)
from basedbench.mixers.conv import ShortConv
from basedbench.mixers.mamba import step_size_bias
from basedbench.mixers.registry import register

MOST_AS_ATTENTION = 64  # asked tokens


class Mamba2Options(MixerOptions):
    d_state: int = Field(16, ge=1, description="State numbers per channel (N).")
    d_conv: int = Field(4, ge=2, le=64, description="Tokens under the short convolution.")
    expand: int = Field(2, ge=1, description="Channels per unit of d_model.")
    head_dim: int = Field(64, ge=1, description="Channels per head; it divides expand * d_model.")
    groups: int = Field(1, ge=1, description="Groups of heads with their own B and C; they divide the heads.")


@register
class Mamba2(Mixer):
    """State space dual mixer; (B, L, D) to (B, L, D)."""

    name = "mamba2"
    Options = Mamba2Options
    block = "mamba"
    options: Mamba2Options

    def __init__(self, d_model: int, **options: Any) -> None:
        super().__init__(d_model, **options)
        inner, keys = self.options.expand * d_model, self.options.groups * self.options.d_state
        heads = inner // self.options.head_dim
        self.in_widths = [inner, inner + 2 * keys, heads]
        self.conv_widths = [inner, keys, keys]
        self.in_proj = nn.Linear(d_model, sum(self.in_widths), bias=False)
        self.conv = ShortConv(sum(self.conv_widths), self.options.d_conv, activation="silu")
        self.dt_bias = nn.Parameter(step_size_bias(heads))
        self.A_log = nn.Parameter(torch.empty(heads).uniform_(1, 16).log())
        self.D = nn.Parameter(torch.ones(heads))
        self.norm = nn.RMSNorm(inner, eps=1e-5)
        self.out_proj = nn.Linear(inner, d_model, bias=False)

    @classmethod
    def check(cls, d_model: int, options: Mamba2Options) -> None:
        inner = options.expand * d_model
        if inner % options.head_dim:
            fitting = max(n for n in range(1, options.head_dim + 1) if inner % n == 0)
            raise UserError(
                f"mixer 'mamba2': head_dim = {options.head_dim} does not divide expand * d_model = {inner}; "
                f"nearest below: {fitting}."
            )
        heads = inner // options.head_dim
        if heads % options.groups:
            raise UserError(f"mixer 'mamba2': groups = {options.groups} does not divide the {heads} heads; use 1.")

    def _split_heads(self, xBC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x (..., H, P) and B, C (..., G, N)."""
        x, B, C = xBC.split(self.conv_widths, -1)
        groups = (self.options.groups, self.options.d_state)
        return x.unflatten(-1, (-1, self.options.head_dim)), B.unflatten(-1, groups), C.unflatten(-1, groups)

    def _constants(self) -> dict[str, Any]:
        return {"D_H": self.D, "dt_bias_H": self.dt_bias, "dt_softplus": True}

    def _heads(self, z_xE: Tensor) -> Tensor:
        return z_xE.unflatten(-1, (-1, self.options.head_dim))

    def _output(self, y_xHP: Tensor) -> Tensor:
        """W_out rmsnorm(y) of the gated y."""
        return project(self.out_proj, self._normed(y_xHP))

    def _normed(self, y_xHP: Tensor) -> Tensor:
        y_xE, eps = y_xHP.flatten(-2), self.norm.eps or 0.0
        normed, _ = add_layer_norm(
            y_xE, None, self.norm.weight, eps=eps, center=False, dtype=product_dtype(y_xE) or y_xE.dtype
        )
        return normed

    def _scan(self, x_BLD: Tensor, packing: Packing | None) -> Tensor:
        """The gated y (B, L, H, P)."""
        convolution = self.conv.weight, self.conv.bias
        scan = negative_exp(self.A_log), self.D, self.dt_bias
        p_BLE, head_dim, groups = project_aligned(self.in_proj, x_BLD), self.options.head_dim, self.options.groups
        return split_ssd(p_BLE, *convolution, *scan, head_dim=head_dim, groups=groups, packing=packing)

    @classmethod
    def packs(cls, options: Mamba2Options, *, asked: bool) -> bool:
        """Where there are kernels for it. Spread out and gathered again, it would cost more than it saves."""
        narrow = options.d_state <= WALKED_STATES and options.head_dim <= WALKED_CHANNELS
        return narrow and options.d_conv <= MOST_TAPS

    def forward(self, x_BLD: Tensor, packing: Packing | None = None) -> Tensor:
        return self._output(self._scan(x_BLD, packing))

    def forward_asked(self, x_BLD: Tensor, asked: Asked) -> Tensor:
        """z, the scan's outputs, norm and W_out at asked tokens only; x, B, C and dt, which those read, at all.

        Of many tokens the whole scan: then it is faster than attention is.
        """
        if asked.positions_BK.shape[1] > MOST_AS_ATTENTION:
            y_BLHP = self._scan(x_BLD, asked.packing)
            return self._output(self._heads(asked.rows(y_BLHP.flatten(2))))
        inner = self.in_widths[0]
        weight = aligned(self.in_proj.weight, self.in_proj.out_features - inner)  # see `project_aligned`
        p_BLF, z_BKE = linear_asked(x_BLD, asked.x_BKD, weight, None, slice(0, inner))
        convolution = self.conv.weight, self.conv.bias
        scan = negative_exp(self.A_log), self.D, self.dt_bias
        head_dim, groups = self.options.head_dim, self.options.groups
        return self._output(split_ssd_asked(z_BKE, p_BLF, asked, *convolution, *scan, head_dim=head_dim, groups=groups))

    def prefill(self, x_BLD: Tensor, max_length: int | None = None) -> tuple[Tensor, State]:
        z_BLE, xBC, dt_BLH = self.in_proj(x_BLD).split(self.in_widths, -1)
        xBC, conv_BES = self.conv.prefill(xBC)
        x, B, C = self._split_heads(xBC)
        options = {"z_BLHP": self._heads(z_BLE), **self._constants()}
        y_BLHP, state_BHPN = ssd(x, dt_BLH, negative_exp(self.A_log), B, C, return_state=True, **options)
        return self._output(y_BLHP), {"conv": conv_BES, "state": state_BHPN}

    def init_state(
        self,
        batch_size: int,
        max_length: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> State:
        shape = (batch_size, len(self.A_log), self.options.head_dim, self.options.d_state)
        return {
            "conv": self.conv.init_state(batch_size, dtype, device),
            "state": torch.zeros(shape, dtype=accumulator_dtype(dtype), device=device),
        }

    def step(self, x_BD: Tensor, state: State) -> tuple[Tensor, State]:
        return project(self.out_proj, self.step_between(project(self.in_proj, x_BD), state)), state

    def step_between(self, p_BE: Tensor, state: State) -> Tensor:
        """A step from the outputs of `in_proj` to the inputs of `out_proj`."""
        z_BE, xBC, dt_BH = p_BE.split(self.in_widths, -1)
        x, B, C = self._split_heads(self.conv.step(xBC, state["conv"]))
        options = {"z_BHP": self._heads(z_BE), **self._constants()}
        y_BHP = ssd_step(x, dt_BH, self.A_log, B, C, state["state"], log_A=True, count_B=state.get("count"), **options)
        return self._normed(y_BHP)

    def zoology_elements(self, length: int) -> int:
        return self.options.expand * self.d_model * self.options.d_state

    def initialise(self, layers: int, init: Init) -> None:
        """`correct`: mamba_ssm's init. `published`: zoology's older one, Linear N(0, .02)."""
        if init == "published":
            super().initialise(layers, init)
            normal_linear_(self.out_proj, residual_std(layers))
            return
        self.in_proj.reset_parameters()
        self.out_proj.reset_parameters()
        with torch.no_grad():
            self.out_proj.weight /= math.sqrt(layers)
