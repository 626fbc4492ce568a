"""Short depthwise causal convolution, the local mixer in front of most recurrences.

    y_t,d = bias_d + sum_w weight_d,w x_t-(W-1)+w,d, then SiLU if asked for

weight_D,W-1 multiplies the current token, as in torch.nn.functional.conv1d with W - 1 zeros in front. The state (B,D,S)
is the last S = W - 1 inputs, oldest first. float32 accumulation (float64 for float64 inputs).

The reference is W shifted multiply-adds along (B,L,D): channels stay contiguous, and unlike conv1d it needs no
transposed copy and is never rounded to TF32. On CUDA up to `MOST_TAPS` taps go to the Triton kernels; with more taps,
float64 or an initial state that asks for a gradient the reference computes there too.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .costs import total_bytes, total_flops
from .precision import accumulation_dtype
from .shapes import checked_shapes

MOST_TAPS = 4


def check_activation(activation: str | None) -> None:
    if activation not in (None, "silu"):
        raise ValueError(f"activation must be None or 'silu', not {activation!r}")


def _activate(y: Tensor, activation: str | None) -> Tensor:
    check_activation(activation)
    return F.silu(y) if activation else y


def reference(
    x_BLD: Tensor,
    weight_DW: Tensor,
    bias_D: Tensor | None = None,
    *,
    activation: str | None = None,
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
    wide, weight_WD = inputs.to(dtype), weight_DW.to(dtype).t().contiguous()
    y = wide[:, :length] * weight_WD[0]
    for tap in range(1, taps):
        y = torch.addcmul(y, wide[:, tap : tap + length], weight_WD[tap])
    y = y if bias_D is None else y + bias_D.to(dtype)
    y = _activate(y, activation).to(x_BLD.dtype)
    # A copy: a view would keep all inputs alive for as long as the state.
    return (y, inputs[:, length:].transpose(1, 2).clone(memory_format=torch.contiguous_format)) if return_state else y


@checked_shapes({"S = W - 1": lambda S, W: S == W - 1}, initial_state="BDS")
def short_conv(
    x_BLD: Tensor,
    weight_DW: Tensor,
    bias_D: Tensor | None = None,
    *,
    activation: str | None = None,
    initial_state: Tensor | None = None,
    return_state: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Depthwise causal convolution of x (B,L,D) with W taps -> y (B,L,D), and the last S = W - 1 inputs if asked for.

    `initial_state` (B,D,S) stands in front of x instead of zeros. Raises ValueError for activations other than "silu".
    """
    if not on_triton(x_BLD, weight_DW, initial_state):
        return reference(
            x_BLD, weight_DW, bias_D, activation=activation, initial_state=initial_state, return_state=return_state
        )
    from .short_conv_triton import short_conv as by_triton

    check_activation(activation)
    y_BLD = by_triton(x_BLD, weight_DW, bias_D, activation=activation, initial_state=initial_state)
    return (y_BLD, last_inputs(x_BLD, weight_DW.shape[1] - 1, initial_state)) if return_state else y_BLD


def on_triton(x: Tensor, weight_DW: Tensor, initial_state: Tensor | None = None) -> bool:
    """Whether the kernels take a convolution of x with this weight. They have no gradient for the initial state."""
    through_state = initial_state is not None and initial_state.requires_grad and torch.is_grad_enabled()
    wide = torch.float64 in (x.dtype, weight_DW.dtype)
    return x.is_cuda and weight_DW.shape[1] <= MOST_TAPS and not wide and not through_state


def last_inputs(x_BLD: Tensor, count: int, initial_state: Tensor | None = None) -> Tensor:
    """The last `count` tokens as a state (B,D,S): a copy. Where x is shorter, those of the state before, or zeros."""
    last_BDS = x_BLD[:, max(0, x_BLD.shape[1] - count) :].transpose(1, 2)
    missing = count - last_BDS.shape[-1]
    if missing and initial_state is not None:
        last_BDS = torch.cat([initial_state[..., -missing:].to(x_BLD.dtype), last_BDS], dim=-1)
    elif missing:
        last_BDS = F.pad(last_BDS, (missing, 0))
    return last_BDS.clone(memory_format=torch.contiguous_format)


def reference_step(
    x_BD: Tensor, weight_DW: Tensor, bias_D: Tensor | None, state_BDS: Tensor, *, activation: str | None = None
) -> Tensor:
    """`short_conv_step` in PyTorch: any device."""
    check_activation(activation)  # before the state has moved
    dtype = accumulation_dtype(x_BD.dtype)
    x = x_BD.to(dtype).unsqueeze(-1)
    y = (torch.cat([state_BDS.to(dtype), x], dim=-1) * weight_DW.to(dtype)).sum(-1)
    y = y if bias_D is None else y + bias_D.to(dtype)
    if state_BDS.shape[-1]:
        state_BDS.copy_(torch.cat([state_BDS[..., 1:], x.to(state_BDS.dtype)], dim=-1))
    return _activate(y, activation).to(x_BD.dtype)


@checked_shapes({"S = W - 1": lambda S, W: S == W - 1})
def short_conv_step(
    x_BD: Tensor, weight_DW: Tensor, bias_D: Tensor | None, state_BDS: Tensor, *, activation: str | None = None
) -> Tensor:
    """One decode step, without gradients on CUDA. Shifts x into `state_BDS` in place; returns y (B,D)."""
    if on_triton(x_BD, weight_DW) and state_BDS.is_contiguous():
        from .short_conv_triton import short_conv_step as by_triton

        check_activation(activation)
        return by_triton(x_BD, weight_DW, bias_D, state_BDS, activation=activation)
    return reference_step(x_BD, weight_DW, bias_D, state_BDS, activation=activation)


def flops(*, batch: int, length: int, channels: int, taps: int, state: bool = False, backward: bool = False) -> int:
    """2 W per token and channel; the bias is the accumulator's first value."""
    return total_flops(batch * length * channels * 2 * taps, backward=backward)


def bytes_moved(
    *,
    batch: int,
    length: int,
    channels: int,
    taps: int,
    element_bytes: int = 2,
    state: bool = False,
    backward: bool = False,
) -> int:
    """x, weight and bias in, y out; with `state` W - 1 inputs per channel in and out, in the dtype of x."""
    tokens = batch * length * channels
    kept = batch * channels * (taps - 1) if state else 0
    inputs = tokens + channels * (taps + 1) + kept
    return total_bytes(inputs, tokens + kept, element_bytes=element_bytes, backward=backward)
