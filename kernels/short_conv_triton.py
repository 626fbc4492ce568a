"""`short_conv` and its decode step, `gated_conv`, `conv_gate` and `split_conv` in Triton: the torch operators.

The kernels walk through time with the last inputs in registers (`short_conv_tiles_triton`). A sequence is cut into
segments, longer ones where enough threads are left: each loads the few tokens before it again, and the backward those
behind it. Inputs, gates and the gradient of the input may be slices of wider tensors. The backward's programs, fixed in
number, each leave one row of partial parameter gradients, which `sum_parts` adds.
"""

# mypy: allow-untyped-defs

import math
from itertools import accumulate

import torch
import triton
import triton.language as tl
from torch import Tensor

from .company import most_programs
from .dense_rows import dense_rows, either
from .dependents import dependent
from .packing import Packing, starts_of
from .partial_sums_triton import sum_parts
from .short_conv_backward_triton import conv_backward_kernel, paste_kernel
from .short_conv_forward_triton import conv_forward_kernel, conv_step_kernel
from .short_conv_step_triton import conv_words_kernel
from .split_conv import cut

CHANNELS = 64  # of a tile, at most
WARPS, VECTOR = 4, 4  # of a program; channels of a thread, more would leave room for few of them
SHORTEST, LONGEST, LONGEST_BACKWARD = 8, 16, 64  # tokens of a segment
THREADS, THREADS_BACKWARD = 1 << 16, 1 << 15  # wanted; with fewer, memory waits
PROGRAMS = 512  # of the backward; fixed, so that the order of its sums is the same on every device
PASTED, PASTED_CHANNELS = 2048, 64  # elements of a tile that is only copied
# Groups of tokens on their way to shared memory while one is computed, and the most registers of a thread then: four
# programs a multiprocessor. Not with gates, float32 or rows in small pieces, which take more registers.
AHEAD, REGISTERS = 3, 128
WORD_PAIRS, WORD_ROWS = 64, 8  # of a program of the step by words
WORDS = {torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}
STEP_CHANNELS, STEP_ROWS = 128, 4  # of a program of the decode step: a thread a channel


