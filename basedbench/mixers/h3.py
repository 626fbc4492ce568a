"""H3: a state space model that recalls keys, and one that recalls their products with values (arXiv 2212.14052).

    q, k, v = W_q u, shift(W_k u), W_v u;   y_j = sum_i q_i diagonal(k_i v_j);   out = W_out y

All with biases; i and j run over the head_dim queries, keys and values of a head. `diagonal` is a complex model of
d_state / 2 modes, initialised as S4D-Lin (arXiv 2206.11893) and discretised bilinearly:

    h_t = p h_{t-1} + g x_t,   y_t = 2 Re(C h_t) + D x_t
    p = (1 + dt A / 2) / (1 - dt A / 2),   g = dt B / (1 - dt A / 2)

A = -1/2 + i pi n, B = 1, C complex normal, dt log-uniform in [1e-3, 1e-1]. The state of `shift` is its last d_state
inputs, so that it is a convolution: tap j = sum_i B_i C_{i+j}, with B = e_1 and C uniform within 1 / sqrt(d_state); to
which D times the input is added. Both D are from N(0, 1), and everything is learned.
State: the modes of every product, always in fp32 (fp64 for fp64), and the last d_state - 1 keys.

    state_bytes = a * head_dim * d * d_state + e * d * (d_state - 1)

(d = d_model, a = 4 bytes or 8 for fp64, e = bytes of the asked dtype.) zoology counts d d_state, a third of it at the
recipe's head_dim of 2.
"""

import math
from collections.abc import Mapping
from typing import Any, cast

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from basedbench.errors import UserError
from basedbench.kernels import (
    diagonal_filter,
    gated_long_conv,
    linear,
    long_conv,
    plane_linear,
    shift_filter,
    short_conv_step,
)
from basedbench.kernels.asked import Asked
from basedbench.kernels.diagonal_filter import constants, powers
from basedbench.kernels.long_conv import MOST_CHANNELS
from basedbench.kernels.packing import Packing, length_of
from basedbench.kernels.precision import without_autocast
from basedbench.mixers.base import Mixer, MixerOptions, State, accumulator_dtype
from basedbench.mixers.registry import register


class H3Options(MixerOptions):
    d_state: int | None = Field(
        None, ge=2, multiple_of=2, description="State numbers of a channel (N), even; not given: d_model / 4."
    )
    head_dim: int = Field(2, ge=1, description="Queries, keys and values per head; it divides d_model.")


class ShiftSSM(nn.Module):
    """A convolution over the last `d_state` inputs of each channel, and the input itself times D."""

    def __init__(self, channels: int, d_state: int) -> None:
        super().__init__()
        bound = 1 / math.sqrt(d_state)
        self.B = nn.Parameter(torch.eye(1, d_state).repeat(channels, 1))
        self.C = nn.Parameter(torch.empty(channels, d_state).uniform_(-bound, bound))
        self.D = nn.Parameter(torch.randn(channels))

    def taps(self) -> Tensor:
        """(N, D), the current token's first, in float32 at least, without D."""
        return shift_filter(self.B, self.C)

    def skip(self) -> Tensor:
        """The weight of the token itself, (D,), in the dtype of the taps."""
        return self.D.to(accumulator_dtype(self.D.dtype))

    def forward(self, x_BLD: Tensor) -> Tensor:
        return long_conv(x_BLD, self.taps(), self.skip())

    def step(self, x_BD: Tensor, state_BDS: Tensor) -> Tensor:
        """One token; updates the state, the last d_state - 1 inputs, in place."""
        oldest_DN = self.taps().flip(0).t() + F.pad(self.skip()[:, None], (self.C.shape[1] - 1, 0))
        return short_conv_step(x_BD, oldest_DN, None, state_BDS)

    def last_inputs(self, x_BLD: Tensor) -> Tensor:
        """The state (B, D, S) after x, oldest input first."""
        kept = self.C.shape[1] - 1
        return F.pad(x_BLD, (0, 0, kept, 0))[:, -kept:].mT.clone(memory_format=torch.contiguous_format)


