"""`short_conv`, `gated_conv` and `conv_gate` in Triton, and the decode steps of the first and the last.

Tiles are tokens x channels over the flattened rows of (B, L): a tap reaches into the rows before, and stops at the
start of its own sequence. Every tap loads its tile anew; all but the first come from the cache. The backward needs the
gradient before the activation or the gate at the W - 1 tokens that follow: it computes it again for each tap rather
than pass it through memory. Its programs, fixed in number, walk over the tiles and each leave one row of partial
parameter gradients, which `sum_parts` adds.
"""

# mypy: allow-untyped-defs

import torch
import triton
import triton.language as tl
from torch import Tensor

from .ahead_triton import begin
from .ahead_triton import options as ahead_options
from .partial_sums_triton import sum_parts

CHANNELS = 64  # of a tile, at most
TILE, BACKWARD_TILE = 2048, 1024  # elements; backward, with eight warps, many values of each are alive at once
PROGRAMS = 512  # of the backward; fixed, so that the order of its sums is the same on every device


@triton.jit
def _weights(weight, channel, D: tl.constexpr, TAPS: tl.constexpr):
    """The weights of the current token and of those 1, 2 and 3 back; zeros where there are fewer taps."""
    inside = channel < D
    w = weight + channel * TAPS + TAPS - 1
    w0 = tl.load(w, mask=inside, other=0.0).to(tl.float32)
    w1 = tl.load(w - 1, mask=inside & (TAPS > 1), other=0.0).to(tl.float32)
    w2 = tl.load(w - 2, mask=inside & (TAPS > 2), other=0.0).to(tl.float32)
    w3 = tl.load(w - 3, mask=inside & (TAPS > 3), other=0.0).to(tl.float32)
    return w0, w1, w2, w3


@triton.jit
def _bias(bias, channel, D: tl.constexpr, GIVEN: tl.constexpr):
    if GIVEN:
        b = tl.load(bias + channel, mask=channel < D, other=0.0).to(tl.float32)
    else:
        b = tl.zeros(channel.shape, tl.float32)
    return b


@triton.jit
def _token(x, t, stride, inside, BACK: tl.constexpr):
    """The inputs `BACK` tokens before those at x, zeros before the start; t counts tokens within the sequence."""
    return tl.load(x - BACK * stride, mask=inside & (t >= BACK), other=0.0).to(tl.float32)


@triton.jit
def _convolve(x, t, stride, inside, w0, w1, w2, w3, b, TAPS: tl.constexpr):
    """The convolution that ends at x, before any activation."""
    y = b + w0 * _token(x, t, stride, inside, 0)
    if TAPS > 1:
        y += w1 * _token(x, t, stride, inside, 1)
    if TAPS > 2:
        y += w2 * _token(x, t, stride, inside, 2)
    if TAPS > 3:
        y += w3 * _token(x, t, stride, inside, 3)
    return y


@triton.jit
def conv_forward_kernel(
    x, gate, weight, bias, gate_bias, y, rows, length, stride, gate_stride,
    D: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr, TAPS: tl.constexpr, HAS_BIAS: tl.constexpr,
    SILU: tl.constexpr, GATED: tl.constexpr, RESIDUAL: tl.constexpr,
):  # fmt: skip
    """GATED: times gate; RESIDUAL: times gate + gate_bias, plus x."""
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS))[:, None]
    channel = (tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D))[None, :]
    inside = (row < rows) & (channel < D)
    at = row.to(tl.int64) * D + channel
    x += row.to(tl.int64) * stride + channel
    w0, w1, w2, w3 = _weights(weight, channel, D, TAPS)
    c = _convolve(x, row % length, stride, inside, w0, w1, w2, w3, _bias(bias, channel, D, HAS_BIAS), TAPS)
    if SILU:
        c = c * tl.sigmoid(c)
    if GATED:
        gate += row.to(tl.int64) * gate_stride + channel
        factor = tl.load(gate, mask=inside, other=0.0).to(tl.float32) + _bias(gate_bias, channel, D, RESIDUAL)
        c *= factor
    if RESIDUAL:
        c += tl.load(x, mask=inside, other=0.0).to(tl.float32)
    tl.store(y + at, c.to(y.dtype.element_ty), mask=inside)


@triton.jit
def _before(
    dy, x, gate, t, stride, inside, w0, w1, w2, w3, b, gb, TAPS: tl.constexpr, SILU: tl.constexpr, GATED: tl.constexpr
):
    """The gradient of the convolution itself, before activation or gate."""
    g = tl.load(dy, mask=inside, other=0.0).to(tl.float32)
    if GATED:
        g *= tl.load(gate, mask=inside, other=0.0).to(tl.float32) + gb
    if SILU:
        c = _convolve(x, t, stride, inside, w0, w1, w2, w3, b, TAPS)
        s = tl.sigmoid(c)
        g *= s * (1 + c * (1 - s))
    return g