def _strides(*tensors: Tensor) -> tuple[list[int], int]:
    """Those between sequences and tokens of each tensor, in units: the largest power of two, up to 16, in all of them.

    Triton knows of an integer whether 16 divides it; 8 is enough for loads of 16 bytes.
    """
    strides = [stride for x in tensors for stride in x.stride()[:2]]
    unit = math.gcd(16, *strides)
    return [stride // unit for stride in strides], unit


def _tiles(
    shape: torch.Size, packing: Packing | None, threads: int = THREADS, longest: int = LONGEST
) -> tuple[tuple[int, int], dict[str, int], tuple[int, int, int]]:
    """Tiles and blocks of channels, a program each; the tiles' shape; and segments, length, segments of a sequence.

    With `packing` the number of examples stands in the place of the last.
    """
    batch, length, width = shape if packing is None else (packing.batch, packing.longest, shape[-1])
    narrow = width % CHANNELS and width < 8 * CHANNELS
    block = min(CHANNELS // 2 if narrow else CHANNELS, triton.next_power_of_2(width))
    blocks = triton.cdiv(width, block)
    steps = max(4, min(longest, triton.next_power_of_2(length)))
    while steps > SHORTEST and batch * length * blocks * block < threads * VECTOR * steps:
        steps //= 2
    height, per_sequence = 32 * WARPS * VECTOR // block, triton.cdiv(length, steps)
    segments = batch * per_sequence
    tile = {"D": width, "BLOCK_D": block, "ROWS": height, "STEPS": steps, "num_warps": WARPS}
    last = per_sequence if packing is None else batch
    return (triton.cdiv(segments, height), blocks), tile, (segments, length, last)


def _ahead(x: Tensor, gate: Tensor | None, unit: int) -> dict[str, int]:
    """How far a program loads ahead."""
    small = gate is None and x.element_size() == 2 and unit == 16
    return {"AHEAD": AHEAD, "maxnreg": REGISTERS} if small else {"AHEAD": 1}


def _before(state: Tensor | None, x: Tensor) -> Tensor:
    """The inputs before the first; x, which may be a slice that nobody should copy, where there are none."""
    return x if state is None else state.contiguous()


def _y(x: Tensor, gate: Tensor | None) -> Tensor:
    return x.new_empty(x.shape, dtype=x.dtype if gate is None else torch.promote_types(x.dtype, gate.dtype))


@torch.library.custom_op("basedbench::conv", mutates_args=())
def _convolution(
    x: Tensor, gate: Tensor | None, weight: Tensor, bias: Tensor | None, gate_bias: Tensor | None,
    state: Tensor | None, silu: bool,
) -> Tensor:  # fmt: skip
    return _launch_forward(x, gate, weight, bias, gate_bias, state, silu, None)


def convolution(
    x: Tensor,
    gate: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    gate_bias: Tensor | None,
    state: Tensor | None,
    silu: bool,
    packing: Packing | None = None,
) -> Tensor:
    """The convolution of x, with SiLU, times a gate; with the gate's bias, plus x. `state` has no gradient.

    With `packing` x is (1,T,D), and there are neither a state nor gradients, for operators that call `launch_backward`.
    """
    if packing is None:
        return _convolution(x, gate, weight, bias, gate_bias, state, silu)
    return _launch_forward(x, gate, weight, bias, gate_bias, state, silu, packing)


def _launch_forward(
    x: Tensor, gate: Tensor | None, weight: Tensor, bias: Tensor | None, gate_bias: Tensor | None,
    state: Tensor | None, silu: bool, packing: Packing | None,
) -> Tensor:  # fmt: skip
    y = _y(x, gate)
    if not y.numel():
        return y
    x, gate, bias, gate_bias = dense_rows(x), dense_rows(gate), dense_rows(bias), dense_rows(gate_bias)
    grid, tile, sizes = _tiles(x.shape, packing)
    strides, unit = _strides(x, either(gate, x))
    conv_forward_kernel[(math.prod(grid),)](
        x, either(gate, x), weight.contiguous(), bias, gate_bias, _before(state, x),
        starts_of(packing), y, *sizes, *strides, **tile, UNIT=unit, TAPS=weight.shape[1],
        HAS_BIAS=bias is not None, HAS_STATE=state is not None, SILU=silu, GATED=gate is not None,
        RESIDUAL=gate_bias is not None, PACKED=packing is not None, **_ahead(x, gate, unit),
    )  # fmt: skip
    return y


@_convolution.register_fake
def _(x, gate, weight, bias, gate_bias, state, silu):
    return _y(x, gate)


def _sums(weight: Tensor, bias: Tensor | None, gate_bias: Tensor | None) -> int:
    """How many sums the parameters' gradients are: weight (D W), bias, gate's bias."""
    return weight.numel() + sum(len(part) for part in (bias, gate_bias) if part is not None)


def launch_backward(
    dy: list[Tensor],
    x: Tensor,
    gate: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    gate_bias: Tensor | None,
    state: Tensor | None,
    silu: bool,
    dx: Tensor,
    dgate: Tensor,
    packing: Packing | None = None,
) -> Tensor:
    """Writes dx and dgate, returns the parameters' gradients. dy: tensors that side by side are the gradient of y.

    `packing` as in `convolution`.
    """
    x, gate, dy = dense_rows(x), dense_rows(gate), [dense_rows(part) for part in dy]
    bias, gate_bias = dense_rows(bias), dense_rows(gate_bias)
    grid, tile, sizes = _tiles(x.shape, packing, THREADS_BACKWARD, LONGEST_BACKWARD)
    programs, width = min(grid[0], most_programs(PROGRAMS, x.shape[0] * x.shape[1])), _sums(weight, bias, gate_bias)
    partials = torch.empty((programs, width), dtype=torch.float32, device=x.device)
    strides, unit = _strides(x, either(gate, x), dx, dx if gate is None else dgate)
    conv_backward_kernel[(programs * grid[1],)](
        tuple(dy), tuple(_starts(dy)), tuple(part.stride(0) for part in dy), tuple(part.stride(1) for part in dy),
        x, either(gate, x), weight.contiguous(), bias, gate_bias, _before(state, x),
        starts_of(packing), dx, dgate, partials, *sizes, *strides, width, **tile, UNIT=unit,
        TAPS=weight.shape[1], HAS_BIAS=bias is not None, HAS_STATE=state is not None, SILU=silu,
        GATED=gate is not None, RESIDUAL=gate_bias is not None, PIECES=len(dy), PACKED=packing is not None,
        **_ahead(x, gate, min(unit, _strides(*dy)[1])),
    )  # fmt: skip
    return sum_parts(partials, weight.dtype, (weight, bias, gate_bias))


@torch.library.custom_op("basedbench::conv_backward", mutates_args=())
def _conv_backward(
    dy: Tensor,
    x: Tensor,
    gate: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    gate_bias: Tensor | None,
    state: Tensor | None,
    silu: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of x, of the gate (empty without one), and of the parameters: weight (D W), bias, gate's bias."""
    dx, dgate, parameters = _input_gradients(x, gate, weight, bias, gate_bias)
    if x.numel():
        parameters = launch_backward([dy], x, gate, weight, bias, gate_bias, state, silu, dx, dgate)
    return dx, dgate, parameters if x.numel() else parameters.zero_()


@_conv_backward.register_fake
def _(dy, x, gate, weight, bias, gate_bias, state, silu):
    return _input_gradients(x, gate, weight, bias, gate_bias)


def _input_gradients(
    x: Tensor, gate: Tensor | None, weight: Tensor, bias: Tensor | None, gate_bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    dgate = x.new_empty(0) if gate is None else gate.new_empty(gate.shape)
    return x.new_empty(x.shape), dgate, weight.new_empty(_sums(weight, bias, gate_bias))


def _setup(ctx, inputs, output) -> None:
    *tensors, ctx.silu = inputs
    ctx.save_for_backward(*tensors)


def parameter_gradients(
    sums: Tensor, weight: Tensor, bias: Tensor | None, gate_bias: Tensor | None = None
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Of weight, bias and the gate's bias."""
    width, count = len(weight), weight.numel()
    d_bias = None if bias is None else sums[count : count + width]
    return sums[:count].view_as(weight), d_bias, None if gate_bias is None else sums[-width:]


def _gradients(ctx, dy: Tensor):
    x, gate, weight, bias, gate_bias, state = ctx.saved_tensors
    dx, dgate, sums = _conv_backward(dy, x, gate, weight, bias, gate_bias, state, ctx.silu)
    parameters = parameter_gradients(sums, weight, bias, gate_bias)
    return dx, None if gate is None else dgate, *parameters, None, None


_convolution.register_autograd(_gradients, setup_context=_setup)


@torch.library.custom_op("basedbench::split_conv_backward", mutates_args=())
def _split_backward(
    dy: list[Tensor], x: Tensor, weight: Tensor, bias: Tensor | None, start: int, silu: bool
) -> tuple[Tensor, Tensor]:
    """The gradients of x and of the parameters. dy: of all parts."""
    dx, inner = x.new_empty(x.shape), slice(start, start + len(weight))
    places = dict(zip(_starts(dy), dy, strict=True))
    convolved = [part for at, part in places.items() if inner.start <= at < inner.stop]
    _paste({at: part for at, part in places.items() if not inner.start <= at < inner.stop}, dx)
    dx[..., sum(part.shape[-1] for part in dy) :].zero_()
    into = dx[..., inner]
    return dx, launch_backward(convolved, x[..., inner], None, weight, bias, None, None, silu, into, into)


def _starts(parts: list[Tensor]) -> list[int]:
    """Where each part begins if they lie side by side."""
    return list(accumulate((part.shape[-1] for part in parts[:-1]), initial=0))


def _paste(parts: dict[int, Tensor], out: Tensor) -> None:
    """Copy parts, by their first channel, into out (B,L,E)."""
    tensors = tuple(dense_rows(part) for part in parts.values())
    batch, length, _ = out.shape
    strides, unit = _strides(out)
    rows = PASTED // PASTED_CHANNELS
    if tensors:
        paste_kernel[(triton.cdiv(batch * length, rows),)](
            tensors, tuple(parts), tuple(part.shape[2] for part in tensors), tuple(part.stride(0) for part in tensors),
            tuple(part.stride(1) for part in tensors), out, batch * length, length, *strides, UNIT=unit,
            PARTS=len(tensors), ROWS=rows, BLOCK=PASTED_CHANNELS,
        )  # fmt: skip


@_split_backward.register_fake
def _(dy, x, weight, bias, start, silu):
    return x.new_empty(x.shape), weight.new_empty(_sums(weight, bias, None))


class _SplitConv(torch.autograd.Function):
    """`convolution` between two cuts, with a backward of its own."""

    @staticmethod
    def forward(ctx, x, widths, weight, bias, start, silu):
        ctx.save_for_backward(x, weight, bias)
        ctx.start, ctx.silu = start, silu
        y = convolution(x[..., start : start + len(weight)], None, weight, bias, None, None, silu)
        return cut(x, y, widths, start)

    @staticmethod
    def backward(ctx, *dy):
        x, weight, bias = ctx.saved_tensors
        dx, sums = _split_backward(list(dy), x, weight, bias, ctx.start, ctx.silu)
        d_weight, d_bias, _ = parameter_gradients(sums, weight, bias)
        return dx, None, d_weight, d_bias, None, None


@torch.library.custom_op("basedbench::conv_step", mutates_args=("state",))
def _conv_step(x: Tensor, weight: Tensor, bias: Tensor | None, state: Tensor, silu: bool, gated: bool) -> Tensor:
    """One token into the state, in place; its output. Gated: x holds the convolution's channels, then their gates."""
    x, bias = dense_rows(x), dense_rows(bias)
    width, taps = weight.shape
    y = x.new_empty((len(x), width))
    if not y.numel():
        return y
    if _by_words(x, weight, bias, state, y):
        return _step_by_words(x, weight, bias, state, y, silu, gated)
    rows = min(STEP_ROWS, triton.next_power_of_2(len(x)))
    conv_step_kernel[(triton.cdiv(width, STEP_CHANNELS), triton.cdiv(len(x), rows))](
        x, weight.contiguous(), bias, state, y, len(x), x.stride(0), D=width, BLOCK_D=STEP_CHANNELS, ROWS=rows,
        TAPS=taps, HAS_BIAS=bias is not None, SILU=silu, GATED=gated, num_warps=STEP_CHANNELS // 32, **dependent(),
    )  # fmt: skip
    return y


def _by_words(x: Tensor, weight: Tensor, bias: Tensor | None, state: Tensor, y: Tensor) -> bool:
    """Whether all rows are whole words of two numbers, of one dtype."""
    given = [x, weight, state, y] if bias is None else [x, weight, state, y, bias]
    whole = all(one.dtype == x.dtype and one.data_ptr() % 4 == 0 for one in given)
    even = weight.shape[0] % 2 == 0 and x.stride(0) % 2 == 0
    return whole and even and x.dtype in (torch.float16, torch.bfloat16) and weight.shape[1] in (3, 4)


def _step_by_words(
    x: Tensor, weight: Tensor, bias: Tensor | None, state: Tensor, y: Tensor, silu: bool, gated: bool
) -> Tensor:
    words, pairs = x.view(torch.int32), len(weight) // 2
    rows = min(WORD_ROWS, triton.next_power_of_2(len(x)))
    conv_words_kernel[(triton.cdiv(pairs, WORD_PAIRS), triton.cdiv(len(x), rows))](
        words, weight.contiguous().flatten().view(torch.int32),
        None if bias is None else bias.view(torch.int32), state.flatten(1).view(torch.int32),
        y.view(torch.int32), len(x), words.stride(0), PAIRS=pairs, BLOCK_P=WORD_PAIRS, ROWS=rows,
        TAPS=weight.shape[1], HAS_BIAS=bias is not None, SILU=silu, GATED=gated, dtype=WORDS[y.dtype],
        num_warps=4, **dependent(),
    )  # fmt: skip
    return y


@_conv_step.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None, state: Tensor, silu: bool, gated: bool) -> Tensor:
    return x.new_empty((len(x), len(weight)))


def short_conv(
    x_BLD: Tensor,
    weight_DW: Tensor,
    bias_D: Tensor | None,
    *,
    activation: str | None,
    initial_state: Tensor | None = None,
) -> Tensor:
    """`short_conv.reference` by the kernels above; the initial state gets no gradient."""
    return convolution(x_BLD, None, weight_DW, bias_D, None, initial_state, activation == "silu")


def gated_conv(u_BLD: Tensor, gate_BLD: Tensor, weight_DW: Tensor, bias_D: Tensor, gate_bias_D: Tensor) -> Tensor:
    """`gated_conv.reference` by the kernels above."""
    return convolution(u_BLD, gate_BLD, weight_DW, bias_D, gate_bias_D, None, False)


def conv_gate(x_BLE: Tensor, weight_DW: Tensor, bias_D: Tensor | None, initial_state: Tensor | None = None) -> Tensor:
    """`conv_gate.reference` by the kernels above; the initial state gets no gradient."""
    u_BLD, gate_BLD = x_BLE.chunk(2, dim=-1)
    return convolution(u_BLD, gate_BLD, weight_DW, bias_D, None, initial_state, True)


def split_conv(
    x_BLE: Tensor, widths: list[int], weight_DW: Tensor, bias_D: Tensor | None, *, start: int, activation: str | None
) -> tuple[Tensor, ...]:
    """`split_conv.reference` by the kernels above."""
    return _SplitConv.apply(x_BLE, widths, weight_DW, bias_D, start, activation == "silu")


def short_conv_step(
    x_BD: Tensor, weight_DW: Tensor, bias_D: Tensor | None, state_BDS: Tensor, *, activation: str | None
) -> Tensor:
    """`short_conv.reference_step` by the kernel above. `state_BDS` is contiguous."""
    return _conv_step(x_BD, weight_DW, bias_D, state_BDS, activation == "silu", False)


def conv_gate_step(x_BE: Tensor, weight_DW: Tensor, bias_D: Tensor | None, state_BDS: Tensor) -> Tensor:
    """`conv_gate.reference_step` by the kernel above. `state_BDS` is contiguous."""
    return _conv_step(x_BE, weight_DW, bias_D, state_BDS, True, True)
