"""What lies between the two projections of Mamba's block: convolution, step sizes, scan, gate.

    x, z = halves of xz;   x <- silu(conv(x));   dt, B, C = cut(W_x x);   delta = W_dt dt
    y = scan(x, delta + bias, A, B, C) with D and z,   A = -exp(A_log),   as in `selective_scan`

Source: Mamba, arXiv 2312.00752, section 3.4, figure 3 and algorithm 2. Products are in the dtype of xz.

On CUDA its backward writes the gradients of both halves into one tensor, and those of dt, B and C into another; the one
of x through W_x is added to the scan's by the product itself. Cut apart, autograd would copy and add: per token, with E
channels of x, 8 E elements more through memory.
"""

from collections.abc import Callable
from typing import Any, cast

import torch.nn.functional as F
from torch import Tensor

from .asked import Asked
from .gluon_modules import usable
from .packing import Packing, examples_apart
from .precision import negative_exp, product_dtype
from .selective_scan import reference as scan_reference
from .selective_scan import selective_scan
from .shapes import checked_shapes
from .short_conv import on_triton
from .split_conv import reference as split_reference
from .split_conv import split_conv


def _compose(
    split: Callable[..., tuple[Tensor, ...]], scan: Callable[..., Any], xz_BLE: Tensor, *parameters: Any
) -> Tensor:
    conv_DW, conv_bias_D, *rest = parameters
    x_BLD, z_BLD = split(xz_BLE, [len(conv_DW)] * 2, conv_DW, conv_bias_D, activation="silu")
    return _scanned(scan, x_BLD, z_BLD, *rest)


def _scanned(scan: Callable[..., Any], x_BLD: Tensor, z_BLD: Tensor | None, *parameters: Any) -> Tensor:
    """y of the convolved x, behind the gate if z is there."""
    x_weight_FD, dt_weight_DR, dt_bias_D, A_log_DN, D_D = parameters
    dt, B, C = F.linear(x_BLD, x_weight_FD).split([dt_weight_DR.shape[1], *[A_log_DN.shape[1]] * 2], -1)
    options = {"D_D": D_D, "z_BLD": z_BLD, "delta_bias_D": dt_bias_D, "delta_softplus": True}
    return cast(Tensor, scan(x_BLD, F.linear(dt, dt_weight_DR), negative_exp(A_log_DN), B, C, **options))


def _asked(
    split: Callable[..., tuple[Tensor, ...]],
    scan: Callable[..., Any],
    x_BLD: Tensor,
    z_BKD: Tensor,
    asked: Asked,
    *parameters: Any,
) -> Tensor:
    conv_DW, conv_bias_D, *rest = parameters

    def scanned(x_BLD: Tensor) -> Tensor:
        (x_BLD,) = split(x_BLD, [len(conv_DW)], conv_DW, conv_bias_D, activation="silu")
        return _scanned(scan, x_BLD, None, *rest)

    y_BLD = examples_apart(scanned, x_BLD, asked.packing)
    return (asked.rows(y_BLD) * F.silu(z_BKD)).to(z_BKD.dtype)


def reference(
    xz_BLE: Tensor,
    conv_DW: Tensor,
    conv_bias_D: Tensor | None,
    x_weight_FD: Tensor,
    dt_weight_DR: Tensor,
    dt_bias_D: Tensor,
    A_log_DN: Tensor,
    D_D: Tensor,
) -> Tensor:
    """`selective_ssm` in PyTorch: differentiable once, any device."""
    parameters = conv_DW, conv_bias_D, x_weight_FD, dt_weight_DR, dt_bias_D, A_log_DN, D_D
    return _compose(split_reference, scan_reference, xz_BLE, *parameters)


@checked_shapes({"E = 2 D": lambda E, D: E == 2 * D, "F = R + 2 N": lambda F, R, N: F == R + 2 * N})
def selective_ssm(
    xz_BLE: Tensor,
    conv_DW: Tensor,
    conv_bias_D: Tensor | None,
    x_weight_FD: Tensor,
    dt_weight_DR: Tensor,
    dt_bias_D: Tensor,
    A_log_DN: Tensor,
    D_D: Tensor,
    *,
    packing: Packing | None = None,
) -> Tensor:
    """xz (B,L,2 D), the convolution's weight and bias, W_x (R+2 N,D), W_dt (D,R) and its bias, A_log, D -> y (B,L,D).

    With `packing` xz and y are (1,T,...). Where its kernels do not take the inputs, those of `split_conv` and
    `selective_scan` do as far as they can, of examples apart.
    """
    parameters = conv_DW, conv_bias_D, x_weight_FD, dt_weight_DR, dt_bias_D, A_log_DN, D_D
    if on_triton(xz_BLE, conv_DW) and usable("selective_scan_triton", "selective_scan"):
        from . import selective_ssm_triton as fused

        if product_dtype(xz_BLE) in (None, xz_BLE.dtype) and fused.supported(xz_BLE, None, A_log_DN, *parameters):
            return fused.selective_ssm(xz_BLE, *parameters, packing=packing)
    return examples_apart(lambda xz: _compose(split_conv, selective_scan, xz, *parameters), xz_BLE, packing)


def asked_reference(x_BLD: Tensor, z_BKD: Tensor, asked: Asked, **parameters: Tensor | None) -> Tensor:
    """`selective_ssm_asked` in PyTorch: differentiable once, any device."""
    names = ["conv_DW", "conv_bias_D", "x_weight_FD", "dt_weight_DR", "dt_bias_D", "A_log_DN", "D_D"]
    return _asked(split_reference, scan_reference, x_BLD, z_BKD, asked, *(parameters[name] for name in names))


@checked_shapes(
    {
        "P is B, or 1 for packed examples": lambda P, B: P in (B, 1),
        "F = R + 2 N": lambda F, R, N: F == R + 2 * N,
    },
    x_BLD="PLD",
)
def selective_ssm_asked(
    x_BLD: Tensor,
    z_BKD: Tensor,
    asked: Asked,
    conv_DW: Tensor,
    conv_bias_D: Tensor | None,
    x_weight_FD: Tensor,
    dt_weight_DR: Tensor,
    dt_bias_D: Tensor,
    A_log_DN: Tensor,
    D_D: Tensor,
) -> Tensor:
    """As `selective_ssm`, from x (B,L,D), of packed examples (1,T,D), and z (B,K,D) of the asked tokens -> their y.

    The kernels read z and write y, and what the backward reads of them, as rows of those tokens: nothing else of the
    gate is in memory.
    """
    parameters = conv_DW, conv_bias_D, x_weight_FD, dt_weight_DR, dt_bias_D, A_log_DN, D_D
    if on_triton(x_BLD, conv_DW) and usable("selective_scan_triton", "selective_scan"):
        from . import selective_ssm_triton as fused

        if product_dtype(x_BLD) in (None, x_BLD.dtype) and fused.supported(x_BLD, z_BKD, A_log_DN, *parameters):
            return fused.selective_ssm_asked(x_BLD, z_BKD, asked.slots_BL, *parameters, packing=asked.packing)
    return _asked(split_conv, selective_scan, x_BLD, z_BKD, asked, *parameters)