@triton.jit
def conv_backward_kernel(
    dy, x, gate, weight, bias, gate_bias, dx, dgate, partials, rows, length, stride, width,
    D: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr, TAPS: tl.constexpr, HAS_BIAS: tl.constexpr,
    SILU: tl.constexpr, GATED: tl.constexpr,
):  # fmt: skip
    line = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    channel = line[None, :]
    w0, w1, w2, w3 = _weights(weight, channel, D, TAPS)
    b = _bias(bias, channel, D, HAS_BIAS)
    gb = _bias(gate_bias, channel, D, GATED)
    d0 = tl.zeros((ROWS, BLOCK_D), tl.float32)
    d1, d2, d3, d_bias, d_gate_bias = d0, d0, d0, d0, d0
    for tile in range(tl.program_id(0), tl.cdiv(rows, ROWS), tl.num_programs(0)):
        row = (tile * ROWS + tl.arange(0, ROWS))[:, None]
        t = row % length
        inside = (row < rows) & (channel < D)
        at = row.to(tl.int64) * D + channel
        x_at = x + row.to(tl.int64) * stride + channel
        g = _before(dy + at, x_at, gate + at, t, stride, inside, w0, w1, w2, w3, b, gb, TAPS, SILU, GATED)
        grad = w0 * g
        for ahead in tl.static_range(1, TAPS):
            later = inside & (t + ahead < length)
            w = w1 if ahead == 1 else (w2 if ahead == 2 else w3)
            grad += w * _before(
                dy + at + ahead * D, x_at + ahead * stride, gate + at + ahead * D, t + ahead, stride, later,
                w0, w1, w2, w3, b, gb, TAPS, SILU, GATED,
            )  # fmt: skip
        d0 += g * _token(x_at, t, stride, inside, 0)
        if TAPS > 1:
            d1 += g * _token(x_at, t, stride, inside, 1)
        if TAPS > 2:
            d2 += g * _token(x_at, t, stride, inside, 2)
        if TAPS > 3:
            d3 += g * _token(x_at, t, stride, inside, 3)
        if HAS_BIAS:
            d_bias += g
        if GATED:
            upper = tl.load(dy + at, mask=inside, other=0.0).to(tl.float32)
            grad += upper
            upper *= _convolve(x_at, t, stride, inside, w0, w1, w2, w3, b, TAPS)
            d_gate_bias += tl.where(inside, upper, 0.0)
            tl.store(dgate + at, upper.to(dgate.dtype.element_ty), mask=inside)
        tl.store(dx + at, grad.to(dx.dtype.element_ty), mask=inside)
    part = partials + tl.program_id(0) * width
    tap = part + line * TAPS + TAPS - 1
    tl.store(tap, tl.sum(d0, axis=0), mask=line < D)
    if TAPS > 1:
        tl.store(tap - 1, tl.sum(d1, axis=0), mask=line < D)
    if TAPS > 2:
        tl.store(tap - 2, tl.sum(d2, axis=0), mask=line < D)
    if TAPS > 3:
        tl.store(tap - 3, tl.sum(d3, axis=0), mask=line < D)
    if HAS_BIAS:
        tl.store(part + D * TAPS + line, tl.sum(d_bias, axis=0), mask=line < D)
    if GATED:
        tl.store(part + D * (TAPS + 1) + line, tl.sum(d_gate_bias, axis=0), mask=line < D)


