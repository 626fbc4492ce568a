"""`selective_ssm` by the kernels of its parts with one backward: gradients written side by side, sums by products."""

# mypy: allow-untyped-defs

import torch
import torch.nn.functional as F
from torch import Tensor

from . import selective_scan_triton as scan
from . import short_conv_triton as conv
from .differentiated import differentiated, once_differentiable
from .narrow_gradients_triton import narrow_gradients
from .packing import Packing

ALIGNED = 8  # numbers of 16 bits that a product reads at once: rows of other widths take slower kernels


def widened(x_weight: Tensor, dt_weight: Tensor) -> tuple[Tensor, Tensor]:
    """W_x (R+2 N,D) and W_dt (D,R) with zeros for ranks that are missing to a multiple of ALIGNED."""
    rank = dt_weight.shape[1]
    missing = -rank % ALIGNED
    if not missing:
        return x_weight, dt_weight
    rows = x_weight[:rank], x_weight.new_zeros(missing, x_weight.shape[1]), x_weight[rank:]
    return torch.cat(rows), F.pad(dt_weight, (0, missing))


def narrowed(x_weight: Tensor, wide: int, rank: int) -> Tensor:
    """The gradient of W_x that `widened` was given, from that of the one it gave, with `wide` ranks."""
    return x_weight if wide == rank else torch.cat([x_weight[:rank], x_weight[wide:]])


class _SelectiveSSM(torch.autograd.Function):
    """Keeps what the parts would keep: xz, the convolution's output, dt, B and C, step sizes, states before tiles.

    With slots, xz is x alone, and z and y are rows of asked tokens.
    """

    @staticmethod
    def forward(ctx, keep, packing, xz, z, slots, conv_weight, conv_bias, x_weight, dt_weight, dt_bias, A_log, D):
        channels, states = A_log.shape
        ctx.packing = packing
        weights = widened(x_weight.to(xz.dtype), dt_weight.to(xz.dtype))
        rank = weights[1].shape[1]
        x = conv.convolution(xz[..., :channels], None, conv_weight, conv_bias, None, None, True, packing)
        projected = F.linear(x, weights[0])
        delta = F.linear(projected[..., :rank], weights[1])
        B, C = projected[..., rank:].split(states, -1)
        given = x, delta, A_log, B, C, D, xz[..., channels:] if z is None else z, dt_bias
        shape = x.shape if z is None else z.shape
        y, _, kept, open_y = found = scan.room(x, A_log, shape, gated=True, state=False, keep=keep)
        scan.forward_into(found, scan.inputs_of(*given, log_A=True, packing=packing), None, True, slots)
        parameters = *weights, dt_weight, dt_bias, D, conv_weight, conv_bias
        ctx.save_for_backward(xz, z, slots, x, projected, delta, kept, open_y, A_log, *parameters)
        ctx.x_weight_dtype = x_weight.dtype
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        xz, z, slots, x, projected, delta, kept, open_y, A_log, *parameters = ctx.saved_tensors
        x_weight, dt_weight, given_weight, dt_bias, D, weight, bias = parameters
        (channels, states), rank = A_log.shape, dt_weight.shape[1]
        B, C = projected[..., rank:].split(states, -1)
        like = xz, projected, x, delta, A_log, D, dt_bias
        dxz, dprojected, dx, ddelta, dA_log, dD, dbias = (tensor.new_empty(tensor.shape) for tensor in like)
        dB, dC = dprojected[..., rank:].split(states, -1)
        gate, dz = (xz[..., channels:], dxz[..., channels:]) if z is None else (z, torch.empty_like(z))
        found = dx, ddelta, dA_log, dB, dC, dD, dz, dbias, kept.new_empty(0)
        inputs = scan.inputs_of(x, delta, A_log, B, C, D, gate, dt_bias, log_A=True, packing=ctx.packing)
        scan.backward_into(found, dy if slots is None else dy.contiguous(), None, kept, open_y, inputs, True, slots)
        x, dx_rows, projected, dprojected, ddelta = (y.flatten(0, 1) for y in (x, dx, projected, dprojected, ddelta))
        ddt_weight, of_dt = None, dprojected[:, :rank]
        if ctx.needs_input_grad[8]:
            ddt_weight = narrow_gradients(ddelta, projected[:, :rank], dt_weight, of_dt, given_weight)
        else:
            torch.mm(ddelta, dt_weight, out=of_dt)
        dx_rows.addmm_(dprojected, x_weight)
        into = dxz[..., :channels]
        sums = conv.launch_backward(
            [dx], xz[..., :channels], None, weight, bias, None, None, True, into, into, ctx.packing
        )
        d_conv, d_conv_bias, _ = conv.parameter_gradients(sums, weight, bias)
        dx_weight = narrowed(dprojected.t() @ x, rank, given_weight.shape[1]).to(ctx.x_weight_dtype)
        d_gate = None if z is None else dz
        return None, None, dxz, d_gate, None, d_conv, d_conv_bias, dx_weight, ddt_weight, dbias, dA_log, dD


def supported(xz_BLE: Tensor, z_BKD: Tensor | None, A_log_DN: Tensor, *parameters: Tensor | None) -> bool:
    """Whether the kernels take these inputs: both halves, or x and rows of z."""
    halves = xz_BLE.shape[-1] == (2 if z_BKD is None else 1) * len(A_log_DN)
    rows = z_BKD is None or (z_BKD.dtype == xz_BLE.dtype and z_BKD.numel() > 0)
    return halves and rows and xz_BLE.is_contiguous() and scan.supported(xz_BLE, A_log_DN, *parameters)


def selective_ssm(xz_BLE: Tensor, *parameters: Tensor | None, packing: Packing | None = None) -> Tensor:
    """`selective_ssm.selective_ssm` by the kernels of its parts."""
    return _applied(packing, xz_BLE, None, None, *parameters)


def selective_ssm_asked(
    x_BLD: Tensor, z_BKD: Tensor, slots_BL: Tensor, *parameters: Tensor | None, packing: Packing | None = None
) -> Tensor:
    """`selective_ssm.selective_ssm_asked` by the kernels of its parts; slots as in `Asked`."""
    return _applied(packing, x_BLD, z_BKD.contiguous(), slots_BL.contiguous(), *parameters)


def _applied(packing: Packing | None, *tensors: Tensor | None) -> Tensor:
    keep = differentiated(*tensors)
    return _SelectiveSSM.apply(keep, packing, *tensors)
