"""Short depthwise causal convolution, the local mixer in front of most recurrences.

    y_t,d = bias_d + sum_w weight_d,w x_t-(W-1)+w,d, then SiLU if asked

weight_D,W-1 multiplies the current token, as in torch.nn.functional.conv1d with W - 1 zeros in front. The state (B,D,S) is
the last S = W - 1 inputs, oldest first. float32 accumulation (float64 for float64 inputs).
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from .chunked import accumulation_dtype

Activation = Literal["silu"] | None


def _activate(y: Tensor, activation: Activation) -> Tensor:
    if activation not in (None, "silu"):
        raise ValueError(f"activation must be None or 'silu', not {activation!r}")
    return F.silu(y) if activation else y


def reference(
    x_BLD: Tensor,
    weight_DW: Tensor,
    bias_D: Tensor | None = None,
    *,
    activation: Activation = None,
    initial_state: Tensor | None = None,
    return_state: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """`short_conv` in PyTorch: differentiable, any device."""
    taps, length = weight_DW.shape[1], x_BLD.shape[1]
    dtype = accumulation_dtype(x_BLD.dtype)
    if initial_state is None:
        inputs = F.pad(x_BLD, (0, 0, taps - 1, 0))
    else:
        inputs = torch.cat([initial_state.to(x_BLD.dtype).transpose(1, 2), x_BLD], dim=1)
    wide, weight = inputs.to(dtype), weight_DW.to(dtype)
    y = wide[:, :length] * weight[:, 0]
    for tap in range(1, taps):
        y = torch.addcmul(y, wide[:, tap : tap + length], weight[:, tap])
    y = y if bias_D is None else y + bias_D.to(dtype)
    y = _activate(y, activation).to(x_BLD.dtype)
    return (y, inputs[:, length:].transpose(1, 2)) if return_state else y


def short_conv(
    x_BLD: Tensor,
    weight_DW: Tensor,
    bias_D: Tensor | None = None,
    *,
    activation: Activation = None,
    initial_state: Tensor | None = None,
    return_state: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Depthwise causal convolution of x (B,L,D) with W taps -> y (B,L,D), and the last W - 1 inputs (B,D,S) on request.

    `initial_state` (B,D,S) stands in front of x instead of zeros. Raises ValueError for an unknown activation.
    """
    return reference(
        x_BLD, weight_DW, bias_D, activation=activation, initial_state=initial_state, return_state=return_state
    )


def short_conv_step(
    x_BD: Tensor, weight_DW: Tensor, bias_D: Tensor | None, state_BDS: Tensor, *, activation: Activation = None
) -> Tensor:
    """One decode step. Shifts x into `state_BDS` in place; returns y (B,D)."""
    dtype = accumulation_dtype(x_BD.dtype)
    inputs = torch.cat([state_BDS, x_BD.to(state_BDS.dtype).unsqueeze(-1)], dim=-1)
    y = (inputs[..., :-1].to(dtype) * weight_DW[:, :-1].to(dtype)).sum(-1) + x_BD.to(dtype) * weight_DW[:, -1].to(dtype)
    y = y if bias_D is None else y + bias_D.to(dtype)
    state_BDS.copy_(inputs[..., 1:])
    return _activate(y, activation).to(x_BD.dtype)
