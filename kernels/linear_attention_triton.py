"""linear_attention and retention on a GPU: the torch operators around the Triton kernels, and which inputs they take.

Output and gradients are four launches of one form (`linear_attention_tiles_triton`), by one of two kernels: heads up to
WIDEST in sequences beyond QUADRATIC_LENGTH by `walk_kernel`, cut into segments where sequences and heads are few;
everything else by `block_kernel`, in segments of SEGMENT tokens or more. Segments take two more launches for the states
between them. Gradients pass through the initial and the final state. Launch shapes are fixed by the class of the inputs
(widths, dtype), never tuned at run time.

float32 inputs follow torch.get_float32_matmul_precision(): "highest" keeps float32's accuracy (three tf32 products),
everything else takes tf32. float16 keeps more digits than one product of tf32 would, hence three. Features in float32
beside values of 16 bits meet in tf32.
"""

# mypy: allow-untyped-defs

from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from .dense_rows import dense_rows, either
from .differentiated import differentiated
from .linear_attention_block_triton import block_kernel
from .linear_attention_states_triton import running_kernel, sum_kernel
from .linear_attention_walk_triton import walk_kernel
from .precision import precision_of

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# Per token-head a block costs (L + 64) (K + V) operations, a walk 64 (K + V) + 4 K V, one chunk after the other.
QUADRATIC_LENGTH = 256
# Keys and values whose state is held in the registers of one program.
WIDEST = {"bf16": (64, 128), "tf32": (64, 64), "tf32x3": (64, 64)}
# Beyond 4 K V / (K + V) tokens states cost less than blocks do; twice as long for widths beyond 256.
SEGMENT = 512
# Features whose dq one program makes as a whole, see `without_mean`.
WHOLE = 256
# Programs that fill an H100 twice (132 multiprocessors), and the fewest chunks worth a segment of their own.
PROGRAMS, FEWEST = 264, 8
LOG2E = 1.4426950408889634


def unsupported(
    q: Tensor, k: Tensor, v: Tensor, initial_state: Tensor | None = None, *, normalise: bool = True
) -> str | None:
    """Why the kernels do not take these inputs, or None if they do."""
    if q.dtype != k.dtype or v.dtype not in DTYPES or q.dtype not in (v.dtype, torch.float32):
        return "q, k and v must share one of float32, float16, bfloat16, or q and k be float32"
    if initial_state is not None and initial_state.dtype not in DTYPES:
        return "the state must be float32, float16 or bfloat16"
    differentiable = differentiated(q, k, v)
    if normalise and differentiable and q.shape[-1] > WHOLE and v.dtype != torch.float32:
        return f"gradients of more than {WHOLE} features take y before it is rounded"
    if q.numel() == 0 or v.numel() == 0:
        return "there is nothing to compute"
    return None


def block_of(width: int, largest: int) -> tuple[int, int]:
    """(padded width, block): one block that is a power of two, or several of the largest."""
    if width > largest:
        return triton.cdiv(width, largest) * largest, largest
    padded = max(16, triton.next_power_of_2(width))
    return padded, padded


def launch_shape(kernel: str, widest: int, precision: str) -> dict[str, int]:
    """Tokens of a tile, warps and stages of a kernel: "walk", "block" or "sum"; `widest`, its widest tile."""
    tokens = 64 if precision == "bf16" or kernel == "block" else 32
    warps = 8 if kernel != "sum" and widest > 64 else 4
    stages = 3 if precision == "bf16" and widest <= 128 else 1 if precision == "tf32x3" and widest > 128 else 2
    return {"T": tokens, "num_warps": warps, "num_stages": stages}


