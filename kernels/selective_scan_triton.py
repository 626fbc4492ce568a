"""Operators of `selective_scan` by Gluon and Triton kernels: a warp walks along its channels with all their states.

A thread has some states of some channels in registers, so that a step of the recurrence exchanges nothing, and B, C and
the step sizes, which products share, are read once for several. Where sequences and channels make too few programs, the
sequence is cut into segments: their last states from zeros and the sums of their steps, a short scan over segments,
then the outputs of all segments side by side. When gradients will be asked for, the states before tiles of 8 steps are
kept, N / 8 float32 per step and channel, and y before the gate.

The backward takes the tiles from the last to the first. Gradients of B and C are sums over channels: every program
leaves the sum over its own, and those are added in a fixed order, as are the sequences' gradients of A, D and the bias
of delta. Results are reproducible bit by bit. Everything between load and store is float32, but
for bfloat16's sums over channels.
"""

# mypy: allow-untyped-defs

import math
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from . import selective_scan_ends_triton as around
from .dense_rows import dense_rows
from .differentiated import differentiated
from .packing import Packing, starts_of
from .selective_scan_backward_gluon import backward
from .selective_scan_ends_gluon import ends
from .selective_scan_forward_gluon import forward

TILE = 8  # steps
BLOCKS = 32, 16, 8  # channels of a program of the forward
PROGRAMS = 2048  # of one warp: four for each scheduler of a Hopper GPU
ENOUGH = 528  # to do without segments: one for each; the backward's registers leave room for two
SHORTEST = 16  # segment, in tiles
CROWDED = 168  # registers of a thread, for twelve warps on a multiprocessor
COPIED = 9, 16  # states with which inputs that come to shared memory behind the backward's work are faster
ALONE = 1024  # one-warp programs of the backward, eight for each multiprocessor, to be enough


