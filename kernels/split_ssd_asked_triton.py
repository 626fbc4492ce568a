"""`split_ssd_asked` on a GPU: convolution, attention at the asked tokens, and one backward for both.

The gradients of x, B and C lie side by side, as the convolution's backward reads them; those of dt go straight into the
projection's gradient, into which that backward writes the rest.
"""

# mypy: allow-untyped-defs

from typing import Any

import torch
import triton
from torch import Tensor

from .asked import Asked
from .dense_rows import dense_rows
from .differentiated import differentiated
from .packing import Packing, length_of, starts_and_longest, starts_of
from .short_conv_triton import convolution, launch_backward, parameter_gradients
from .split_conv import cut
from .split_ssd import heads_and_groups
from .split_ssd_asked import asked_widths
from .ssd_asked_backward_triton import asked_gate_kernel, asked_gradient_kernel, asked_steps_gradient_kernel
from .ssd_asked_triton import asked_output_kernel, asked_steps_kernel
from .ssd_backward_triton import parameter_kernel
from .ssd_plan import batch_and_row, padded, precision_of
from .ssd_triton import unsupported as not_by_ssd

QUERIES = 64  # of a program, at most; the gradients take all of an example in one
WIDEST_STATES = 64
TILE, NARROW_TILE = 64, 32  # keys of a tile; of float32, whose operands are larger, half as many
STAGES, FEWER_STAGES = 3, 2  # in which operands of bfloat16 are loaded, and others
HEADS = 16  # whose steps a program adds up side by side, at most
# By padded queries: warps, and registers if fewer than there are, of the program that attends; keys of the one that
# makes gradients of them, and its warps. Measured (docs/log/ssd.md).
ATTENDING = {16: (1, None), 32: (2, None), 64: (4, 168)}
GRADIENTS = {16: (32, 1), 32: (32, 2), 64: (64, 4)}


def unsupported(
    z: Tensor,
    p: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    A: Tensor,
    D: Tensor,
    dt_bias: Tensor,
    head_dim: int,
    groups: int,
) -> str | None:
    """Why the kernels do not take these inputs, or None if they do."""
    if z.dtype != p.dtype or not z.numel():
        return "z and p must share a dtype, and somebody must ask"
    x, B, C, dt = heads_and_groups(cut(p, p, asked_widths(weight, len(A), head_dim), 0), head_dim, groups)
    if padded(B.shape[-1]) > WIDEST_STATES:
        return f"states must be at most {WIDEST_STATES}"
    if z.shape[1] > QUERIES and differentiated(z, p, weight, bias, A, D, dt_bias):
        return f"gradients take at most {QUERIES} asked tokens"
    return not_by_ssd(x, dt, A, B, C, D, dt_bias)


