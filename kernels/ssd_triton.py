"""ssd on a GPU: the torch operators around the Triton kernels, and which inputs they take.

Forward: one kernel walks over the chunks of a sequence and head. Backward: one launch leaves the states between chunks,
forward and in reverse; a second takes all chunks at once; a third adds the parameters' sums. A sequence of one chunk
has no states. Launch shapes are fixed by the class of the inputs (widths, dtype), never tuned at run time.

float32 inputs follow torch.get_float32_matmul_precision(): "highest" keeps float32's accuracy (three tf32 products),
everything else takes tf32. float16 takes tf32 too: what the products are made of passes 65504 soon.
"""

# mypy: allow-untyped-defs

from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from .dense_rows import dense_rows
from .precision import float32_precision
from .ssd_backward_triton import gate_kernel, gradient_kernel, parameter_kernel
from .ssd_forward_triton import output_kernel
from .ssd_states_triton import states_kernel

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# Heads of 128 are right but for the gradient of D in bfloat16, which was off by 1.1 % on a GPU.
WIDEST = 64
# Programs that fill an H200 (132 multiprocessors), and the fewest chunks worth a segment of their own.
PROGRAMS, SEGMENT = 264, 8


def unsupported(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, *more: Tensor | None, z: Tensor | None = None
) -> str | None:
    """Why the kernels do not take these inputs (`more`: D, the bias of dt, the initial state), or None if they do."""
    if x.dtype not in DTYPES or any(part is not None and part.dtype != x.dtype for part in (B, C, z)):
        return "x, B, C and z must share one of float32, float16, bfloat16"
    if any(part is not None and part.dtype not in DTYPES for part in (dt, A, *more)):
        return "dt, A, D, the bias and the state must be float32, float16 or bfloat16"
    if x.shape[-1] > WIDEST or B.shape[-1] > 256:
        return f"head width must be at most {WIDEST}, states at most 256"
    largest = 16384 if x.dtype == torch.bfloat16 else 8192
    if _padded(x.shape[-1]) * _padded(B.shape[-1]) > largest:
        return f"a state of more than {largest} numbers does not fit into the registers in {x.dtype}"
    if x.numel() == 0 or B.numel() == 0:
        return "there is nothing to compute"
    if x.shape[2] % B.shape[2]:
        return "groups must divide the heads"
    return None


def _padded(width: int) -> int:
    return max(16, triton.next_power_of_2(width))


def launch_shape(kernel: str, widths: dict[str, int], precision: str) -> dict[str, int]:
    """Warps and stages of a kernel: "output", "states" or "gradient"."""
    wide = kernel == "output" and widths["BN"] > 128
    stages = 3 if kernel == "states" and precision == "bf16" else 2 if precision == "bf16" else 1
    return {"num_warps": 8 if wide else 4, "num_stages": stages}


def precision_of(dtype: torch.dtype) -> str:
    """What operands are rounded to, see `taylor_tiles`."""
    if dtype == torch.bfloat16:
        return "bf16"
    highest = dtype == torch.float32 and float32_precision() == "highest"
    return "tf32x3" if highest else "tf32"