class Inputs(NamedTuple):
    """An operator's inputs, channels and states next to each other; with packing one row (1,L,...) of examples."""

    u: Tensor
    delta: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor | None
    z: Tensor | None
    bias: Tensor | None
    log_A: bool = False  # A is log(-A)
    packing: Packing | None = None

    @property
    def shape(self) -> tuple[int, int, int, int, int]:
        """Batch, length, channels, states, tiles."""
        return (*self.u.shape, self.A.shape[1], triton.cdiv(self.u.shape[1], TILE))  # type: ignore[return-value]

    @property
    def sequences(self) -> int:
        """Those of the batch, or packed examples."""
        return len(self.u) if self.packing is None else self.packing.batch

    @property
    def strides(self) -> list[int]:
        """Between sequences."""
        tensors = self.u, self.delta, self.B, self.C, self.u if self.z is None else self.z
        return [x.stride(0) for x in tensors]

    @property
    def rows(self) -> dict[str, int]:
        """Between the steps of u, B and C; the bytes that all rows of B and C start at a multiple of."""
        starts = (n for x in (self.B, self.C) for n in (x.data_ptr(), *(x.element_size() * n for n in x.stride()[:2])))
        rows = {f"row_{name}": x.stride(1) for name, x in {"u": self.u, "B": self.B, "C": self.C}.items()}
        return {"ALIGNED": math.gcd(16, *starts)} | rows

    @property
    def pairs(self) -> bool:
        """Whether all rows of u, delta, B and C are whole pairs of 16 bits, and begin with one."""
        tensors = self.u, self.delta, self.B, self.C
        sizes = (n for x in tensors for n in (x.data_ptr() // 2, *x.stride()[:2], x.shape[2]))
        return all(x.dtype.itemsize == 2 for x in tensors) and all(n % 2 == 0 for n in sizes)

    def constants(self, block: int, softplus: bool) -> dict[str, Any]:
        rows = {"delta": self.delta, "z": self.u if self.z is None else self.z}
        return {
            "channels": self.u.shape[2], "N": self.A.shape[1], "SN": _group(self.A.shape[1]) // 4, "BLOCK_D": block,
            "SOFTPLUS": softplus, "LOG_A": self.log_A, "HAS_Z": self.z is not None, "HAS_BIAS": self.bias is not None,
        } | {f"row_{name}": x.stride(1) for name, x in rows.items()}  # fmt: skip


def inputs_of(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None, bias: Tensor | None,
    log_A: bool = False, packing: Packing | None = None,
) -> Inputs:  # fmt: skip
    D, bias = (None if x is None else x.contiguous() for x in (D, bias))
    u, delta, B, C = (dense_rows(x) for x in (u, delta, B, C))
    return Inputs(u, delta, A.contiguous(), B, C, D, dense_rows(z), bias, log_A, packing)


def _group(states: int) -> int:
    """States in a tile: 16, or 8 where that leaves fewer places empty."""
    return 8 if 0 < states % 16 <= 8 else 16


def _plan(batch: int, channels: int, tiles: int) -> tuple[int, int]:
    """Channels of a program of the forward, and tiles of a segment.

    Many programs per multiprocessor hide each other's latencies, few channels in each make many of them. Segments cost
    every exponential twice: they come last, and then make programs enough of the usual size.
    """
    if batch * channels < BLOCKS[-1] * ENOUGH and tiles >= 2 * SHORTEST:
        return BLOCKS[1], _span(batch * triton.cdiv(channels, BLOCKS[1]), PROGRAMS, tiles)
    return next((size for size in BLOCKS if batch * channels >= size * PROGRAMS), BLOCKS[-1]), tiles


def _span(warps: int, wanted: int, tiles: int) -> int:
    """Tiles of a segment where whole sequences make only so many warps."""
    segments = 1 if warps >= ENOUGH else min(wanted // warps, tiles // SHORTEST)
    return triton.cdiv(tiles, max(segments, 1))


def _between(
    inputs: Inputs, x: Tensor, B: Tensor, z: Tensor | None, given: Tensor | None, span: int, softplus: bool, *,
    reverse: bool,
) -> Tensor:  # fmt: skip
    """(B,slots,N,D): the states before segments of `span` tiles, or the gradients of those after (`reverse`, of dy)."""
    batch, length, channels, states, tiles = inputs.shape
    slots, block = triton.cdiv(tiles, span), BLOCKS[1]
    between = x.new_empty((batch, slots, states, channels), dtype=torch.float32)
    steps = between.new_empty(batch, slots, channels)
    gate = x if z is None else z
    ends[(triton.cdiv(channels, block), batch, slots - 1)](
        x, inputs.delta, inputs.A, B, z, inputs.bias, between, steps, length, tiles, slots, span,
        *(tensor.stride(0) for tensor in (x, inputs.delta, B, gate)), B.stride(1), row_x=x.stride(1), REVERSE=reverse,
        num_warps=1, **inputs.constants(block, softplus) | {"HAS_Z": z is not None, "row_z": gate.stride(1)},
    )  # fmt: skip
    around.carry[(triton.cdiv(channels, around.CARRIED_CHANNELS), batch)](
        between, steps, inputs.A, given, slots, channels, N=states, STATES=triton.next_power_of_2(states),
        BLOCK_D=around.CARRIED_CHANNELS, LOG_A=inputs.log_A, HAS_STATE=given is not None, REVERSE=reverse, num_warps=4,
    )  # fmt: skip
    return between


class _Walk(NamedTuple):
    """How a warp of the backward walks: its channels, whether it keeps decays, and how many registers it may take.

    The `warps` of a program have one sum over channels.
    """

    channels: int
    decays: bool
    registers: int | None
    warps: int = 2


def _walk(states: int, sequence_channels: int) -> _Walk:
    """Kept decays cost registers, others their exponentials again.

    A warp of 32 channels waits for no other and reads B and C for twice as many; with more states it lacks registers.
    """
    if states <= 8:
        return _Walk(32, True, None, 1) if sequence_channels >= 32 * ALONE else _Walk(16, True, CROWDED)
    return _Walk(16, states <= 16, None) if states <= 32 else _Walk(8, True, None)


def _copies(inputs: Inputs, dy: Tensor, open_y: Tensor) -> bool:
    """Whether the backward's inputs go to shared memory while it is at work on another tile.

    No piece of less than four bytes can. With 24 states it is no faster, with 8 slower (docs/log).
    """
    states = inputs.A.shape[1]
    rows = inputs.u, inputs.delta, inputs.z, dy, open_y
    wide = min(inputs.B.element_size(), inputs.C.element_size()) >= 4
    columns = wide or (states % 4 == 0 and inputs.rows["ALIGNED"] % 4 == 0)
    return (
        COPIED[0] <= states <= COPIED[1] and columns and all(_in_pieces(x) for x in rows if x is not None and x.numel())
    )


def _in_pieces(x: Tensor) -> bool:
    """Of 16 bits: whether all rows are known to begin, and to end, with a piece of four numbers."""
    *between, row = x.stride()[:-1]
    strides = row % 4 == 0 and all(n % 16 == 0 for n in between)
    return x.element_size() >= 4 or (strides and x.shape[-1] % 4 == 0 and x.data_ptr() % 16 == 0)


def _forward_registers(states: int) -> int | None:
    """So many that sixteen warps fit into a multiprocessor, with few states twenty; more states need more."""
    return 96 if states <= 8 else 128 if states <= 16 else None


def _batch(states: int) -> int:
    """Groups of states that walk together."""
    groups = triton.cdiv(states, _group(states))
    return groups if groups * _group(states) <= 24 else 1


def _segments(inputs: Inputs, span: int, asked: Tensor | None) -> tuple[int, int]:
    """How many a row has, and the most tiles of one: packed examples, or parts of a sequence, one with asked tokens."""
    tiles = inputs.shape[-1]
    if inputs.packing is not None:
        return inputs.packing.batch, tiles
    return (triton.cdiv(tiles, span), span) if asked is None else (1, tiles)


def _packed(packing: Packing | None) -> dict[str, Any]:
    """A kernel's arguments for it."""
    return {"starts": starts_of(packing), "PACKED": packing is not None}


def _rows_of(asked: Tensor | None, channels: int, *more: str) -> dict[str, Any]:
    """Constants of a kernel whose z, and more, are dense rows of asked tokens."""
    return {"ASKED": asked is not None} | ({} if asked is None else dict.fromkeys(("row_z", *more), channels))


def forward_into(
    found: tuple[Tensor, ...], inputs: Inputs, initial: Tensor | None, softplus: bool, asked: Tensor | None = None
) -> None:
    """Write what `forward_operator` returns.

    `asked` (B,L) int32, the slots of module `asked`: then z, y and y before the gate are dense rows of those tokens.
    Packed examples have no states at their ends.
    """
    y, last, kept, open_y = found
    initial = None if initial is None else initial.contiguous()
    batch, length, channels, states, tiles = inputs.shape
    block, span = _plan(inputs.sequences, channels, tiles)
    (slots, span), place = _segments(inputs, span, asked), (1, states)
    if slots > 1 and inputs.packing is None:
        initial = _between(inputs, inputs.u, inputs.B, None, initial, span, softplus, reverse=False)
        place = channels, 1
    forward[(triton.cdiv(channels, block), batch, slots)](
        inputs.u, inputs.delta, inputs.A, inputs.B, inputs.C, inputs.D, inputs.z, inputs.bias, initial, asked, y, last,
        kept, open_y, length, tiles, slots, span, *inputs.strides, HAS_D=inputs.D is not None,
        HAS_STATE=initial is not None, STATE_N=place[0], STATE_D=place[1], STATE=last.numel() > 0,
        KEEP=kept.numel() > 0, PAIRS=inputs.pairs, num_warps=1, maxnreg=_forward_registers(states), **inputs.rows,
        **_packed(inputs.packing), **inputs.constants(block, softplus) | _rows_of(asked, channels),
    )  # fmt: skip


@torch.library.custom_op("basedbench::selective_scan", mutates_args=())
def forward_operator(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None, bias: Tensor | None,
    initial: Tensor | None, softplus: bool, state: bool, keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """y (B,L,D); the last `state` (B,D,N) in float32; to `keep`, the states before tiles (B,tiles,N,D), and y
    before a gate. Empty where not asked for.
    """
    found = outputs(u, delta, A, B, C, D, z, bias, initial, softplus, state, keep)
    forward_into(found, inputs_of(u, delta, A, B, C, D, z, bias), initial, softplus)
    return found


@forward_operator.register_fake
def outputs(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None, bias: Tensor | None,
    initial: Tensor | None, softplus: bool, state: bool, keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """The outputs, not yet written."""
    return room(u, A, u.shape, gated=z is not None, state=state, keep=keep)


def room(
    u: Tensor, A: Tensor, shape: torch.Size, *, gated: bool, state: bool, keep: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Room for the outputs, y and y before a gate of that shape."""
    batch, length, channels = u.shape
    states, tiles = A.shape[1], (length + TILE - 1) // TILE
    last = u.new_empty((batch, channels, states) if state else 0, dtype=torch.float32)
    kept = last.new_empty((batch, tiles, states, channels) if keep else 0)
    # float16 would not hold all that a gate makes small again
    wide = u.dtype if u.dtype == torch.bfloat16 else torch.float32
    return u.new_empty(shape), last, kept, u.new_empty(shape if keep and gated else 0, dtype=wide)


def backward_into(
    found: tuple[Tensor, ...],
    dy: Tensor,
    dlast: Tensor | None,
    kept: Tensor,
    open_y: Tensor,
    inputs: Inputs,
    softplus: bool,
    asked: Tensor | None = None,
) -> None:
    """Write the gradients that `backward_operator` returns. Those of B, C and z may be slices of wider tensors.

    `asked` as in `forward_into`, for dy and dz too.
    """
    batch, length, channels, states, tiles = inputs.shape
    D, z, bias = inputs.D, inputs.z, inputs.bias
    dy, dlast = dense_rows(dy), None if dlast is None else dlast.contiguous()
    du, ddelta, dA, dB, dC, dD, dz, dbias, dinitial = found
    walk, width = _walk(states, inputs.sequences * channels), triton.cdiv(states, _group(states)) * _group(states)
    block = walk.warps * walk.channels
    blocks = triton.cdiv(channels, block)
    span = _span(batch * blocks * walk.warps, 2 * ENOUGH, tiles)
    (slots, span), place = _segments(inputs, span, asked), (1, states)
    if slots > 1 and inputs.packing is None:
        dlast, place = _between(inputs, dy, inputs.C, inputs.z, dlast, span, softplus, reverse=True), (channels, 1)
    dstate = kept.new_empty(batch, states, channels)
    dconstants = kept.new_empty(batch * slots, states + 2, channels)
    dBC = kept.new_empty(blocks, batch, tiles * TILE, 2, width)
    backward[(blocks, batch, slots)](
        inputs.u, inputs.delta, inputs.A, inputs.B, inputs.C, inputs.D, inputs.z, inputs.bias, kept, open_y, asked, dy,
        dlast, du, ddelta, dz, dconstants, dBC, dstate, length, tiles, slots, span, *inputs.strides, dy.stride(0),
        HAS_D=D is not None, HAS_DLAST=dlast is not None, STATE_N=place[0], STATE_D=place[1],
        EXACT=not inputs.B.dtype == inputs.C.dtype == torch.bfloat16, BATCH=_batch(states), DECAYS=walk.decays,
        COPIES=_copies(inputs, dy, open_y), WARPS=walk.warps, num_warps=walk.warps,
        maxnreg=walk.registers, **inputs.rows, **_packed(inputs.packing),
        **inputs.constants(block, softplus) | {"row_dy": dy.stride(1)}
        | {"row_dz": channels if z is None else dz.stride(1)} | _rows_of(asked, channels, "row_dy", "row_dz"),
    )  # fmt: skip
    parts_L = triton.cdiv(length * 2 * width, around.SUMMED)
    parts_D, unit = triton.cdiv(channels, around.SUMMED_CHANNELS), math.gcd(16, dB.stride(1), dC.stride(1))
    around.finish[(batch * parts_L + parts_D * (states + 2),)](
        dBC, dconstants, inputs.A, dB, dC, dA, dD, dbias, length, tiles * TILE, parts_L, blocks, batch, batch * slots,
        channels, parts_D * (states + 2), dB.stride(1) // unit, dC.stride(1) // unit,
        N=states, LOG_A=inputs.log_A, WIDTH=width, EACH=around.SUMMED, UNIT=unit,
        PARTS=min(around.SUMMED_BLOCKS, triton.next_power_of_2(blocks)), SEGMENTS=around.SUMMED_SEGMENTS,
        BLOCK_D=around.SUMMED_CHANNELS, HAS_D=D is not None, HAS_BIAS=bias is not None, num_warps=4,
    )  # fmt: skip
    if dinitial.numel():
        dinitial.copy_(dstate.transpose(1, 2))


@torch.library.custom_op("basedbench::selective_scan_backward", mutates_args=())
def backward_operator(
    dy: Tensor, dlast: Tensor | None, kept: Tensor, open_y: Tensor, u: Tensor, delta: Tensor, A: Tensor, B: Tensor,
    C: Tensor, D: Tensor | None, z: Tensor | None, bias: Tensor | None, initial: Tensor | None, softplus: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of u, delta, A, B, C, D, z, bias and the initial state; an empty tensor where there is no input."""
    found = gradients(dy, dlast, kept, open_y, u, delta, A, B, C, D, z, bias, initial, softplus)
    backward_into(found, dy, dlast, kept, open_y, inputs_of(u, delta, A, B, C, D, z, bias), softplus)
    return found


@backward_operator.register_fake
def gradients(
    dy: Tensor, dlast: Tensor | None, kept: Tensor, open_y: Tensor, u: Tensor, delta: Tensor, A: Tensor, B: Tensor,
    C: Tensor, D: Tensor | None, z: Tensor | None, bias: Tensor | None, initial: Tensor | None, softplus: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """The gradients, not yet written."""
    return tuple(  # type: ignore[return-value]
        u.new_empty(0) if x is None else x.new_empty(x.shape) for x in (u, delta, A, B, C, D, z, bias, initial)
    )


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.softplus, _, _ = inputs
    kept = output[2:]
    ctx.mark_non_differentiable(*kept)
    ctx.save_for_backward(*kept, *tensors)
    ctx.set_materialize_grads(False)


def _gradients(ctx: Any, dy: Tensor | None, dlast: Tensor | None, *unused: None) -> tuple[Tensor | None, ...]:
    tensors = ctx.saved_tensors
    if dy is None:
        dy = torch.zeros_like(tensors[2])
    found = backward_operator(dy, dlast, *tensors, ctx.softplus)
    return *(None if x is None else gradient for x, gradient in zip(tensors[2:], found, strict=True)), None, None, None


forward_operator.register_autograd(_gradients, setup_context=_keep)


def supported(u: Tensor, A_DN: Tensor, *others: Tensor | None) -> bool:
    """Whether the kernels take these inputs."""
    known = (torch.float32, torch.float16, torch.bfloat16)
    return u.numel() > 0 and 0 < A_DN.shape[1] <= 64 and all(x is None or x.dtype in known for x in (u, A_DN, *others))


def selective_scan(
    u_BLD: Tensor, delta_BLD: Tensor, A_DN: Tensor, B_BLN: Tensor, C_BLN: Tensor, *, D_D: Tensor | None = None,
    z_BLD: Tensor | None = None, delta_bias_D: Tensor | None = None, delta_softplus: bool = False,
    initial_state: Tensor | None = None, return_state: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:  # fmt: skip
    """`selective_scan.reference` by the kernels above."""
    tensors = (u_BLD, delta_BLD, A_DN, B_BLN, C_BLN, D_D, z_BLD, delta_bias_D, initial_state)
    keep = differentiated(*tensors)
    y, state, *_ = forward_operator(*tensors, delta_softplus, return_state, keep)
    return (y, state) if return_state else y
