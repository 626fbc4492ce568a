"""Triton operators of `selective_scan`: one thread per channel, states (forward) or time steps (backward) in registers.

The forward walks through time with all states of a channel in one thread's registers, so that the recurrence needs no
exchange between threads and exponentials, N per step and channel, are computed once. When gradients will be asked for
it keeps the states between chunks of 16 steps, N / 16 float32 per step and channel.

The backward takes the chunks from the last to the first and, within a chunk, state by state. Gradients of B and C are
sums over channels: every program leaves the sum over its 32, and those are added in a fixed order, as are the
sequences' gradients of A, D and the bias of delta. Results are reproducible bit by bit. Everything between load and
store is float32.
"""

# mypy: allow-untyped-defs

import math
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from . import selective_scan_ends_triton as ends
from .selective_scan_backward_triton import backward
from .selective_scan_forward_triton import forward
from .selective_scan_tiles_triton import CHANNELS

STEPS = 8  # in a tile of the forward
CHUNK = 16  # in one of the backward: a multiple of STEPS; ends.PACKED_STEPS is one of CHUNK


class _Inputs(NamedTuple):
    """An operator's inputs, channels and states next to each other."""

    u: Tensor
    delta: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor | None
    z: Tensor | None
    bias: Tensor | None

    @property
    def shape(self) -> tuple[int, int, int, int, int]:
        """Batch, length, channels, states, chunks."""
        return (*self.u.shape, self.A.shape[1], triton.cdiv(self.u.shape[1], CHUNK))  # type: ignore[return-value]

    def sequences(self, **more: Tensor) -> tuple[list[int], dict[str, int]]:
        """The strides between sequences, and those between time steps, of the (B,L,D) tensors."""
        tensors = {"u": self.u, "delta": self.delta, "z": self.u if self.z is None else self.z, **more}
        return [x.stride(0) for x in tensors.values()], {f"row_{name}": x.stride(1) for name, x in tensors.items()}

    @property
    def grid(self) -> tuple[int, int]:
        return triton.cdiv(self.u.shape[2], CHANNELS), self.u.shape[0]

    def constants(self, tile: int, softplus: bool) -> dict[str, Any]:
        """Whatever the tile, steps are walked to the end of the last chunk: WHOLE if that is the sequence's end too."""
        _, length, channels, states, _ = self.shape
        return {
            "channels": channels, "N": states, "T": tile, "BLOCK_D": CHANNELS, "WHOLE": length % CHUNK == 0,
            "SOFTPLUS": softplus, "HAS_D": self.D is not None, "HAS_Z": self.z is not None,
            "HAS_BIAS": self.bias is not None, "num_warps": 1,
        }  # fmt: skip


