"""A short depthwise causal convolution with its parameters, shared by the mixers that have one."""

import math
from typing import Literal, cast

import torch
from torch import Tensor, nn

from basedbench.kernels import short_conv, short_conv_step, split_conv


class ShortConv(nn.Module):
    """y[t, d] = act(b[d] + sum_w weight[d, w] x[t - width + 1 + w, d]), zeros before the start; b is optional.

    Parameters start as in PyTorch's Conv1d: uniform within 1 / sqrt(width). The state is the last width - 1 inputs,
    (B, D, width - 1), oldest first.
    """

    def __init__(
        self, channels: int, width: int, activation: Literal["silu"] | None = None, *, bias: bool = True
    ) -> None:
        super().__init__()
        self.activation = activation
        bound = 1 / math.sqrt(width)
        self.weight = nn.Parameter(torch.empty(channels, width).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(channels).uniform_(-bound, bound)) if bias else None

    def forward(self, x_BLD: Tensor) -> Tensor:
        return cast(Tensor, short_conv(x_BLD, self.weight, self.bias, activation=self.activation))

    def split(self, x_BLE: Tensor, widths: list[int], start: int = 0) -> tuple[Tensor, ...]:
        """x cut into parts of these widths, those of the convolution's channels, from `start` on, convolved."""
        return split_conv(x_BLE, widths, self.weight, self.bias, start=start, activation=self.activation)

    def prefill(self, x_BLD: Tensor) -> tuple[Tensor, Tensor]:
        """The outputs and the state after the last token."""
        y_BLD, state_BDS = short_conv(x_BLD, self.weight, self.bias, activation=self.activation, return_state=True)
        return y_BLD, state_BDS

    def step(self, x_BD: Tensor, state_BDS: Tensor) -> Tensor:
        """One token; updates the state in place."""
        return short_conv_step(x_BD, self.weight, self.bias, state_BDS, activation=self.activation)

    def init_state(self, batch_size: int, dtype: torch.dtype, device: torch.device | str | None) -> Tensor:
        channels, width = self.weight.shape
        return torch.zeros(batch_size, channels, width - 1, dtype=dtype, device=device)
