"""ssd on a GPU: the torch operators around the Triton kernels, and which inputs they take.

Forward: one kernel walks over the chunks of a sequence and head. Backward: one launch leaves the states between chunks,
forward and in reverse; a second takes all chunks at once; a third adds the parameters' sums. A sequence of one chunk
has no states. Where states are narrow and sequences many, as in recall, other kernels take both ways: `ssd_walk`.

float32 inputs follow torch.get_float32_matmul_precision(): "highest" keeps float32's accuracy (three tf32 products),
everything else takes tf32. float16 takes tf32 too: what the products are made of passes 65504 soon.
"""

# mypy: allow-untyped-defs

from typing import Any

import torch
import triton
from torch import Tensor

from .dense_rows import either
from .differentiated import differentiated
from .packing import Packing
from .ssd_backward_triton import gate_kernel, gradient_kernel, parameter_kernel
from .ssd_forward_triton import output_kernel
from .ssd_plan import Inputs, Plan, dense_inputs, launch_shape, padded, plan_of
from .ssd_states_triton import states_kernel
from .ssd_walk import walk_back, walk_forward

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# Heads of 128 are right but for the gradient of D in bfloat16, which was off by 1.1 % on a GPU.
WIDEST = 64


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
    if padded(x.shape[-1]) * padded(B.shape[-1]) > largest:
        return f"a state of more than {largest} numbers does not fit into the registers in {x.dtype}"
    if x.numel() == 0 or B.numel() == 0:
        return "there is nothing to compute"
    if x.shape[2] % B.shape[2]:
        return "groups must divide the heads"
    return None


def _states(
    inputs: Inputs, plan: Plan, softplus: bool, dy: Tensor | None, sizes: tuple[int, int], *,
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
        x, either(dy, x), inputs.dt, inputs.A, inputs.B, inputs.C, either(inputs.bias, inputs.A),
        either(inputs.initial, out), either(grad_final, out), out, *((out, decays) if not keep else before),
        either(grad_initial, out), *inputs.strides, plan.length, plan.heads, plan.per_group, *sizes, plan.sequences,
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
    """y (B,L,H,P), what `keep` keeps for the backward, and the state (B,H,P,N); (0,) for what is not asked.

    Kept is y before the gate, or, for walks, the states before the chunks (B,H,chunks,P,N).
    """
    inputs = dense_inputs(x, dt, A, B, C, D, z, dt_bias, initial_state)
    plan = inputs.plan
    y, kept, final = outputs_like(x, B, z, keep, return_state)
    if plan.walks:
        walk_forward(inputs, plan, softplus, y, kept if keep else None, final if return_state else None)
        return y, kept, final
    widths = plan.widths
    block = min(64, widths["BP"])
    programs = plan.sequences * (widths["BP"] // block)
    sizes = plan.segments(programs)
    sums = _states(inputs, plan, softplus, None, sizes, keep=False) if sizes[1] > 1 else (final, final)
    gate = either(inputs.z, inputs.x)
    output_kernel[(programs * sizes[1],)](
        inputs.x, inputs.dt, inputs.A, inputs.B, inputs.C, either(inputs.D, inputs.A), gate,
        either(inputs.bias, inputs.A), y, kept, either(inputs.initial, final), final, *sums, *inputs.strides,
        *gate.stride()[:3], plan.length, plan.heads, plan.per_group, *sizes,
        **widths, **plan.flags, PB=block, HAS_D=D is not None, HAS_Z=z is not None, HAS_BIAS=dt_bias is not None,
        SOFTPLUS=softplus, KEEP=keep and z is not None, INITIAL=initial_state is not None, FINAL=return_state,
        SEGMENTED=sizes[1] > 1, STATE=plan.chunks > 1 or initial_state is not None or return_state,
        **launch_shape("output", widths, plan.precision),
    )  # fmt: skip
    return y, kept, final


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
    kept: Tensor,
    dy: Tensor,
    grad_state: Tensor | None,
    softplus: bool,
) -> list[Tensor]:
    """Gradients of x, dt, A, B, C, D, z, the bias and the initial state; (0,) for what there is not."""
    inputs = dense_inputs(x, dt, A, B, C, D, z, dt_bias, initial_state)
    plan, grads = inputs.plan, _gradients_like(x, dt, A, B, C, D, z, dt_bias, initial_state)
    dx, ddt, dA, dB, dC, dD, dz, dbias, dstate = grads
    dy = dy.contiguous()
    ends = (
        None if grad_state is None else grad_state.float().contiguous(),
        None if initial_state is None else dstate,
    )
    if plan.walks:
        partials = walk_back(inputs, plan, softplus, dy, kept, *ends, (dx, dz, ddt, dB, dC))
    else:
        states, skips = None, None
        if inputs.z is not None:
            dy, skips = _ungate(inputs, kept, dy, dz, plan)
        if plan.chunks > 1 or inputs.initial is not None or grad_state is not None:
            states = _kept_states(inputs, plan, softplus, dy, *ends)
        partials = _chunk_gradients(inputs, plan, softplus, dy, skips, states, (dx, ddt, dB, dC))
    add_parameters(inputs, plan, partials, dA, dbias, dD)
    return grads


def add_parameters(inputs: Inputs, plan: Plan, partials: Tensor, dA: Tensor, dbias: Tensor, dD: Tensor) -> None:
    """Writes the gradients of A, the bias and D: the sums of what programs left (...,3,H)."""
    kinds = {"HAS_BIAS": inputs.bias is not None, "HAS_D": inputs.D is not None}
    rows = partials.numel() // (3 * plan.heads)
    parameter_kernel[(plan.heads, 3)](
        partials, dA, dbias, dD, rows, plan.heads, **kinds, ROWS=1024, BLOCK=1, num_warps=8
    )


def _ungate(inputs: Inputs, ungated: Tensor, dy: Tensor, dz: Tensor, plan: Plan) -> tuple[Tensor, Tensor]:
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
    inputs: Inputs, plan: Plan, softplus: bool, dy: Tensor, grad_final: Tensor | None, grad_initial: Tensor | None
) -> Tensor:
    """What every chunk receives from either side. Writes `grad_initial`."""
    sizes = plan.segments(2 * plan.sequences)
    sums = _states(inputs, plan, softplus, dy, sizes, keep=False) if sizes[1] > 1 else None
    ends = {"grad_final": grad_final, "grad_initial": grad_initial}
    return _states(inputs, plan, softplus, dy, sizes, **ends, sums=sums, keep=True)[0]