class DiagonalSSM(nn.Module):
    """The diagonal model of each head, shared by its products; M = d_state / 2 modes.

    The state is h / g: then p is the recurrence's only constant, and C g the output's.
    """

    def __init__(self, heads: int, d_state: int) -> None:
        super().__init__()
        modes = d_state // 2
        self.log_dt = nn.Parameter(torch.empty(heads).uniform_(math.log(1e-3), math.log(1e-1)))
        self.A_log = nn.Parameter(torch.full((heads, modes), math.log(0.5)))
        self.A_imag = nn.Parameter((math.pi * torch.arange(modes)).repeat(heads, 1))
        self.B = nn.Parameter(torch.tensor([1.0, 0.0]).repeat(heads, modes, 1))
        self.C = nn.Parameter(torch.randn(heads, modes, 2) / math.sqrt(2))
        self.D = nn.Parameter(torch.randn(heads))

    @property
    def dtype(self) -> torch.dtype:
        """What it computes in."""
        return accumulator_dtype(self.D.dtype)

    def _modes(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        return self.log_dt, self.A_log, self.A_imag, self.B, self.C

    def constants(self) -> tuple[Tensor, Tensor]:
        """p and 2 C g, complex (H, M)."""
        return constants(*self._modes())

    def taps(self, length: int) -> Tensor:
        """The convolution that it is, (L, H), without D."""
        return diagonal_filter(*self._modes(), length)

    def skip(self) -> Tensor:
        """The weight of the token itself, (H,), in the dtype of the taps."""
        return self.D.to(self.dtype)

    def step(self, x_BKVH: Tensor, state_BKVHMC: Tensor) -> Tensor:
        """One token; updates the state in place."""
        p_HM, gain_HM = self.constants()
        h_BKVHM = p_HM * torch.view_as_complex(state_BKVHMC) + x_BKVH[..., None]
        state_BKVHMC.copy_(torch.view_as_real(h_BKVHM))
        return (gain_HM * h_BKVHM).real.sum(-1) + self.skip() * x_BKVH

    def last_state(self, x_BLKVH: Tensor) -> Tensor:
        """The state (B, K, V, H, M, 2) after x."""
        ages_L = torch.arange(x_BLKVH.shape[1] - 1, -1, -1, dtype=self.dtype, device=x_BLKVH.device)
        return weighted_sum(x_BLKVH, torch.stack(powers(self.constants()[0], ages_L), -1)).contiguous()


@without_autocast
def weighted_sum(x_BLKVH: Tensor, weights_LHMC: Tensor) -> Tensor:
    """Over time, with weights for each head, mode and complex part; (B, K, V, H, M, C)."""
    return torch.einsum("blkvh,lhmc->bkvhmc", x_BLKVH, weights_LHMC)


@register
class H3(Mixer):
    """Shift and diagonal state space models with gates between; (B, L, D) to (B, L, D)."""

    name = "h3"
    Options = H3Options
    options: H3Options

    def __init__(self, d_model: int, **options: Any) -> None:
        super().__init__(d_model, **options)
        self.d_state, self.heads = cast(int, self.options.d_state), d_model // self.options.head_dim
        self.in_proj = nn.Linear(d_model, 3 * d_model)
        self.shift = ShiftSSM(d_model, self.d_state)
        self.diagonal = DiagonalSSM(self.heads, self.d_state)
        self.out_proj = nn.Linear(d_model, d_model)

    @classmethod
    def resolve(cls, d_model: int, options: Mapping[str, Any]) -> MixerOptions:
        """As every mixer's; d_state, where it is not given, is the even number at or below d_model / 4, at least 2."""
        resolved = cast(H3Options, super().resolve(d_model, options))
        return resolved.model_copy(update={"d_state": resolved.d_state or max(2, d_model // 8 * 2)})

    @classmethod
    def check(cls, d_model: int, options: H3Options) -> None:
        if d_model % options.head_dim:
            fitting = max(n for n in range(1, options.head_dim + 1) if d_model % n == 0)
            raise UserError(
                f"mixer 'h3': head_dim = {options.head_dim} does not divide d_model = {d_model}; "
                f"nearest below: {fitting}."
            )

    def _products(self, k_xD: Tensor, v_xD: Tensor) -> Tensor:
        """Of each key with each value of its head (..., K, V, H), in float32 at least."""
        k_xKH, v_xVH = (x.to(self.diagonal.dtype).unflatten(-1, (-1, self.heads)) for x in (k_xD, v_xD))
        return k_xKH.unsqueeze(-2) * v_xVH.unsqueeze(-3)

    def _output(self, q_xD: Tensor, y_xKVH: Tensor) -> Tensor:
        """The sum over a head's keys, weighed by its queries, and the projection."""
        q_xKH = q_xD.unflatten(-1, (-1, self.heads))
        return self.out_proj((q_xKH.unsqueeze(-2) * y_xKVH).sum(-3).flatten(-2).to(q_xD.dtype))

    def _mixed(self, x_BLE: Tensor, bias_E: Tensor | None = None, packing: Packing | None = None) -> Tensor:
        """What the last projection reads, from q, k and v side by side, less a bias."""
        diagonal = self.diagonal.taps(length_of(x_BLE, packing)), self.diagonal.skip()
        shift = self.shift.taps(), self.shift.skip()
        return gated_long_conv(x_BLE, *diagonal, *shift, bias_E=bias_E, packing=packing)

    def _projected(self, y_xD: Tensor) -> Tensor:
        return linear(y_xD, self.out_proj.weight, self.out_proj.bias)

    @classmethod
    def packs(cls, options: H3Options, *, asked: bool) -> bool:
        return options.head_dim <= MOST_CHANNELS

    @classmethod
    def packing_pays(cls, precision: str) -> bool:
        """Where matrix units take the convolutions; what takes others makes a batch of the examples first."""
        return precision == "bf16"

    def forward(self, x_BLD: Tensor, packing: Packing | None = None) -> Tensor:
        return self._projected(self._mixed(*plane_linear(x_BLD, self.in_proj.weight, self.in_proj.bias), packing))

    def forward_asked(self, x_BLD: Tensor, asked: Asked) -> Tensor:
        x_BLE, bias_E = plane_linear(x_BLD, self.in_proj.weight, self.in_proj.bias)
        return self._projected(asked.rows(self._mixed(x_BLE, bias_E, asked.packing)))

    def prefill(self, x_BLD: Tensor, max_length: int | None = None) -> tuple[Tensor, State]:
        x_BLE = self.in_proj(x_BLD)
        _, k_BLD, v_BLD = x_BLE.chunk(3, -1)
        kv_BLKVH = self._products(self.shift(k_BLD), v_BLD)
        state = {"shift": self.shift.last_inputs(k_BLD), "diagonal": self.diagonal.last_state(kv_BLKVH)}
        return self._projected(self._mixed(x_BLE)), state

    def init_state(
        self,
        batch_size: int,
        max_length: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> State:
        width = self.options.head_dim
        modes = (batch_size, width, width, self.heads, self.d_state // 2, 2)
        return {
            "shift": torch.zeros(batch_size, self.d_model, self.d_state - 1, dtype=dtype, device=device),
            "diagonal": torch.zeros(modes, dtype=accumulator_dtype(dtype), device=device),
        }

    def step(self, x_BD: Tensor, state: State) -> tuple[Tensor, State]:
        q_BD, k_BD, v_BD = self.in_proj(x_BD).chunk(3, -1)
        kv_BKVH = self._products(self.shift.step(k_BD, state["shift"]), v_BD)
        return self._output(q_BD, self.diagonal.step(kv_BKVH, state["diagonal"])), state

    def zoology_elements(self, length: int) -> int:
        return self.d_model * self.d_state