def _rows(x: Tensor) -> Tensor:
    """Channels next to each other."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _inputs(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None, bias: Tensor | None
) -> _Inputs:
    D, bias = (None if x is None else x.contiguous() for x in (D, bias))
    return _Inputs(_rows(u), _rows(delta), A.contiguous(), _rows(B), _rows(C), D, None if z is None else _rows(z), bias)


def _group(states: int) -> int:
    """States in a tile: 16, or 8 where that leaves fewer places empty."""
    return 8 if 0 < states % 16 <= 8 else 16


def _packed(inputs: _Inputs, keep: bool) -> tuple[Tensor, Tensor, Tensor]:
    """B and C (B,L,2,N), steps and states padded; to `keep`, (B,chunks,N,2,T); and A (N,D). In float32."""
    batch, length, channels, states, chunks = inputs.shape
    width, padded = triton.cdiv(states, _group(states)) * _group(states), chunks * CHUNK
    rows = inputs.u.new_empty((batch, padded, 2, width), dtype=torch.float32)
    columns = rows.new_empty((batch, chunks, states, 2, CHUNK) if keep else 0)
    A_ND = rows.new_empty(states, channels)
    tiles = triton.cdiv(padded, ends.PACKED_STEPS)
    strides = (x.stride(i) for i in (1, 0) for x in (inputs.B, inputs.C))
    ends.pack[(tiles * batch + triton.cdiv(channels, ends.PACKED_CHANNELS),)](
        inputs.B, inputs.C, inputs.A, rows, columns, A_ND, length, padded, tiles, tiles * batch, channels, *strides,
        N=states, WIDTH=width, STATES=triton.next_power_of_2(width), T=CHUNK, TILE=ends.PACKED_STEPS,
        BLOCK_D=ends.PACKED_CHANNELS, KEEP=keep, num_warps=4,
    )  # fmt: skip
    return rows, columns, A_ND


@torch.library.custom_op("basedbench::selective_scan", mutates_args=())
def forward_operator(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None, bias: Tensor | None,
    initial: Tensor | None, softplus: bool, state: bool, keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """y (B,L,D); the last `state` (B,D,N) in float32; what the backward needs, to `keep`. Empty where not asked for.

    Kept are the states before every chunk (B,chunks,N,D), B and C (B,chunks,N,2,T) and A (N,D).
    """
    inputs = _inputs(u, delta, A, B, C, D, z, bias)
    y, last, kept, columns, A_ND = outputs(u, delta, A, B, C, D, z, bias, initial, softplus, state, keep)
    rows, columns, A_ND = _packed(inputs, keep)
    batches, strides = inputs.sequences()
    initial = None if initial is None else initial.contiguous()
    _, length, _, states, chunks = inputs.shape
    forward[inputs.grid](
        inputs.u, inputs.delta, A_ND, rows, inputs.D, inputs.z, inputs.bias, initial, y, last, kept, length,
        chunks * (CHUNK // STEPS), 1, *batches, GROUP=_group(states), KEEP_EVERY=CHUNK // STEPS if keep else 0,
        HAS_STATE=initial is not None, STATE=state, **strides, **inputs.constants(STEPS, softplus),
    )  # fmt: skip
    return y, last, kept, columns, A_ND if keep else A_ND.new_empty(0)


@forward_operator.register_fake
def outputs(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None, bias: Tensor | None,
    initial: Tensor | None, softplus: bool, state: bool, keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """The outputs, not yet written."""
    batch, length, channels = u.shape
    states, chunks = A.shape[1], (length + CHUNK - 1) // CHUNK
    last = u.new_empty((batch, channels, states) if state else 0, dtype=torch.float32)
    shapes = [(batch, chunks, states, channels), (batch, chunks, states, 2, CHUNK), (states, channels)]
    kept, columns, A_ND = (last.new_empty(shape if keep else 0) for shape in shapes)
    return u.new_empty(u.shape), last, kept, columns, A_ND


@torch.library.custom_op("basedbench::selective_scan_backward", mutates_args=())
def backward_operator(
    dy: Tensor, dlast: Tensor | None, kept: Tensor, columns: Tensor, A_ND: Tensor, u: Tensor, delta: Tensor, A: Tensor,
    B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None, bias: Tensor | None, initial: Tensor | None,
    softplus: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of u, delta, A, B, C, D, z, bias and the initial state; an empty tensor where there is no input."""
    inputs = _inputs(u, delta, A, B, C, D, z, bias)
    batch, length, channels, states, chunks = inputs.shape
    dy, dlast = _rows(dy), None if dlast is None else dlast.contiguous()
    found = gradients(dy, dlast, kept, columns, A_ND, u, delta, A, B, C, D, z, bias, initial, softplus)
    du, ddelta, dA, dB, dC, dD, dz, dbias, dinitial = found
    dstate = kept.new_empty(batch, states, channels)
    dconstants = kept.new_empty(batch, states + 2, channels)
    dBC = kept.new_empty(inputs.grid[0], *columns.shape)
    batches, strides = inputs.sequences(dy=dy)
    backward[inputs.grid](
        inputs.u, inputs.delta, A_ND, columns, inputs.D, inputs.z, inputs.bias, kept, dy, dlast, du, ddelta, dz,
        dconstants, dBC, dstate, length, chunks, 1, *batches, DEPTH=int(math.log2(CHANNELS)),
        HAS_DLAST=dlast is not None, **strides, **inputs.constants(CHUNK, softplus),
    )  # fmt: skip
    blocks_D = triton.cdiv(channels, ends.SUMMED_CHANNELS)
    ends.finish[(batch * chunks + blocks_D * (states + 2),)](
        dBC, dconstants, dB, dC, dA, dD, dbias, length, chunks, inputs.grid[0], batch, channels, batch * chunks,
        N=states, STATES=triton.next_power_of_2(states), T=CHUNK, PARTS=ends.SUMMED_BLOCKS,
        BLOCK_D=ends.SUMMED_CHANNELS, HAS_D=D is not None, HAS_BIAS=bias is not None, num_warps=4,
    )  # fmt: skip
    if initial is not None:
        dinitial.copy_(dstate.transpose(1, 2))
    return du, ddelta, dA, dB, dC, dD, dz, dbias, dinitial


@backward_operator.register_fake
def gradients(
    dy: Tensor, dlast: Tensor | None, kept: Tensor, columns: Tensor, A_ND: Tensor, u: Tensor, delta: Tensor, A: Tensor,
    B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None, bias: Tensor | None, initial: Tensor | None,
    softplus: bool,
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
        dy = torch.zeros_like(tensors[3])
    found = backward_operator(dy, dlast, *tensors, ctx.softplus)
    return *(None if x is None else gradient for x, gradient in zip(tensors[3:], found, strict=True)), None, None, None


forward_operator.register_autograd(_gradients, setup_context=_keep)


def supported(u: Tensor, A_DN: Tensor, *others: Tensor | None) -> bool:
    """Whether the kernels take these inputs."""
    known = (torch.float32, torch.float16, torch.bfloat16)
    return u.numel() > 0 and A_DN.shape[1] <= 64 and all(x is None or x.dtype in known for x in (u, A_DN, *others))


def selective_scan(
    u_BLD: Tensor, delta_BLD: Tensor, A_DN: Tensor, B_BLN: Tensor, C_BLN: Tensor, *, D_D: Tensor | None = None,
    z_BLD: Tensor | None = None, delta_bias_D: Tensor | None = None, delta_softplus: bool = False,
    initial_state: Tensor | None = None, return_state: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:  # fmt: skip
    """`selective_scan.reference` by the kernels above."""
    tensors = (u_BLD, delta_BLD, A_DN, B_BLN, C_BLN, D_D, z_BLD, delta_bias_D, initial_state)
    keep = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)
    y, state, *_ = forward_operator(*tensors, delta_softplus, return_state, keep)
    return (y, state) if return_state else y
