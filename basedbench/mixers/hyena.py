"""Hyena, order 2: two gates around a convolution as long as the sequence (arXiv 2302.10866, section 3).

    x1, x2, v = split(conv(W_in u));   y[t] = x2[t] * (b * w[t] + sum_{s <= t} h[t - s] w[s]),  w = x1 * v;   W_out y

conv: short, depthwise, causal, with bias. The filter h is a small network of the position t, damped in time:

    h[t] = W_3 sin(a * (W_2 sin(a * (W_1 sin(a * (W_0 z[t])))))) * exp(-r t / (max_length - 1))
    z[t] = t / (max_length - 1) and the real and imaginary parts of exp(-2 pi i f t / max_length) of each band f

with biases in all but W_3, one learned frequency a for each unit (1 at first), rates r from log(100) / 1.5 to
log(100) / .3 over the channels, and b from N(0, 1). z is learned, as zoology's single optimizer group learns it: the
recipe trains its rows below 256 and lets weight decay shrink the rest. Positions are relative to max_length, which is
also as far as the filter reaches.
A filter without recurrence has no state of constant size: decoding keeps every past w, and the last inputs of conv. The
filter itself comes from parameters. As with attention, `init_state` and `prefill(x, max_length)` reserve room and carry
a position; `prefill(x)` returns a cache of exactly its length, which each step lengthens by one.

    state_bytes = e * d * L + e * 3 * d * (short_filter - 1) + 4

(d = d_model, L = max_length, e = bytes of the asked dtype; 4 for the position.) zoology counts d L elements.
"""

import math
from collections.abc import Mapping
from typing import Any, cast

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from basedbench.errors import UserError
from basedbench.kernels import gated_long_conv, implicit_filter, linear, plane_conv, plane_linear
from basedbench.kernels.asked import Asked
from basedbench.kernels.packing import Packing, examples_apart, length_of
from basedbench.kernels.short_conv import MOST_TAPS
from basedbench.mixers.base import (
    Init,
    Mixer,
    MixerOptions,
    State,
    accumulator_dtype,
    check_room,
    normal_linear_,
    residual_std,
)
from basedbench.mixers.conv import ShortConv
from basedbench.mixers.full_precision import FullPrecisionLinear
from basedbench.mixers.registry import register

DECAY = math.log(100)  # the damping reaches 1 / 100 ...
SLOWEST, FASTEST = 1.5, 0.3  # ... at these multiples of max_length, in the first and the last channel
LOWEST_BAND = 1e-4


class HyenaOptions(MixerOptions):
    filter_order: int = Field(64, ge=1, description="Width of the network that makes the long filter.")
    emb_dim: int = Field(3, ge=3, description="Positional features of that network: time, and two for each band; odd.")
    short_filter: int = Field(3, ge=2, le=64, description="Tokens under the short convolution.")
    max_length: int = Field(1024, ge=2, description="The longest sequence; the filter's positions are relative to it.")


class ImplicitFilter(nn.Module):
    """The long filter: a network with sine activations over positional features, and the weight of the token itself."""

    def __init__(self, d_model: int, options: HyenaOptions) -> None:
        super().__init__()
        order = options.filter_order
        self.features = nn.Parameter(positional_features(options.max_length, options.emb_dim))
        self.hidden = nn.ModuleList(FullPrecisionLinear(width, order) for width in (options.emb_dim, order, order))
        self.out = FullPrecisionLinear(order, d_model, bias=False)
        self.frequency = nn.Parameter(torch.ones(order))
        self.bias = nn.Parameter(torch.randn(d_model))

    def forward(self, length: int) -> Tensor:
        """The first `length` taps (L, D), in float32 at least, without `bias`."""
        layers = cast(list[FullPrecisionLinear], self.hidden)
        hidden = [parameter for layer in layers for parameter in (layer.weight, layer.bias)]
        rates = {"slowest": DECAY / SLOWEST, "fastest": DECAY / FASTEST}
        return implicit_filter(self.features, hidden, self.frequency, self.out.weight, length=length, **rates)

    def skip(self) -> Tensor:
        """The weight of the token itself, (D,), in the dtype of the taps."""
        return self.bias.to(accumulator_dtype(self.bias.dtype))


def positional_features(max_length: int, emb_dim: int) -> Tensor:
    """(max_length, emb_dim): t / (max_length - 1), then cos and -sin of 2 pi f t / max_length for each band f."""
    bands, default = (emb_dim - 1) // 2, torch.get_default_dtype()
    dtype = torch.promote_types(torch.float32, default)
    time_L = torch.arange(max_length, dtype=dtype)[:, None]
    angle_LF = 2 * math.pi / max_length * time_L * torch.linspace(LOWEST_BAND, bands - 1, bands, dtype=dtype)
    return torch.cat((time_L / (max_length - 1), angle_LF.cos(), -angle_LF.sin()), 1).to(default)