@triton.jit
def conv_step_kernel(
    x, weight, bias, state, y, elements, stride, ahead, ahead_rows, ahead_pieces, ahead_bytes,
    D: tl.constexpr, BLOCK: tl.constexpr, TAPS: tl.constexpr, PAST: tl.constexpr, HAS_BIAS: tl.constexpr,
    SILU: tl.constexpr, GATED: tl.constexpr, AHEAD: tl.constexpr,
):  # fmt: skip
    """GATED: x holds D channels of the convolution, then D that its output is multiplied with.

    PAST is the number of past inputs, padded. All of a program's loads are on their way before its first store.
    """
    begin(ahead, ahead_rows, ahead_pieces, ahead_bytes, AHEAD)
    element = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside, channel = element < elements, element % D
    x += (element // D).to(tl.int64) * stride + channel
    token = tl.load(x, mask=inside, other=0.0)
    slot = state + element.to(tl.int64) * (TAPS - 1)
    c = token.to(tl.float32) * tl.load(weight + channel * TAPS + TAPS - 1, mask=inside, other=0.0).to(tl.float32)
    if TAPS > 1:
        tap = tl.arange(0, PAST)[None, :]
        kept = inside[:, None] & (tap < TAPS - 1)
        old = tl.load(slot[:, None] + tap, mask=kept, other=0.0)
        past = tl.load((weight + channel * TAPS)[:, None] + tap, mask=kept, other=0.0)
        c += tl.sum(old.to(tl.float32) * past.to(tl.float32), 1)
        tl.debug_barrier()  # a thread may write what another one reads: all have read by now
        tl.store(slot[:, None] + tap - 1, old, mask=kept & (tap > 0))
        tl.store(slot + TAPS - 2, token.to(state.dtype.element_ty), mask=inside)
    if HAS_BIAS:
        c += tl.load(bias + channel, mask=inside, other=0.0).to(tl.float32)
    if SILU:
        c = c * tl.sigmoid(c)
    if GATED:
        c *= tl.load(x + D, mask=inside, other=0.0).to(tl.float32)
    tl.store(y + element, c.to(y.dtype.element_ty), mask=inside)


def _rows(x: Tensor) -> tuple[Tensor, int]:
    """x with channels side by side and rows of (B, L) evenly apart (a chunk of a wider tensor is), and that stride."""
    _, length, _ = x.shape
    if x.stride(2) != 1 or x.stride(0) != length * x.stride(1):
        x = x.contiguous()
    return x, x.stride(1)


def _blocks(width: int, rows: int, tile: int) -> tuple[tuple[int, int], dict[str, int]]:
    """The grid, a program per tile, and the tiles' shape."""
    block = min(CHANNELS, triton.next_power_of_2(width))
    height = tile // block
    return (max(1, triton.cdiv(rows, height)), triton.cdiv(width, block)), {
        "D": width,
        "BLOCK_D": block,
        "ROWS": height,
    }


def _y(x: Tensor, gate: Tensor | None) -> Tensor:
    return x.new_empty(x.shape, dtype=x.dtype if gate is None else torch.promote_types(x.dtype, gate.dtype))


@torch.library.custom_op("basedbench::conv", mutates_args=())
def _conv(
    x: Tensor, gate: Tensor | None, weight: Tensor, bias: Tensor | None, gate_bias: Tensor | None, silu: bool
) -> Tensor:
    """The convolution of x, with SiLU, or times a gate plus x."""
    return _convolved(x, gate, weight, bias, gate_bias, silu)


def _convolved(
    x: Tensor, gate: Tensor | None, weight: Tensor, bias: Tensor | None, gate_bias: Tensor | None, silu: bool
) -> Tensor:
    """What the forward kernel makes of x; without `gate_bias` a gate is a factor alone."""
    y = _y(x, gate)
    x, stride = _rows(x)
    batch, length, width = x.shape
    if not y.numel():
        return y
    grid, tile = _blocks(width, batch * length, TILE)
    gate, gate_stride = (None, 0) if gate is None else _rows(gate)
    conv_forward_kernel[grid](
        x, gate, weight.contiguous(), bias, gate_bias, y, batch * length, length, stride, gate_stride,
        **tile, TAPS=weight.shape[1], HAS_BIAS=bias is not None, SILU=silu, GATED=gate is not None,
        RESIDUAL=gate_bias is not None,
    )  # fmt: skip
    return y


@_conv.register_fake
def _(
    x: Tensor, gate: Tensor | None, weight: Tensor, bias: Tensor | None, gate_bias: Tensor | None, silu: bool
) -> Tensor:
    return _y(x, gate)


@torch.library.custom_op("basedbench::conv_backward", mutates_args=())
def _conv_backward(
    dy: Tensor,
    x: Tensor,
    gate: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    gate_bias: Tensor | None,
    silu: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of x, of the gate (empty without one), and of the parameters: weight (D W), bias, gate's bias."""
    x, stride = _rows(x)
    batch, length, width = x.shape
    taps = weight.shape[1]
    dx, dgate, parameters = _input_gradients(x, gate, weight, bias)
    grid, tile = _blocks(width, batch * length, BACKWARD_TILE)
    programs = min(grid[0], PROGRAMS)
    partials = torch.empty((programs, len(parameters)), dtype=torch.float32, device=x.device)
    conv_backward_kernel[(programs, grid[1])](
        dy.contiguous(), x, x if gate is None else gate.contiguous(), weight.contiguous(), bias, gate_bias,
        dx, dgate, partials, batch * length, length, stride, len(parameters), **tile, TAPS=taps,
        HAS_BIAS=bias is not None, SILU=silu, GATED=gate is not None, num_warps=8,
    )  # fmt: skip
    return dx, dgate, sum_parts(partials, weight.dtype)


@_conv_backward.register_fake
def _(
    dy: Tensor,
    x: Tensor,
    gate: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    gate_bias: Tensor | None,
    silu: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    return _input_gradients(x, gate, weight, bias)


def _input_gradients(
    x: Tensor, gate: Tensor | None, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    width, taps = weight.shape
    sums = taps + (0 if bias is None else 1) + (0 if gate is None else 1)
    dgate = x.new_empty(0) if gate is None else gate.new_empty(gate.shape)
    return x.new_empty(x.shape), dgate, weight.new_empty(width * sums)


def _setup(ctx, inputs, output) -> None:
    *tensors, ctx.silu = inputs
    ctx.save_for_backward(*tensors)


def _gradients(ctx, dy: Tensor):
    x, gate, weight, bias, gate_bias = ctx.saved_tensors
    dx, dgate, parameters = _conv_backward(dy, x, gate, weight, bias, gate_bias, ctx.silu)
    width, taps = weight.shape
    d_weight = parameters[: width * taps].view(width, taps)
    d_bias = None if bias is None else parameters[width * taps : width * (taps + 1)]
    if gate is None:
        return dx, None, d_weight, d_bias, None, None
    return dx, dgate, d_weight, d_bias, parameters[width * (taps + 1) :], None


_conv.register_autograd(_gradients, setup_context=_setup)


@torch.library.custom_op("basedbench::conv_gate", mutates_args=())
def _conv_gate(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Half of x through the convolution and SiLU, times the other half. No gradient."""
    u, gate = x.chunk(2, dim=-1)
    return _convolved(u, gate, weight, bias, None, True)


@_conv_gate.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty((*x.shape[:-1], len(weight)))


@torch.library.custom_op("basedbench::conv_step", mutates_args=("state",))
def _conv_step(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    state: Tensor,
    silu: bool,
    gated: bool,
    ahead: Tensor | None = None,
) -> Tensor:
    """One token into the state, in place; its output. Gated: x holds the convolution's channels, then their gates."""
    if x.stride(1) != 1:
        x = x.contiguous()
    width, taps = weight.shape
    y = x.new_empty((len(x), width))
    past = triton.next_power_of_2(max(1, taps - 1))
    block = max(16, min(256, 1024 // past))
    conv_step_kernel[(triton.cdiv(y.numel(), block),)](
        x, weight.contiguous(), bias, state, y, y.numel(), x.stride(0),
        D=width, BLOCK=block, TAPS=taps, PAST=past, HAS_BIAS=bias is not None, SILU=silu, GATED=gated,
        **ahead_options(ahead),
    )  # fmt: skip
    return y


@_conv_step.register_fake
def _(x, weight, bias, state, silu, gated, ahead=None):
    return x.new_empty((len(x), len(weight)))


def short_conv(x_BLD: Tensor, weight_DW: Tensor, bias_D: Tensor | None, *, activation: str | None) -> Tensor:
    """`short_conv.reference` by the kernels above, without states."""
    return _conv(x_BLD, None, weight_DW, bias_D, None, activation == "silu")


def gated_conv(u_BLD: Tensor, gate_BLD: Tensor, weight_DW: Tensor, bias_D: Tensor, gate_bias_D: Tensor) -> Tensor:
    """`gated_conv.reference` by the kernels above."""
    return _conv(u_BLD, gate_BLD, weight_DW, bias_D, gate_bias_D, False)


def conv_gate(x_BLE: Tensor, weight_DW: Tensor, bias_D: Tensor | None) -> Tensor:
    """`conv_gate.reference` by the kernel above, without states and gradients."""
    y_BLD: Tensor = _conv_gate(x_BLE, weight_DW, bias_D)
    return y_BLD


def short_conv_step(
    x_BD: Tensor,
    weight_DW: Tensor,
    bias_D: Tensor | None,
    state_BDS: Tensor,
    *,
    activation: str | None,
    ahead: Tensor | None = None,
) -> Tensor:
    """`short_conv.reference_step` by the kernel above. `state_BDS` is contiguous."""
    return _conv_step(x_BD, weight_DW, bias_D, state_BDS, activation == "silu", False, ahead)


def conv_gate_step(
    x_BE: Tensor, weight_DW: Tensor, bias_D: Tensor | None, state_BDS: Tensor, ahead: Tensor | None = None
) -> Tensor:
    """`conv_gate.reference_step` by the kernel above. `state_BDS` is contiguous."""
    return _conv_step(x_BE, weight_DW, bias_D, state_BDS, True, True, ahead)