def _sizes(
    z: Tensor, p: Tensor, weight: Tensor, A: Tensor, groups: int, packing: Packing | None
) -> tuple[dict[str, Any], tuple[int, ...], int]:
    """What kernels are specialised by, their numbers, and the tiles of a sequence, or of the longest."""
    heads, length = len(A), length_of(p, packing)
    head_dim = z.shape[-1] // heads
    states = (len(weight) - z.shape[-1]) // (2 * groups)
    tile = TILE if precision_of(p.dtype) == "bf16" else NARROW_TILE
    shape = {
        "P": head_dim,
        "N": states,
        "BP": padded(head_dim),
        "BN": padded(states),
        "T": tile,
        "Q": min(QUERIES, padded(z.shape[1])),
        "PACKED": packing is not None,
    }
    return shape, (length, z.shape[1], heads, heads // groups, groups), triton.cdiv(length, tile)


def _matrix(shape: dict[str, Any], p: Tensor, warps: int) -> dict[str, Any]:
    """What kernels with products are specialised by besides."""
    precision = precision_of(p.dtype)
    return {
        **shape,
        "EVEN": not shape["PACKED"] and p.shape[1] % shape["T"] == 0,
        "PRECISION": precision,
        "num_stages": STAGES if precision == "bf16" else FEWER_STAGES,
        "num_warps": warps,
    }


def _attending(queries: int, precision: str) -> tuple[int, int | None]:
    """Warps and registers; operands that are no bfloat16 are split, and take more of both."""
    return ATTENDING[queries] if precision == "bf16" else (4, None)


def _gradients(queries: int, tile: int) -> tuple[int, int]:
    """Keys of a program and warps."""
    return GRADIENTS[queries] if tile == TILE else (tile, 4)


def _attend(
    z: Tensor,
    p: Tensor,
    convolved: Tensor,
    positions: Tensor,
    weight: Tensor,
    A: Tensor,
    D: Tensor,
    dt_bias: Tensor,
    groups: int,
    keep: bool,
    packing: Packing | None,
) -> tuple[Tensor, ...]:
    """y (B,K,H,P); step sizes and sums of dt A within tiles (2,B,H,L).

    With `keep` also y before the gate and what queries have behind each tile (B,H,tiles,K).
    """
    shape, numbers, tiles = _sizes(z, p, weight, A, groups, packing)
    (batch, asked, _), heads, starts = z.shape, len(A), starts_of(packing)
    dt = p[..., len(weight) :]
    y = z.new_empty((batch, asked, heads, shape["P"]))
    ungated = y.new_empty(y.shape if keep else (0,))
    kept = y.new_empty((batch, heads, tiles, asked) if keep else (0,), dtype=torch.float32)
    steps = torch.empty((2, batch, heads, numbers[0]), dtype=torch.float32, device=p.device)
    block = min(HEADS, triton.next_power_of_2(heads))
    asked_steps_kernel[(batch * tiles, triton.cdiv(heads, block))](
        dt, A, dt_bias, starts, *steps, *batch_and_row(dt, packing), numbers[0], heads,
        T=shape["T"], BH=block, PACKED=shape["PACKED"], num_warps=2,
    )  # fmt: skip
    warps, registers = _attending(shape["Q"], precision_of(p.dtype))
    asked_output_kernel[(batch * heads * triton.cdiv(asked, shape["Q"]),)](
        convolved, D, z, positions, starts, *steps, y, ungated, kept, convolved.shape[-1], *numbers,
        **_matrix(shape, p, warps), KEEP=keep, maxnreg=registers,
    )  # fmt: skip
    return y, steps, ungated, kept


@torch.library.custom_op("basedbench::split_ssd_asked_backward", mutates_args=())
def backward(
    dy: Tensor,
    z: Tensor,
    p: Tensor,
    convolved: Tensor,
    steps: Tensor,
    ungated: Tensor,
    kept: Tensor,
    positions: Tensor,
    slots: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    A: Tensor,
    D: Tensor,
    dt_bias: Tensor,
    groups: int,
    starts: Tensor | None,
    longest: int,
) -> list[Tensor]:
    """Gradients of z, p, of the convolution's parameters in one, of A, D and the bias of dt.

    starts, longest: of a `Packing`, if p is one.
    """
    dz, dp, dA, dD, d_bias = (part.new_empty(part.shape) for part in (z, p, A, D, dt_bias))
    packing = None if starts is None else Packing(starts, longest, p.shape[1])
    shape, numbers, tiles = _sizes(z, p, weight, A, groups, packing)
    (batch, asked, _), heads, width = z.shape, len(A), convolved.shape[-1]
    starts = starts_of(packing)
    dy, slots, dt, d_convolved = (
        dy.contiguous(),
        slots.contiguous(),
        p[..., width:],
        convolved.new_empty(convolved.shape),
    )
    inner = torch.empty(z.shape, dtype=torch.bfloat16 if p.dtype == torch.bfloat16 else torch.float32, device=z.device)
    own, partials = kept.new_empty((batch, heads, asked)), kept.new_empty((batch * tiles, 3, heads))
    asked_gate_kernel[(batch * heads,)](
        convolved, z, dy, ungated, positions, starts, dz, inner, own, partials, width, *numbers,
        **shape, num_warps=shape["Q"] // 16,
    )  # fmt: skip
    keys, warps = _gradients(shape["Q"], shape["T"])
    parts = tiles * (shape["T"] // keys)
    dC_parts = kept.new_empty((batch, parts, groups, asked, shape["N"]))
    pair_sums = kept.new_empty((batch, heads, parts, asked))
    token_sums = kept.new_empty((batch, heads, numbers[0]))
    asked_gradient_kernel[(batch * parts * groups,)](
        convolved, D, inner, positions, starts, *steps, kept, d_convolved, dC_parts, pair_sums, token_sums,
        width, *numbers, **_matrix(shape, p, warps), S=keys,
    )  # fmt: skip
    more = p.shape[-1] - width - heads
    asked_steps_gradient_kernel[(batch * tiles * (heads + groups),)](
        dt, A, dt_bias, steps[0], own, positions, starts, slots, dC_parts, pair_sums, token_sums,
        d_convolved, dp[..., width:], partials, width, *batch_and_row(dt, packing), dp.stride(1), *numbers,
        **{name: shape[name] for name in ("P", "N", "BN", "T", "Q", "PACKED")},
        S=keys, MORE=more, BM=triton.next_power_of_2(max(1, more)), num_warps=1,
    )  # fmt: skip
    parameter_kernel[(heads, 3)](
        partials, dA, d_bias, dD, len(partials), heads, HAS_BIAS=True, HAS_D=True, ROWS=1024, BLOCK=1, num_warps=8
    )
    into = dp[..., :width]
    d_conv = launch_backward([d_convolved], p[..., :width], None, weight, bias, None, None, True, into, into, packing)
    return [dz, dp, d_conv, dA, dD, d_bias]


@backward.register_fake
def _(
    dy, z, p, convolved, steps, ungated, kept, positions, slots, weight, bias, A, D, dt_bias, groups, starts, longest
):  # fmt: skip
    sums = weight.numel() + (0 if bias is None else len(bias))
    rates = (part.new_empty(part.shape) for part in (A, D, dt_bias))
    return [z.new_empty(z.shape), p.new_empty(p.shape), weight.new_empty(sums), *rates]


class _SplitSSDAsked(torch.autograd.Function):
    @staticmethod
    def forward(ctx, z, p, positions, slots, weight, bias, A, D, dt_bias, groups, keep, packing):
        z, positions, A, D, dt_bias = (one.contiguous() for one in (z, positions, A, D, dt_bias))
        convolved = convolution(p[..., : len(weight)], None, weight, bias, None, None, True, packing)
        y, *kept = _attend(z, p, convolved, positions, weight, A, D, dt_bias, groups, keep, packing)
        ctx.save_for_backward(z, p, convolved, *kept, positions, slots, weight, bias, A, D, dt_bias)
        ctx.groups, ctx.packing = groups, packing
        return y

    @staticmethod
    def backward(ctx, dy):
        saved = ctx.saved_tensors
        weight, bias = saved[8:10]
        dz, dp, sums, dA, dD, d_dt_bias = backward(dy, *saved, ctx.groups, *starts_and_longest(ctx.packing))
        d_weight, d_bias, _ = parameter_gradients(sums, weight, bias)
        return dz, dp, None, None, d_weight, d_bias, dA, dD, d_dt_bias, None, None, None


def split_ssd_asked(
    z: Tensor,
    p: Tensor,
    asked: Asked,
    weight: Tensor,
    bias: Tensor | None,
    A: Tensor,
    D: Tensor,
    dt_bias: Tensor,
    head_dim: int,
    groups: int,
) -> Tensor:
    """`split_ssd_asked.reference` by the kernels, for inputs that `unsupported` has no reason against."""
    keep = differentiated(z, p, weight, bias, A, D, dt_bias)
    return _SplitSSDAsked.apply(
        z, dense_rows(p), asked.positions_BK, asked.slots_BL, weight, bias, A, D, dt_bias, groups, keep, asked.packing
    )
