"""Between the two products of the language models' BaseConv: half of x through a convolution, times the other half.

    x = [u, g],   y_t = silu(conv(u)_t) * g_t,   conv as in `short_conv`, with bias

Source: BASED, arXiv 2402.18668, section 4 and its released code; Zoology, arXiv 2312.04927 for the recall form without
SiLU (`gated_conv`). The state (B,D,S) is the last S = W - 1 rows of u, as `short_conv` keeps it. Products in float32
(float64 for float64 inputs); y in the dtype of x, rounded once.
"""

from typing import Any

from torch import Tensor

from .costs import total_bytes, total_flops
from .precision import accumulation_dtype
from .shapes import checked_shapes
from .short_conv import last_inputs, on_triton
from .short_conv import reference as convolved
from .short_conv import reference_step as convolved_step


def _wide(x: Tensor) -> Tensor:
    return x.to(accumulation_dtype(x.dtype))


def reference(
    x_BLE: Tensor,
    weight_DW: Tensor,
    bias_D: Tensor | None = None,
    *,
    initial_state: Tensor | None = None,
    return_state: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """`conv_gate` in PyTorch: differentiable, any device."""
    u_BLD, gate_BLD = x_BLE.chunk(2, dim=-1)
    options: dict[str, Any] = {"activation": "silu", "initial_state": initial_state, "return_state": True}
    c_BLD, state = convolved(_wide(u_BLD), weight_DW, bias_D, **options)
    y_BLD = (c_BLD * gate_BLD).to(x_BLE.dtype)
    return (y_BLD, state.to(x_BLE.dtype)) if return_state else y_BLD


@checked_shapes({"E = 2 D": lambda E, D: E == 2 * D, "S = W - 1": lambda S, W: S == W - 1}, initial_state="BDS")
def conv_gate(
    x_BLE: Tensor,
    weight_DW: Tensor,
    bias_D: Tensor | None = None,
    *,
    initial_state: Tensor | None = None,
    return_state: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """x (B,L,2 D), weight (D,W), bias (D) -> y (B,L,D), and the state (B,D,S) if asked for.

    One kernel on CUDA, which has no gradient for the initial state: if that asks for one the reference computes.
    """
    if not on_triton(x_BLE, weight_DW, initial_state):
        return reference(x_BLE, weight_DW, bias_D, initial_state=initial_state, return_state=return_state)
    from .short_conv_triton import conv_gate as by_triton

    y_BLD = by_triton(x_BLE, weight_DW, bias_D, initial_state)
    if not return_state:
        return y_BLD
    return y_BLD, last_inputs(x_BLE[..., : len(weight_DW)], weight_DW.shape[1] - 1, initial_state)


def reference_step(x_BE: Tensor, weight_DW: Tensor, bias_D: Tensor | None, state_BDS: Tensor) -> Tensor:
    """`conv_gate_step` in PyTorch: any device."""
    u_BD, gate_BD = x_BE.chunk(2, dim=-1)
    return (convolved_step(_wide(u_BD), weight_DW, bias_D, state_BDS, activation="silu") * gate_BD).to(x_BE.dtype)


@checked_shapes({"E = 2 D": lambda E, D: E == 2 * D, "S = W - 1": lambda S, W: S == W - 1})
def conv_gate_step(x_BE: Tensor, weight_DW: Tensor, bias_D: Tensor | None, state_BDS: Tensor) -> Tensor:
    """One decode step: x (B,2 D) -> y (B,D). Shifts u into `state_BDS` in place. One launch on CUDA; no gradient."""
    if on_triton(x_BE, weight_DW) and state_BDS.is_contiguous():
        from .short_conv_triton import conv_gate_step as by_triton

        return by_triton(x_BE, weight_DW, bias_D, state_BDS)
    return reference_step(x_BE, weight_DW, bias_D, state_BDS)


def flops(*, batch: int, length: int, channels: int, taps: int, state: bool = False, backward: bool = False) -> int:
    """2 W per token and channel for the convolution, one for the gate."""
    return total_flops(batch * length * channels * (2 * taps + 1), backward=backward)


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
    """u, gate and the parameters in, y out; with `state` W - 1 inputs per channel in and out, in the dtype of x."""
    tokens = batch * length * channels
    kept = batch * channels * (taps - 1) if state else 0
    inputs = 2 * tokens + channels * (taps + 1) + kept
    return total_bytes(inputs, tokens + kept, element_bytes=element_bytes, backward=backward)