def _chunk_gradients(
    inputs: Inputs,
    plan: Plan,
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
            inputs.x, dy, inputs.dt, inputs.A, inputs.B, inputs.C, either(inputs.D, inputs.A),
            either(inputs.bias, inputs.A), either(kept, partials), extra, either(skips, partials), dx, ddt,
            *shared, partials, *inputs.strides,
            plan.length, plan.heads, plan.per_group, per_split, plan.groups, plan.batch,
            **plan.widths, **plan.flags, HAS_D=inputs.D is not None, HAS_BIAS=inputs.bias is not None,
            SOFTPLUS=softplus, STATE=kept is not None, INTO_B=into_B, INTO_C=into_C, GATED=skips is not None,
            **launch_shape("gradient", plan.widths, plan.precision),
        )  # fmt: skip
    if splits > 1:
        dB.copy_(shared[0].sum(0))
        dC.copy_(shared[1].sum(0))
    return partials


def outputs_like(
    x: Tensor, B: Tensor, z: Tensor | None, keep: bool, state: bool, packing: Packing | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """What `forward` returns, not yet written; of packed examples as many chunks as the longest has."""
    _, _, heads, width = x.shape
    plan, one = plan_of(x, B, packing), (width, B.shape[-1])
    if keep and plan.walks:
        dtype = torch.bfloat16 if plan.precision == "bf16" else torch.float32
        kept = x.new_empty((plan.batch, heads, plan.chunks, *one), dtype=dtype)
    else:
        kept = x.new_empty(x.shape if keep and z is not None else (0,))
    return x.new_empty(x.shape), kept, x.new_empty((plan.batch, heads, *one) if state else (0,), dtype=torch.float32)


def _gradients_like(x: Tensor, *inputs: Tensor | None) -> list[Tensor]:
    return [x.new_empty((0,)) if part is None else part.new_empty(part.shape) for part in (x, *inputs)]


@forward.register_fake
def _(x, dt, A, B, C, D, z, dt_bias, initial_state, softplus, return_state, keep):
    return outputs_like(x, B, z, keep, return_state)


@backward.register_fake
def _(x, dt, A, B, C, D, z, dt_bias, initial_state, kept, dy, grad_state, softplus):
    return _gradients_like(x, dt, A, B, C, D, z, dt_bias, initial_state)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    *tensors, ctx.softplus, return_state, _ = inputs
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(*(output[1:2] if return_state else output[1:]))
    ctx.save_for_backward(*tensors, output[1])


def _backward(ctx: Any, dy: Tensor | None, _: Tensor | None, grad_state: Tensor | None) -> tuple[Tensor | None, ...]:
    *tensors, kept = ctx.saved_tensors
    dy = torch.zeros_like(tensors[0]) if dy is None else dy
    grads = backward(*tensors, kept, dy, grad_state, ctx.softplus)
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
    keep = differentiated(*tensors)
    y, _, state = forward(*tensors, dt_softplus, return_state, keep)
    return (y, state) if return_state else y
