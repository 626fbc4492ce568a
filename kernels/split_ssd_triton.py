"""`split_ssd` on a GPU: the kernels of convolution and scan, with one backward, which fills the projection's gradient.

The walk back writes the gradients of z and dt into it and those of x, B and C side by side into the gradient of the
convolution's output; from there the convolution's backward takes them to their place.
"""

# mypy: allow-untyped-defs

import torch
from torch import Tensor

from .packing import Packing, starts_and_longest
from .short_conv_triton import convolution, launch_backward, parameter_gradients
from .split_conv import cut
from .split_ssd import heads_and_groups, part_widths
from .ssd_plan import dense_inputs, plan_of
from .ssd_triton import add_parameters, outputs_like, unsupported
from .ssd_walk import walk_back, walk_forward


def walks(
    p: Tensor, weight: Tensor, A: Tensor, D: Tensor, dt_bias: Tensor, head_dim: int, groups: int,
    packing: Packing | None = None,
) -> bool:  # fmt: skip
    """Whether the scan would be a walk."""
    widths = part_widths(weight, len(A), head_dim)
    inner = p[..., widths[0] : widths[0] + len(weight)]  # as the convolution leaves it
    z, x, B, C, dt = _parts(p, inner, weight, len(A), head_dim, groups)
    return unsupported(x, dt, A, B, C, D, dt_bias, z=z) is None and plan_of(x, B, packing).walks


def _parts(p: Tensor, convolved: Tensor, weight: Tensor, heads: int, head_dim: int, groups: int) -> tuple[Tensor, ...]:
    widths = part_widths(weight, heads, head_dim)
    return heads_and_groups(cut(p, convolved, widths, widths[0]), head_dim, groups)


@torch.library.custom_op("basedbench::split_ssd_backward", mutates_args=())
def backward(
    dy: Tensor,
    p: Tensor,
    convolved: Tensor,
    kept: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    A: Tensor,
    D: Tensor,
    dt_bias: Tensor,
    groups: int,
    starts: Tensor | None,
    longest: int,
) -> list[Tensor]:
    """Gradients of p, of the convolution's parameters in one, of A, D and the bias of dt.

    starts, longest: of a `Packing`, if p is one.
    """
    packing = None if starts is None else Packing(starts, longest, p.shape[1])
    grads = _gradients_like(dy, p, convolved, kept, weight, bias, A, D, dt_bias, groups, starts, longest)
    dp, d_conv, dA, dD, d_bias = grads
    d_convolved, sizes = convolved.new_empty(convolved.shape), (weight, len(A), dy.shape[-1], groups)
    z, x, B, C, dt = _parts(p, convolved, *sizes)
    dz, dx, dB, dC, ddt = _parts(dp, d_convolved, *sizes)
    inputs = dense_inputs(x, dt, A, B, C, D, z, dt_bias, None, packing)
    plan = inputs.plan
    partials = walk_back(inputs, plan, True, dy.contiguous(), kept, None, None, (dx, dz, ddt, dB, dC))
    add_parameters(inputs, plan, partials, dA, d_bias, dD)
    widths = part_widths(weight, len(A), dy.shape[-1])
    dp[..., sum(widths) :].zero_()
    inner = slice(widths[0], widths[0] + len(weight))
    into = dp[..., inner]
    d_conv = launch_backward([d_convolved], p[..., inner], None, weight, bias, None, None, True, into, into, packing)
    return [dp, d_conv, dA, dD, d_bias]


@backward.register_fake
def _gradients_like(dy, p, convolved, kept, weight, bias, A, D, dt_bias, groups, starts, longest):
    sums = weight.numel() + (0 if bias is None else len(bias))
    return [p.new_empty(p.shape), weight.new_empty(sums), *(part.new_empty(part.shape) for part in (A, D, dt_bias))]


class _SplitSSD(torch.autograd.Function):
    @staticmethod
    def forward(ctx, p, weight, bias, A, D, dt_bias, head_dim, groups, packing):
        start = len(A) * head_dim
        convolved = convolution(p[..., start : start + len(weight)], None, weight, bias, None, None, True, packing)
        z, x, B, C, dt = _parts(p, convolved, weight, len(A), head_dim, groups)
        y, kept, _ = outputs_like(x, B, z, True, False, packing)
        inputs = dense_inputs(x, dt, A, B, C, D, z, dt_bias, None, packing)
        walk_forward(inputs, inputs.plan, True, y, kept, None)
        ctx.save_for_backward(p, convolved, kept, weight, bias, A, D, dt_bias)
        ctx.groups, ctx.packing = groups, packing
        return y

    @staticmethod
    def backward(ctx, dy):
        _, _, _, weight, bias, *_ = ctx.saved_tensors
        dp, sums, dA, dD, d_dt_bias = backward(dy, *ctx.saved_tensors, ctx.groups, *starts_and_longest(ctx.packing))
        d_weight, d_bias, _ = parameter_gradients(sums, weight, bias)
        return dp, d_weight, d_bias, dA, dD, d_dt_bias, None, None, None


def split_ssd(
    p: Tensor, weight: Tensor, bias: Tensor | None, A: Tensor, D: Tensor, dt_bias: Tensor, head_dim: int, groups: int,
    packing: Packing | None = None,
) -> Tensor:  # fmt: skip
    """`split_ssd.reference` by the kernels, for inputs of which `walks` is true."""
    return _SplitSSD.apply(p, weight, bias, A, D, dt_bias, head_dim, groups, packing)
