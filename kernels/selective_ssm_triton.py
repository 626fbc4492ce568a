"""`selective_ssm` by the kernels of its parts with one backward: gradients written side by side, sums by products."""

# mypy: allow-untyped-defs

import torch
import torch.nn.functional as F
from torch import Tensor

from . import selective_scan_triton as scan
from . import short_conv_triton as conv
from .precision import negative_exp


class _SelectiveSSM(torch.autograd.Function):
    """Keeps what the parts would keep: xz, the convolution's output, dt, B and C, step sizes, states before tiles."""

    @staticmethod
    def forward(ctx, keep, xz, conv_weight, conv_bias, x_weight, dt_weight, dt_bias, A_log, D):
        channels, states = A_log.shape
        rank = dt_weight.shape[1]
        weights = x_weight.to(xz.dtype), dt_weight.to(xz.dtype)
        x = conv.convolution(xz[..., :channels], None, conv_weight, conv_bias, None, None, True)
        projected = F.linear(x, weights[0])
        delta = F.linear(projected[..., :rank], weights[1])
        B, C = projected[..., rank:].split(states, -1)
        A = negative_exp(A_log)
        y, _, kept = scan.forward_operator(x, delta, A, B, C, D, xz[..., channels:], dt_bias, None, True, False, keep)
        ctx.save_for_backward(xz, x, projected, delta, kept, A, *weights, conv_weight, conv_bias, dt_bias, D)
        ctx.dtypes = x_weight.dtype, dt_weight.dtype, A_log.dtype
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dy):
        xz, x, projected, delta, kept, A, x_weight, dt_weight, conv_weight, conv_bias, dt_bias, D = ctx.saved_tensors
        (channels, states), rank = A.shape, dt_weight.shape[1]
        B, C = projected[..., rank:].split(states, -1)
        dxz, dprojected, dx, ddelta = (torch.empty_like(tensor) for tensor in (xz, projected, x, delta))
        dA, dD, dbias = (torch.empty_like(tensor) for tensor in (A, D, dt_bias))
        dB, dC = dprojected[..., rank:].split(states, -1)
        found = dx, ddelta, dA, dB, dC, dD, dxz[..., channels:], dbias, kept.new_empty(0)
        inputs = scan.inputs_of(x, delta, A, B, C, D, xz[..., channels:], dt_bias)
        scan.backward_into(found, dy, None, kept, inputs, True)
        rows = dprojected.flatten(0, 1)
        torch.mm(ddelta.flatten(0, 1), dt_weight, out=rows[:, :rank])
        d_dt_weight = ddelta.flatten(0, 1).t() @ projected.flatten(0, 1)[:, :rank]
        dx.flatten(0, 1).addmm_(rows, x_weight)
        into = dxz[..., :channels]
        sums = conv.launch_backward(
            [dx], xz[..., :channels], None, conv_weight, conv_bias, None, None, True, into, into
        )
        d_conv, d_conv_bias, _ = conv.parameter_gradients(sums, conv_weight, conv_bias)
        weights = rows.t() @ x.flatten(0, 1), d_dt_weight, dA * A
        dx_weight, d_dt_weight, dA_log = (w.to(dtype) for w, dtype in zip(weights, ctx.dtypes, strict=True))
        return None, dxz, d_conv, d_conv_bias, dx_weight, d_dt_weight, dbias, dA_log, dD


def supported(xz_BLE: Tensor, A_log_DN: Tensor, *parameters: Tensor | None) -> bool:
    """Whether the kernels take these inputs."""
    halves = xz_BLE.is_contiguous() and xz_BLE.shape[-1] == 2 * len(A_log_DN)
    return halves and scan.supported(xz_BLE, A_log_DN, *parameters)


def selective_ssm(*tensors: Tensor | None) -> Tensor:
    """`selective_ssm.reference` by the kernels of its parts."""
    keep = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)
    return _SelectiveSSM.apply(keep, *tensors)
