"""`base_conv` by the kernels of `gated_conv` with one backward."""

# mypy: allow-untyped-defs

import torch
import torch.nn.functional as F
from torch import Tensor

from . import short_conv_triton as conv
from .differentiated import once_differentiable
from .packing import Packing


class _BaseConv(torch.autograd.Function):
    """Keeps u and the gate."""

    @staticmethod
    def forward(ctx, u, gate_weight, gate_bias, weight, bias, packing):
        product_weight = gate_weight.to(u.dtype)
        gate = F.linear(u, product_weight)
        ctx.save_for_backward(u, gate, product_weight, gate_bias, weight, bias)
        ctx.dtype, ctx.packing = gate_weight.dtype, packing
        return conv.convolution(u, gate, weight, bias, gate_bias, None, False, packing)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        u, gate, product_weight, gate_bias, weight, bias = ctx.saved_tensors
        du, dgate = u.new_empty(u.shape), gate.new_empty(gate.shape)
        sums = conv.launch_backward([dy], u, gate, weight, bias, gate_bias, None, False, du, dgate, ctx.packing)
        d_weight, d_bias, d_gate_bias = conv.parameter_gradients(sums, weight, bias, gate_bias)
        rows, dgate_rows = u.flatten(0, 1), dgate.flatten(0, 1)
        du.flatten(0, 1).addmm_(dgate_rows, product_weight)
        return du, (dgate_rows.t() @ rows).to(ctx.dtype), d_gate_bias, d_weight, d_bias, None


def base_conv(
    u_BLD: Tensor, gate_weight_DD: Tensor, gate_bias_D: Tensor, weight_DW: Tensor, bias_D: Tensor,
    packing: Packing | None = None,
) -> Tensor:  # fmt: skip
    """`base_conv.reference` by the kernels of `gated_conv`."""
    if not u_BLD.numel():
        return conv.gated_conv(u_BLD, F.linear(u_BLD, gate_weight_DD), weight_DW, bias_D, gate_bias_D)
    return _BaseConv.apply(u_BLD, gate_weight_DD, gate_bias_D, weight_DW, bias_D, packing)
