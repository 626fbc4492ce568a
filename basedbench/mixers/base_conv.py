"""BaseConv: a short causal convolution times a gate, plus the input (Zoology, arXiv 2312.04927; BASED, 2402.18668).

    y = conv(u) * (W u + b) + u        conv: depthwise, causal, with bias

It compares neighbouring tokens, and is the first layer of nearly every model in the recall recipe.
State: the last kernel_size - 1 inputs.

    state_bytes = e * d * (kernel_size - 1)

(d = d_model, e = bytes of the asked dtype.) zoology counts kernel_size * d elements; the printed figure counts none.
"""

from typing import Any, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from basedbench.kernels import base_conv
from basedbench.kernels.packing import Packing
from basedbench.mixers.base import Mixer, MixerOptions, State
from basedbench.mixers.conv import ShortConv
from basedbench.mixers.registry import register


class BaseConvOptions(MixerOptions):
    kernel_size: int = Field(3, ge=2, le=64, description="Tokens under the convolution, the current one included.")


@register
class BaseConv(Mixer):
    """y = conv(u) * (W u + b) + u; (B, L, D) to (B, L, D)."""

    name = "base_conv"
    Options = BaseConvOptions
    options: BaseConvOptions

    def __init__(self, d_model: int, **options: Any) -> None:
        super().__init__(d_model, **options)
        self.conv = ShortConv(d_model, self.options.kernel_size)
        self.proj = nn.Linear(d_model, d_model)

    @classmethod
    def packs(cls, options: BaseConvOptions, *, asked: bool) -> bool:
        return not asked

    def forward(self, x_BLD: Tensor, packing: Packing | None = None) -> Tensor:
        gate, conv = self.proj, self.conv
        return base_conv(x_BLD, gate.weight, gate.bias, conv.weight, cast(Tensor, conv.bias), packing)

    def prefill(self, x_BLD: Tensor, max_length: int | None = None) -> tuple[Tensor, State]:
        y_BLD, state_BDS = self.conv.prefill(x_BLD)
        return torch.addcmul(x_BLD, y_BLD, self.proj(x_BLD)), {"conv": state_BDS}

    def init_state(
        self,
        batch_size: int,
        max_length: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> State:
        return {"conv": self.conv.init_state(batch_size, dtype, device)}

    def step(self, x_BD: Tensor, state: State) -> tuple[Tensor, State]:
        return torch.addcmul(x_BD, self.conv.step(x_BD, state["conv"]), self.proj(x_BD)), state

    def zoology_elements(self, length: int) -> int:
        return self.options.kernel_size * self.d_model

    def paper_elements(self, length: int) -> int:
        return 0