@register
class Hyena(Mixer):
    """Gated long convolution; (B, L, D) to (B, L, D). UserError for sequences longer than the option `max_length`."""

    name = "hyena"
    Options = HyenaOptions
    options: HyenaOptions

    def __init__(self, d_model: int, **options: Any) -> None:
        super().__init__(d_model, **options)
        self.in_proj = nn.Linear(d_model, 3 * d_model)
        self.conv = ShortConv(3 * d_model, self.options.short_filter)
        self.filter = ImplicitFilter(d_model, self.options)
        self.out_proj = nn.Linear(d_model, d_model)

    @classmethod
    def check(cls, d_model: int, options: HyenaOptions) -> None:
        if options.emb_dim % 2 == 0:
            raise UserError(f"mixer 'hyena': emb_dim = {options.emb_dim} should be odd; use {options.emb_dim + 1}.")

    @classmethod
    def check_length(cls, options: HyenaOptions, length: int) -> None:
        if length > options.max_length:
            raise UserError(
                f"mixer 'hyena': {length} tokens are more than max_length = {options.max_length}, which is as far "
                "as its filter reaches; raise that option."
            )

    def _input(self, x_BLD: Tensor) -> Tensor:
        """The projection in (B, L, 3 D)."""
        return linear(x_BLD, self.in_proj.weight, self.in_proj.bias)

    def _mixed(self, mixed_BLE: Tensor, packing: Packing | None = None) -> Tensor:
        """The long convolution between its gates."""
        length = length_of(mixed_BLE, packing)
        self.check_length(self.options, length)
        return gated_long_conv(mixed_BLE, self.filter(length), self.filter.skip(), order="kqv", packing=packing)

    def _projected(self, y_xD: Tensor) -> Tensor:
        return linear(y_xD, self.out_proj.weight, self.out_proj.bias)

    def _inner(self, x_BLD: Tensor, packing: Packing | None) -> Tensor:
        """What the last projection reads."""
        x_BLE, bias_E = plane_linear(x_BLD, self.in_proj.weight, self.in_proj.bias)
        if bias_E is None:
            return self._mixed(examples_apart(self.conv, x_BLE, packing), packing)
        convolution = self.conv.weight, cast(Tensor, self.conv.bias)
        return self._mixed(plane_conv(x_BLE, bias_E, *convolution, packing), packing)

    @classmethod
    def packs(cls, options: HyenaOptions, *, asked: bool) -> bool:
        return options.short_filter <= MOST_TAPS

    @classmethod
    def packing_pays(cls, precision: str) -> bool:
        """Where matrix units take the convolutions; what takes others makes a batch of the examples first."""
        return precision == "bf16"

    def forward(self, x_BLD: Tensor, packing: Packing | None = None) -> Tensor:
        return self._projected(self._inner(x_BLD, packing))

    def forward_asked(self, x_BLD: Tensor, asked: Asked) -> Tensor:
        return self._projected(asked.rows(self._inner(x_BLD, asked.packing)))

    def prefill(self, x_BLD: Tensor, max_length: int | None = None) -> tuple[Tensor, State]:
        mixed_BLE, conv_BES = self.conv.prefill(self._input(x_BLD))
        inner_BLD, _, v_BLD = mixed_BLE.chunk(3, -1)
        w_BLD, y_BLD = inner_BLD * v_BLD, self._projected(self._mixed(mixed_BLE))
        if max_length is None:
            return y_BLD, {"conv": conv_BES, "w": w_BLD}
        batch, length, _ = x_BLD.shape
        check_room(self.name, length, max_length)
        state = self.init_state(batch, max_length, x_BLD.dtype, x_BLD.device)
        state["w"][:, :length] = w_BLD
        state["position"].fill_(length)
        return y_BLD, state | {"conv": conv_BES}

    def init_state(
        self,
        batch_size: int,
        max_length: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> State:
        self.check_length(self.options, max_length)
        return {
            "conv": self.conv.init_state(batch_size, dtype, device),
            "w": torch.zeros(batch_size, max_length, self.d_model, dtype=dtype, device=device),
            "position": torch.zeros(batch_size, dtype=torch.int32, device=device),
        }

    def step(self, x_BD: Tensor, state: State) -> tuple[Tensor, State]:
        inner_BD, outer_BD, v_BD = self.conv.step(self.in_proj(x_BD), state["conv"]).chunk(3, -1)
        state = _appended(inner_BD * v_BD, state)
        length = state["w"].shape[1]
        self.check_length(self.options, length)
        newest = state["position"].long()[:, None] - 1 if "position" in state else length - 1
        age_XL = newest - torch.arange(length, device=x_BD.device)[None]  # X: the batch, or 1 where no room is reserved
        taps_LD = self.filter(length) + F.pad(self.filter.skip()[None], (0, 0, 0, length - 1))
        taps_XLD = taps_LD[age_XL.clamp(min=0)] * (age_XL >= 0).unsqueeze(-1)
        y_BD = (taps_XLD * state["w"]).sum(1).to(x_BD.dtype)
        return self.out_proj(outer_BD * y_BD), state

    def zoology_elements(self, length: int) -> int:
        return self.d_model * length

    @classmethod
    def init_matters(cls, options: Mapping[str, Any]) -> bool:
        return False

    def initialise(self, layers: int, init: Init) -> None:
        super().initialise(layers, init)
        normal_linear_(self.out_proj, residual_std(layers))


def _appended(w_BD: Tensor, state: State) -> State:
    """The state with one token more: in place where room is reserved, otherwise longer."""
    if "position" not in state:
        return state | {"w": torch.cat((state["w"], w_BD[:, None]), 1)}
    index_BxD = state["position"].long().view(-1, 1, 1).expand(-1, 1, w_BD.shape[-1])
    state["w"].scatter_(1, index_BxD, w_BD[:, None].to(state["w"].dtype))
    state["position"] += 1
    return state