class _Call(NamedTuple):
    """The inputs of a call, rows dense, and how it is computed."""

    q: Tensor
    k: Tensor
    v: Tensor
    rates: Tensor | None
    feature_map: str
    normalise: bool
    scale: float

    @property
    def precision(self) -> str:
        return precision_of(self.v.dtype)

    @property
    def finer(self) -> str:
        """The precision of dq, and of what it reads.

        What cancels in it, where y is normalised, is several times as large as dq: factors of 8 bits would show.
        """
        return "tf32" if self.normalise and self.precision == "bf16" else self.precision

    @property
    def sequences(self) -> int:
        return self.q.shape[0] * self.q.shape[2]

    @property
    def length(self) -> int:
        return self.q.shape[1]

    @property
    def widths(self) -> tuple[int, int]:
        return self.q.shape[-1], self.v.shape[-1]

    @property
    def walks(self) -> bool:
        (keys, values), (most_keys, most_values) = self.widths, WIDEST[self.precision]
        return self.length > QUADRATIC_LENGTH and keys <= most_keys and values <= most_values

    @property
    def segments(self) -> tuple[int, int]:
        """(tokens of a segment, segments)."""
        if not self.walks:
            size = SEGMENT if max(self.widths) <= 256 else 2 * SEGMENT
            return size, triton.cdiv(self.length, size)
        tokens = launch_shape("walk", 0, self.precision)["T"]
        chunks = triton.cdiv(self.length, tokens)
        wanted = min(PROGRAMS // (self.sequences * triton.cdiv(max(self.widths), 64)), chunks // FEWEST)
        size = triton.cdiv(chunks, max(1, wanted)) * tokens
        return size, triton.cdiv(self.length, size)

    @property
    def state(self) -> tuple[int, int, int, int]:
        """Shape of a state: (B,H,K,V+1), or (B,H,K,V) without a normaliser."""
        keys, values = self.widths
        return self.q.shape[0], self.q.shape[2], keys, values + self.normalise


def _call(q, k, v, rates, feature_map, normalise, scale) -> _Call:
    return _Call(dense_rows(q), dense_rows(k), dense_rows(v), rates, feature_map, normalise, scale)


def _strides(*tensors: Tensor) -> list[int]:
    return [stride for tensor in tensors for stride in tensor.stride()[:3]]


def _states(
    call: _Call, x: Tensor, v: Tensor, inverse: Tensor, delta: Tensor, initial: Tensor | None, last: Tensor | None, *,
    reverse: bool, precision: str,
) -> Tensor:  # fmt: skip
    """What each segment begins with, in reverse ends with: (B,H,segments,K,W); `last` is written."""
    (keys, values), (segment, segments) = call.widths, call.segments
    (padded_k, block_k), (padded_v, block_v) = block_of(keys, 64), block_of(values, 64)
    shape = launch_shape("sum", 64, precision)
    batch, heads, _, columns = call.state
    sums = x.new_empty((batch, heads, segments, keys, columns), dtype=torch.float32)
    sizes = call.length, heads, segment, segments
    programs = call.sequences * segments * (padded_k // block_k) * (padded_v // block_v)
    sum_kernel[(programs,)](
        x, v, inverse, delta, either(call.rates, sums), sums, *_strides(x, v), *sizes, call.scale,
        K=keys, V=values, BK=padded_k, KB=block_k, BV=padded_v, VB=block_v, REVERSE=reverse, MAP=call.feature_map,
        NORMALISE=call.normalise, DECAY=call.rates is not None, PRECISION=precision,
        EVEN=call.length % shape["T"] == 0, **shape,
    )  # fmt: skip
    running_kernel[(call.sequences, triton.cdiv(keys * columns, 512))](
        sums, either(initial, sums), either(last, sums), either(call.rates, sums), *sizes,
        ENTRIES=keys * columns, REVERSE=reverse, DECAY=call.rates is not None, INITIAL=initial is not None,
        LAST=last is not None, BLOCK=512, num_warps=4,
    )  # fmt: skip
    return sums


def _launch(
    kind: str, call: _Call, tensors: tuple[Tensor, ...], output: Tensor, out: Tensor, inverse: Tensor, delta: Tensor,
    states: Tensor | None, last: Tensor | None = None,
) -> None:  # fmt: skip
    """One of the four forms into `out`; `tensors`: x, y, z, and what phi' is taken of. `last`: `walk_kernel` only."""
    x, z, heads = tensors[0], tensors[2], call.q.shape[2]
    of_keys = kind in ("output", "value")
    mixed = of_keys and x.dtype == torch.float32 and call.precision == "bf16"
    precision = call.finer if kind == "query" else call.precision
    flags = {
        "X": x.shape[-1], "Z": z.shape[-1], "KIND": kind, "REVERSE": kind in ("value", "key"),
        "XY_MAP": call.feature_map if of_keys else "none", "Z_MAP": "none" if of_keys else call.feature_map,
        "STATE": states is not None, "NORMALISE": call.normalise, "DECAY": call.rates is not None,
        "PRECISION": precision, "SCORES": "tf32" if mixed else precision,
    }  # fmt: skip
    pointers = (inverse, delta, either(call.rates, inverse), either(states, inverse))
    segment, segments = call.segments
    sizes = (*_strides(*tensors), call.length, heads, segment, segments, call.scale)
    if call.walks:
        (padded_x, _), (padded_z, block_z) = block_of(x.shape[-1], 128), block_of(z.shape[-1], 64)
        shape = launch_shape("walk", padded_x, call.precision)
        walk_kernel[(call.sequences * segments * (padded_z // block_z),)](
            *tensors, out, *pointers, either(last, inverse), *sizes, **flags, EVEN=call.length % shape["T"] == 0,
            BX=padded_x, BZ=padded_z, ZB=block_z, LAST=last is not None, **shape,
        )  # fmt: skip
        return
    wide_x = call.precision == "bf16" and (x.shape[-1] <= 128 or x.shape[-1] % 128 == 0)
    (padded_x, block_x), (padded_z, block_z) = block_of(x.shape[-1], 128 if wide_x else 64), block_of(z.shape[-1], 256)
    shape = launch_shape("block", max(block_x, block_z), precision)
    if padded_x > block_x:  # the innermost loop is that over blocks of x and y, whose tiles are small
        shape["num_stages"] = min(2, shape["num_stages"])
    if kind == "query" and precision != "bf16" and block_z > 128:  # z as operand of two products: room for one stage
        shape["num_stages"] = 1
    whole = padded_z == block_z and (padded_z <= 128 or call.v.dtype != torch.float32)
    programs = call.sequences * triton.cdiv(call.length, shape["T"]) * (padded_z // block_z)
    block_kernel[(programs,)](
        *tensors, output, out, *pointers, *sizes, **flags, EVEN=call.length % shape["T"] == 0,
        BX=padded_x, XB=block_x, BZ=padded_z, ZB=block_z, WHOLE=whole, **shape,
    )  # fmt: skip


@torch.library.custom_op("basedbench::linear_attention", mutates_args=())
def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rates: Tensor | None,
    initial_state: Tensor | None,
    feature_map: str,
    normalise: bool,
    scale: float,
    return_state: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """y (B,L,H,V), 1 / z (B,H,L) in float32, and the state; (0,) for what there is not or nobody asks for."""
    call = _call(q, k, v, rates, feature_map, normalise, scale)
    y, inverse, final = _outputs_like(q, v, normalise, return_state)
    initial = None if initial_state is None else initial_state.float().contiguous()
    last = final if return_state else None
    states = initial
    if call.segments[1] > 1 or (return_state and not call.walks):
        sums = _states(call, call.k, call.v, inverse, inverse, initial, last, reverse=False, precision=call.precision)
        states = sums if call.segments[1] > 1 else initial
        last = None
    _launch("output", call, (call.q, call.k, call.v, call.q), y, y, inverse, inverse, states, last)
    return y, inverse, final


@torch.library.custom_op("basedbench::linear_attention_backward", mutates_args=())
def backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rates: Tensor | None,
    initial_state: Tensor | None,
    y: Tensor,
    inverse: Tensor,
    dy: Tensor,
    grad_state: Tensor | None,
    feature_map: str,
    normalise: bool,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """dq, dk (B,L,H,K), dv (B,L,H,V) and the gradient by the initial state; (0,) if there is none."""
    call = _call(q, k, v, rates, feature_map, normalise, scale)
    dq, dk, dv, dstate = _gradients_like(q, k, v, initial_state)
    q, k, v, dy, delta = call.q, call.k, call.v, dense_rows(dy), torch.empty_like(inverse)
    initial = None if initial_state is None else initial_state.float().contiguous()
    behind = None if grad_state is None else grad_state.float().contiguous()
    first = None if initial is None else dstate if dstate.dtype == torch.float32 else torch.empty_like(initial)
    several = call.segments[1] > 1
    before = initial
    if several:
        before = _states(call, k, v, inverse, inverse, initial, None, reverse=False, precision=call.finer)
    _launch("query", call, (dy, v, k, q), y, dq, inverse, delta, before)
    into = first
    if several or (first is not None and not call.walks):
        sums = _states(call, q, dy, inverse, delta, behind, first, reverse=True, precision=call.precision)
        behind, into = sums if several else behind, None
    _launch("value", call, (k, q, dy, k), y, dv, inverse, delta, behind, into)
    _launch("key", call, (v, dy, q, k), y, dk, inverse, delta, behind, into)
    if first is not None and first is not dstate:
        dstate.copy_(first)
    return dq, dk, dv, dstate


def _outputs_like(q: Tensor, v: Tensor, normalise: bool, state: bool) -> tuple[Tensor, Tensor, Tensor]:
    batch, length, heads, keys = q.shape
    shape = (batch, heads, keys, v.shape[-1] + int(normalise))
    return (
        v.new_empty(v.shape),
        v.new_empty((batch, heads, length) if normalise else (0,), dtype=torch.float32),
        v.new_empty(shape if state else (0,), dtype=torch.float32),
    )


def _gradients_like(q: Tensor, k: Tensor, v: Tensor, initial: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    state = q.new_empty((0,), dtype=torch.float32) if initial is None else initial.new_empty(initial.shape)
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape), state


@forward.register_fake
def _(q, k, v, rates, initial_state, feature_map, normalise, scale, return_state):
    return _outputs_like(q, v, normalise, return_state)


@backward.register_fake
def _(q, k, v, rates, initial_state, y, inverse, dy, grad_state, feature_map, normalise, scale):
    return _gradients_like(q, k, v, initial_state)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    *tensors, ctx.feature_map, ctx.normalise, ctx.scale, return_state = inputs
    y, inverse, state = output
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(*((inverse,) if return_state else (inverse, state)))
    ctx.save_for_backward(*tensors, y, inverse)


def _backward(ctx: Any, dy: Tensor | None, _: Tensor | None, grad_state: Tensor | None) -> tuple[Tensor | None, ...]:
    q, k, v, rates, initial, y, inverse = ctx.saved_tensors
    dy = torch.zeros_like(y) if dy is None else dy
    *found, dstate = backward(
        q, k, v, rates, initial, y, inverse, dy, grad_state, ctx.feature_map, ctx.normalise, ctx.scale
    )
    return *found, None, None if initial is None else dstate, None, None, None, None


forward.register_autograd(_backward, setup_context=_save)


def linear_attention(
    q_BLHK: Tensor,
    k_BLHK: Tensor,
    v_BLHV: Tensor,
    *,
    feature_map: str = "none",
    initial_state: Tensor | None = None,
    return_state: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """The public function of `linear_attention`, for inputs that `unsupported` has no reason against."""
    y, _, state = forward(q_BLHK, k_BLHK, v_BLHV, None, initial_state, feature_map, True, 1.0, return_state)
    return (y, state) if return_state else y


def retention(
    q_BLHK: Tensor,
    k_BLHK: Tensor,
    v_BLHV: Tensor,
    log_decay_H: Tensor,
    *,
    scale: float = 1.0,
    initial_state: Tensor | None = None,
    return_state: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """The public function of `retention`, likewise."""
    rates_H = log_decay_H.detach().float() * LOG2E
    initial_state = None if initial_state is None else initial_state.mT
    y, _, state = forward(q_BLHK, k_BLHK, v_BLHV, rates_H, initial_state, "none", False, scale, return_state)
    return (y, state.mT) if return_state else y