class _Plan(NamedTuple):
    """Sizes and launch shapes of one call."""

    batch: int
    length: int
    heads: int
    groups: int
    widths: dict[str, int]
    precision: str

    @property
    def chunk(self) -> int:
        """Tokens of a chunk. Wide tiles of float32 leave room for half as many."""
        entries = self.widths["BN"] * (1 if self.precision == "bf16" else 2)
        return 64 if entries <= 128 else 32

    @property
    def chunks(self) -> int:
        return triton.cdiv(self.length, self.chunk)

    @property
    def sequences(self) -> int:
        return self.batch * self.heads

    @property
    def per_group(self) -> int:
        return self.heads // self.groups

    @property
    def state(self) -> int:
        """Entries of a padded state."""
        return self.widths["BP"] * self.widths["BN"]

    @property
    def flags(self) -> dict[str, Any]:
        return {"T": self.chunk, "EVEN": self.length % self.chunk == 0, "PRECISION": self.precision}

    def segments(self, programs: int) -> tuple[int, int]:
        """(chunks of a segment, segments) for a launch that would have `programs` programs without segments."""
        wanted = min(PROGRAMS // programs, self.chunks // SEGMENT)
        size = triton.cdiv(self.chunks, max(1, wanted))
        return size, triton.cdiv(self.chunks, size)

    def splits(self) -> tuple[int, int]:
        """(heads of a split, splits) of the heads of a group in the backward."""
        programs = self.batch * self.chunks * self.groups
        size = triton.cdiv(self.per_group, min(self.per_group, max(1, PROGRAMS // 2 // programs)))
        return size, triton.cdiv(self.per_group, size)


class _Inputs(NamedTuple):
    """The inputs, rows dense; what is missing is None."""

    x: Tensor
    dt: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor | None
    z: Tensor | None
    bias: Tensor | None
    initial: Tensor | None

    @property
    def strides(self) -> tuple[int, ...]:
        """Of x, dt, B, C."""
        return tuple(stride for part in (self.x, self.dt, self.B, self.C) for stride in part.stride()[:3])

    @property
    def plan(self) -> _Plan:
        (batch, length, heads, width), (groups, states) = self.x.shape, self.B.shape[2:]
        padded = {"BP": _padded(width), "BN": _padded(states)}
        return _Plan(batch, length, heads, groups, {"P": width, "N": states, **padded}, precision_of(self.x.dtype))


def _inputs(x, dt, A, B, C, D, z, bias, initial) -> _Inputs:
    x, B, C, z = (dense_rows(part) for part in (x, B, C, z))
    A, D, bias, initial = (part if part is None else part.contiguous() for part in (A, D, bias, initial))
    return _Inputs(x, dt, A, B, C, D, z, bias, initial)


def _or(part: Tensor | None, other: Tensor) -> Tensor:
    """A pointer that is not read stands for what is missing."""
    return other if part is None else part


def _states(
    inputs: _Inputs, plan: _Plan, softplus: bool, dy: Tensor | None, sizes: tuple[int, int], *,
    grad_final: Tensor | None = None, grad_initial: Tensor | None = None, sums: tuple[Tensor, ...] | None = None,
    keep: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    """keep: states of both directions (2,B,chunks,H,BP,BN); otherwise sums of segments and decays; dy None: forward."""
    x, widths = inputs.x, plan.widths
    blocks = {"PB": min(64, widths["BP"]), "NB": min(128, widths["BN"])}
    directions, count = (1 if dy is None else 2), plan.sequences * (plan.chunks if keep else sizes[1])
    kept_dtype = torch.bfloat16 if keep and plan.precision == "bf16" else torch.float32
    out = x.new_empty((directions * count * plan.state,), dtype=kept_dtype)
    decays = x.new_empty((0 if keep else directions * count,), dtype=torch.float32)
    before = (out, decays) if sums is None else sums
    programs = directions * plan.sequences * sizes[1] * (plan.state // (blocks["PB"] * blocks["NB"]))
    states_kernel[(programs,)](
        x, _or(dy, x), inputs.dt, inputs.A, inputs.B, inputs.C, _or(inputs.bias, inputs.A),
        _or(inputs.initial, out), _or(grad_final, out), out, *((out, decays) if not keep else before),
        _or(grad_initial, out), *inputs.strides, plan.length, plan.heads, plan.per_group, *sizes, plan.sequences,
        **widths, **blocks, **plan.flags, HAS_BIAS=inputs.bias is not None, SOFTPLUS=softplus, KEEP=keep,
        INITIAL=inputs.initial is not None, GRAD_FINAL=grad_final is not None,
        GRAD_INITIAL=grad_initial is not None, SEGMENTED=sums is not None,
        **launch_shape("states", widths, plan.precision),
    )  # fmt: skip
    return out, decays


@torch.library.custom_op("basedbench::ssd", mutates_args=())
def forward(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    initial_state: Tensor | None,
    softplus: bool,
    return_state: bool,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """y (B,L,H,P), with `keep` the same before the gate, and the state (B,H,P,N); (0,) for what is not asked."""
    inputs = _inputs(x, dt, A, B, C, D, z, dt_bias, initial_state)
    plan = inputs.plan
    y, ungated, final = _outputs_like(x, B, keep and z is not None, return_state)
    widths = plan.widths
    block = min(64, widths["BP"])
    programs = plan.sequences * (widths["BP"] // block)
    sizes = plan.segments(programs)
    sums = _states(inputs, plan, softplus, None, sizes, keep=False) if sizes[1] > 1 else (final, final)
    gate = _or(inputs.z, inputs.x)
    output_kernel[(programs * sizes[1],)](
        inputs.x, inputs.dt, inputs.A, inputs.B, inputs.C, _or(inputs.D, inputs.A), gate, _or(inputs.bias, inputs.A),
        y, ungated, _or(inputs.initial, final), final, *sums, *inputs.strides, *gate.stride()[:3],
        plan.length, plan.heads, plan.per_group, *sizes,
        **widths, **plan.flags, PB=block, HAS_D=D is not None, HAS_Z=z is not None, HAS_BIAS=dt_bias is not None,
        SOFTPLUS=softplus, KEEP=keep and z is not None, INITIAL=initial_state is not None, FINAL=return_state,
        SEGMENTED=sizes[1] > 1, STATE=plan.chunks > 1 or initial_state is not None or return_state,
        **launch_shape("output", widths, plan.precision),
    )  # fmt: skip
    return y, ungated, final


@torch.library.custom_op("basedbench::ssd_backward", mutates_args=())
def backward(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    initial_state: Tensor | None,
    ungated: Tensor,
    dy: Tensor,
    grad_state: Tensor | None,
    softplus: bool,
) -> list[Tensor]:
    """Gradients of x, dt, A, B, C, D, z, the bias and the initial state; (0,) for what there is not."""
    inputs = _inputs(x, dt, A, B, C, D, z, dt_bias, initial_state)
    plan, grads = inputs.plan, _gradients_like(x, dt, A, B, C, D, z, dt_bias, initial_state)
    dx, ddt, dA, dB, dC, dD, dz, dbias, dstate = grads
    dy = dy.contiguous()
    kept, skips = None, None
    if inputs.z is not None:
        dy, skips = _ungate(inputs, ungated, dy, dz, plan)
    if plan.chunks > 1 or inputs.initial is not None or grad_state is not None:
        grad_state = None if grad_state is None else grad_state.float().contiguous()
        kept = _kept_states(inputs, plan, softplus, dy, grad_state, None if initial_state is None else dstate)
    partials = _chunk_gradients(inputs, plan, softplus, dy, skips, kept, (dx, ddt, dB, dC))
    kinds = {"HAS_BIAS": dt_bias is not None, "HAS_D": D is not None}
    parameter_kernel[(plan.heads, 3)](
        partials, dA, dbias, dD, plan.batch * plan.chunks, plan.heads, **kinds, ROWS=1024, BLOCK=1, num_warps=8
    )
    return grads


def _ungate(inputs: _Inputs, ungated: Tensor, dy: Tensor, dz: Tensor, plan: _Plan) -> tuple[Tensor, Tensor]:
    """The gradient before the gate, and what D gets of every token (B,L,H); writes dz.

    float16 has no room for the product.
    """
    assert inputs.z is not None
    inner = torch.empty_like(dy, dtype=torch.float32 if dy.dtype == torch.float16 else dy.dtype)
    skips = dy.new_empty(dy.shape[:3] if inputs.D is not None else (0,), dtype=torch.float32)
    rows, widths = plan.length * plan.sequences, plan.widths
    tile = 4096 // widths["BP"]
    gate_kernel[(triton.cdiv(rows, tile),)](
        dy, ungated, inputs.z, inputs.x, inner, dz, skips, *inputs.z.stride()[:3], *inputs.x.stride()[:3],
        plan.length, plan.heads, rows,
        P=widths["P"], BP=widths["BP"], T=tile, HAS_D=inputs.D is not None, num_warps=4,
    )  # fmt: skip
    return inner, skips


def _kept_states(
    inputs: _Inputs, plan: _Plan, softplus: bool, dy: Tensor, grad_final: Tensor | None, grad_initial: Tensor | None
) -> Tensor:
    """What every chunk receives from either side. Writes `grad_initial`."""
    sizes = plan.segments(2 * plan.sequences)
    sums = _states(inputs, plan, softplus, dy, sizes, keep=False) if sizes[1] > 1 else None
    ends = {"grad_final": grad_final, "grad_initial": grad_initial}
    return _states(inputs, plan, softplus, dy, sizes, **ends, sums=sums, keep=True)[0]


def _chunk_gradients(
    inputs: _Inputs,
    plan: _Plan,
    softplus: bool,
    dy: Tensor,
    skips: Tensor | None,
    kept: Tensor | None,
    grads: tuple[Tensor, ...],
) -> Tensor:
    """Writes dx, ddt, dB, dC; returns the sums (B,chunks,3,H) for A, the bias and D."""
    dx, ddt, dB, dC = grads
    per_split, splits = plan.splits()
    shared = (dB, dC) if splits == 1 else tuple(x.new_empty((splits, *x.shape), dtype=torch.float32) for x in (dB, dC))
    partials = dy.new_empty((plan.batch, plan.chunks, 3, plan.heads), dtype=torch.float32)
    together = plan.widths["BN"] <= 32
    waits = kept is not None and not together
    extra = partials.new_empty((plan.sequences * plan.chunks * plan.chunk,)) if waits else partials
    for into_B, into_C in ((True, True),) if together else ((False, True), (True, False)):
        gradient_kernel[(splits * plan.batch * plan.chunks * plan.groups,)](
            inputs.x, dy, inputs.dt, inputs.A, inputs.B, inputs.C, _or(inputs.D, inputs.A), _or(inputs.bias, inputs.A),
            _or(kept, partials), extra, _or(skips, partials), dx, ddt, *shared, partials, *inputs.strides,
            plan.length, plan.heads, plan.per_group, per_split, plan.groups, plan.batch,
            **plan.widths, **plan.flags, HAS_D=inputs.D is not None, HAS_BIAS=inputs.bias is not None,
            SOFTPLUS=softplus, STATE=kept is not None, INTO_B=into_B, INTO_C=into_C, GATED=skips is not None,
            **launch_shape("gradient", plan.widths, plan.precision),
        )  # fmt: skip
    if splits > 1:
        dB.copy_(shared[0].sum(0))
        dC.copy_(shared[1].sum(0))
    return partials


def _outputs_like(x: Tensor, B: Tensor, ungated: bool, state: bool) -> tuple[Tensor, Tensor, Tensor]:
    batch, _, heads, width = x.shape
    return (
        x.new_empty(x.shape),
        x.new_empty(x.shape if ungated else (0,)),
        x.new_empty((batch, heads, width, B.shape[-1]) if state else (0,), dtype=torch.float32),
    )


def _gradients_like(x: Tensor, *inputs: Tensor | None) -> list[Tensor]:
    return [x.new_empty((0,)) if part is None else part.new_empty(part.shape) for part in (x, *inputs)]


@forward.register_fake
def _(x, dt, A, B, C, D, z, dt_bias, initial_state, softplus, return_state, keep):
    return _outputs_like(x, B, keep and z is not None, return_state)


@backward.register_fake
def _(x, dt, A, B, C, D, z, dt_bias, initial_state, ungated, dy, grad_state, softplus):
    return _gradients_like(x, dt, A, B, C, D, z, dt_bias, initial_state)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    *tensors, ctx.softplus, return_state, _ = inputs
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(*(output[1:2] if return_state else output[1:]))
    ctx.save_for_backward(*tensors, output[1])


def _backward(ctx: Any, dy: Tensor | None, _: Tensor | None, grad_state: Tensor | None) -> tuple[Tensor | None, ...]:
    *tensors, ungated = ctx.saved_tensors
    dy = torch.zeros_like(tensors[0]) if dy is None else dy
    grads = backward(*tensors, ungated, dy, grad_state, ctx.softplus)
    given = (None if part is None else grad for part, grad in zip(tensors, grads, strict=True))
    return *given, None, None, None


forward.register_autograd(_backward, setup_context=_save)


def ssd(
    x_BLHP: Tensor,
    dt_BLH: Tensor,
    A_H: Tensor,
    B_BLGN: Tensor,
    C_BLGN: Tensor,
    *,
    D_H: Tensor | None = None,
    z_BLHP: Tensor | None = None,
    dt_bias_H: Tensor | None = None,
    dt_softplus: bool = False,
    initial_state: Tensor | None = None,
    return_state: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """The public function of `ssd`, for inputs that `unsupported` has no reason against."""
    tensors = (x_BLHP, dt_BLH, A_H, B_BLGN, C_BLGN, D_H, z_BLHP, dt_bias_H, initial_state)
    # Only gradients need y before the gate.
    keep = torch.is_grad_enabled() and any(part is not None and part.requires_grad for part in tensors)
    y, _, state = forward(*tensors, dt_softplus, return_state, keep)
    return (y, state) if return_state else y
