"""taylor_attention on a GPU: the torch operators around the Triton kernels, and which inputs they take.

Up to QUADRATIC_LENGTH tokens a sequence is one segment and no state exists. Longer ones, and those that begin with a
state, go through states: the forward to `taylor_gluon` where that takes them, otherwise they are cut into segments:
sums of each, running sums, outputs; every step runs in parallel over the sequence. Launch shapes are fixed by the class
of the inputs (widths, dtype), never tuned at run time.

float32 inputs follow torch.get_float32_matmul_precision(): "highest" keeps float32's accuracy (three tf32 products),
everything else takes tf32.
"""

# mypy: allow-untyped-defs

import math
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from . import taylor_backward_gluon, taylor_gluon
from .dense_rows import dense_rows
from .differentiated import differentiated
from .offsets import LIMIT, fit
from .precision import precision_of
from .slices import gradients_like
from .taylor_backward_triton import grad_key_value_kernel, grad_query_kernel
from .taylor_forward_triton import output_kernel
from .taylor_states_triton import running_state_kernel, segment_state_kernel

TILE = 64
# Measured on an H200: one quadratic block costs 0.149 ns per token-head at 512 tokens, 0.224 at 1,024.
QUADRATIC_LENGTH = 512
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def unsupported(
    q_BLHK: Tensor, k_BLHK: Tensor, v_BLHV: Tensor, initial_state: Tensor | None, state: bool
) -> str | None:
    """Why the kernels do not take these inputs, or None if they do."""
    key_dim, value_dim = q_BLHK.shape[-1], v_BLHV.shape[-1]
    if v_BLHV.dtype not in DTYPES or not q_BLHK.dtype == k_BLHK.dtype == v_BLHV.dtype:
        return "q, k and v must share one of float32, float16, bfloat16"
    widest = 256 if v_BLHV.dtype == torch.bfloat16 else 128
    if key_dim % 8 or key_dim > 32 or value_dim > widest:
        return f"key width must be 8, 16, 24 or 32, value width at most {widest}"
    if v_BLHV.numel() == 0:
        return "there is nothing to compute"
    states_differentiable = initial_state is not None and initial_state.requires_grad
    inputs_differentiable = any(x.requires_grad for x in (q_BLHK, k_BLHK, v_BLHV))
    if torch.is_grad_enabled() and (states_differentiable or (state and inputs_differentiable)):
        return "gradients do not pass through states"
    if not fit(q_BLHK, k_BLHK, v_BLHV) and not _by_maps(
        q_BLHK, k_BLHK, v_BLHV, torch.is_grad_enabled() and inputs_differentiable
    ):
        return "offsets in a sequence have 32 bits"
    return None


def _by_maps(q: Tensor, k: Tensor, v: Tensor, differentiable: bool) -> bool:
    """Whether the kernels that read by tensor maps take a long sequence: 32 bits are only where dq and dk go."""
    if differentiable and (v.shape[-1] > 64 or math.prod(q.shape[1:]) > LIMIT):
        return False
    return taylor_gluon.unsupported(q, k, v) is None


class _Plan(NamedTuple):
    """Sizes and launch shape of one call."""

    batch: int
    length: int
    heads: int
    segment: int
    segments: int
    sizes: dict[str, int]
    precision: str

    @property
    def entries(self) -> int:
        """Entries of a segment's state without its moments."""
        return (self.sizes["PAIRS"] * 64 + self.sizes["BL"]) * self.sizes["BV"]

    @property
    def blocks(self) -> tuple[int]:
        return (self.batch * self.heads * triton.cdiv(self.length, TILE),)

    @property
    def scalars(self) -> tuple[int, int, int, int]:
        return self.length, self.heads, self.segment, self.segments

    @property
    def more_scalars(self) -> tuple[int, float]:
        return self.sizes["PAIRS"], self.sizes["K"] ** -0.5

    @property
    def options(self) -> dict[str, Any]:
        return {
            "EVEN": self.length % TILE == 0,
            "PRECISION": self.precision,
            "T": TILE,
            "num_warps": 8 if self.sizes["BV"] > 128 else 4,
            "num_stages": 3 if self.precision == "bf16" else 2,
        }


def _plan(q: Tensor, v: Tensor, precision: str, *, through_state: bool) -> _Plan:
    batch, length, heads, keys = q.shape
    values, pairs = v.shape[-1], (keys // 8) * (keys // 8 + 1) // 2
    sizes = {
        "K": keys,
        "V": values,
        "BK": max(16, triton.next_power_of_2(keys)),
        "BV": max(16, triton.next_power_of_2(values)),
        "BL": triton.next_power_of_2(keys + 8),
        "PAIRS": pairs,
    }
    one_segment = length <= QUADRATIC_LENGTH and not through_state
    segment = triton.cdiv(length, TILE) * TILE if one_segment else 256 if keys <= 16 else 512
    return _Plan(batch, length, heads, segment, triton.cdiv(length, segment), sizes, precision)


def _states(
    x: Tensor,
    w: Tensor,
    inverse: Tensor,
    delta: Tensor,
    plan: _Plan,
    *,
    reverse: bool,
    initial: Tensor | None = None,
    final: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """What each segment receives: states (N,S,entries) as operands, moments (N,S,BL,BL); `final` is written."""
    sizes, count = plan.sizes, plan.batch * plan.heads * plan.segments
    sums = torch.empty(count, plan.entries, dtype=torch.float32, device=x.device)
    moment_sums = torch.empty(count, sizes["BL"] ** 2, dtype=torch.float32, device=x.device)
    segment_state_kernel[(count * (sizes["PAIRS"] + 1),)](
        x, w, inverse, delta, sums, moment_sums, *x.stride()[:3], *w.stride()[:3], *plan.scalars,
        **sizes, **plan.options, REVERSE=reverse,
    )  # fmt: skip
    states = torch.empty_like(sums, dtype=torch.bfloat16 if plan.precision == "bf16" else torch.float32)
    moments = torch.empty_like(moment_sums)
    block = 512
    parts = triton.cdiv(plan.entries, block) + triton.cdiv(sizes["BL"] ** 2, block)
    running_state_kernel[(plan.batch * plan.heads, parts)](
        sums, moment_sums, states, moments, sums if initial is None else initial, sums if final is None else final,
        plan.segments, **{name: sizes[name] for name in ("K", "V", "BV", "BL", "PAIRS")},
        REVERSE=reverse, INITIAL=initial is not None, FINAL=final is not None, BLOCK=block, num_warps=4,
    )  # fmt: skip
    return states, moments


def _strides(*tensors: Tensor) -> tuple[int, ...]:
    return tuple(stride for tensor in tensors for stride in tensor.stride()[:3])


@torch.library.custom_op("basedbench::taylor_attention", mutates_args=())
def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    initial_state: Tensor | None,
    return_state: bool,
    precision: str,
    keep_inverse: bool = True,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """y (B,L,H,V), 1 / z (B,H,L) in float32, the state (B,H,F,V+1), and the states that segments begin with.

    Gradients need the second and the last. What is not wanted is nothing, (0,).
    """
    q, k, v = dense_rows(q), dense_rows(k), dense_rows(v)
    plan = _plan(q, v, precision, through_state=initial_state is not None)
    y = torch.empty(v.shape, dtype=v.dtype, device=v.device)
    inverse, state = _inverse_like(q, keep_inverse), _state_like(q, v, return_state)
    slots = _slots_like(q, v, keep_inverse)
    initial = None if initial_state is None else initial_state.float().contiguous()
    use_states = initial_state is not None or plan.segments > 1
    if use_states and taylor_gluon.unsupported(q, k, v) is None:
        taylor_gluon.forward(
            q, k, v, initial, y, inverse if keep_inverse else None, state if return_state else None,
            slots if slots.numel() else None,
        )  # fmt: skip
        return y, inverse, state, slots
    # None are kept. A backward whose q, k or v have other strides (saved tensors may be moved) could look for them: it
    # shall show. Not by NaN, for torch compares outputs.
    if slots.numel():
        slots.fill_(torch.inf)
    states, moments = inverse, inverse
    if use_states or return_state:
        states, moments = _states(
            k, v, inverse, inverse, plan, reverse=False, initial=initial, final=state if return_state else None
        )
    output_kernel[plan.blocks](
        q, k, v, y, inverse, states, moments, *_strides(q, k, v), *plan.scalars, *plan.more_scalars,
        **plan.sizes, **plan.options, STATE=use_states, INVERSE=keep_inverse,
    )  # fmt: skip
    return y, inverse, state, slots


@torch.library.custom_op("basedbench::taylor_attention_backward", mutates_args=("dq", "dk", "dv"))
def attention_backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    initial_state: Tensor | None,
    y: Tensor,
    inverse: Tensor,
    slots: Tensor,
    dy: Tensor,
    precision: str,
    dq: Tensor,
    dk: Tensor,
    dv: Tensor,
) -> None:
    """Writes dq, dk (B,L,H,K), dv (B,L,H,V), which `_rooms` made."""
    q, k, v, dy = dense_rows(q), dense_rows(k), dense_rows(v), dy.contiguous()
    plan = _plan(q, v, precision, through_state=initial_state is not None)
    delta = torch.empty_like(inverse)
    use_states = initial_state is not None or plan.segments > 1
    initial = None if initial_state is None else initial_state.float().contiguous()
    if use_states and taylor_backward_gluon.unsupported(q, k, v, y, dy) is None:
        taylor_backward_gluon.backward(q, k, v, initial, y, inverse, dy, delta, dq, dk, dv, slots)
        return
    states, moments = inverse, inverse
    if use_states:
        states, moments = _states(k, v, inverse, inverse, plan, reverse=False, initial=initial)
    common = {**plan.sizes, **plan.options, "STATE": use_states}
    grad_query_kernel[plan.blocks](
        q, k, v, y, dy, inverse, delta, dq, states, moments, *_strides(q, k, v, dq), *plan.scalars, *plan.more_scalars,
        **common,
    )  # fmt: skip
    if use_states:
        states, moments = _states(q, dy, inverse, delta, plan, reverse=True)
    grad_key_value_kernel[plan.blocks](
        q, k, v, dy, inverse, delta, dk, dv, states, moments, *_strides(q, k, v, dk, dv), *plan.scalars,
        *plan.more_scalars, **common,
    )  # fmt: skip


def _rooms(q: Tensor, k: Tensor, v: Tensor, initial_state: Tensor | None) -> list[Tensor]:
    """For dq, dk and dv: slices only where no states are, whose kernels may write by descriptors."""
    if initial_state is None and q.shape[1] <= QUADRATIC_LENGTH:
        return gradients_like(q, k, v)
    return [torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v)]


def _inverse_like(q: Tensor, kept: bool) -> Tensor:
    batch, length, heads, _ = q.shape
    return q.new_empty((batch, heads, length) if kept else (0,), dtype=torch.float32)


def _state_like(q: Tensor, v: Tensor, return_state: bool) -> Tensor:
    if not return_state:
        return q.new_empty((0,), dtype=torch.float32)
    batch, _, heads, keys = q.shape
    features = 1 + keys + keys * (keys + 1) // 2
    return q.new_empty((batch, heads, features, v.shape[-1] + 1), dtype=torch.float32)


def _slots_like(q: Tensor, v: Tensor, kept: bool) -> Tensor:
    """Where the Gluon forward keeps states for the Gluon backward: by sizes and dtype alone, whatever kernels run."""
    batch, length, heads, keys = q.shape
    cut = taylor_gluon.plan(batch, length, heads, v.shape[-1])
    kept = kept and cut.segments > 1 and keys == 16 and v.dtype == torch.bfloat16 and v.shape[-1] <= 64
    return q.new_empty(taylor_gluon.slots_shape(cut) if kept else (0,), dtype=torch.float32)


@attention.register_fake
def _(q, k, v, initial_state, return_state, precision, keep_inverse=True):
    y, inverse, state = v.new_empty(v.shape), _inverse_like(q, keep_inverse), _state_like(q, v, return_state)
    return y, inverse, state, _slots_like(q, v, keep_inverse)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
    q, k, v, initial_state, _, ctx.precision, _ = inputs
    y, inverse, state, slots = output
    ctx.mark_non_differentiable(inverse, state, slots)
    ctx.set_materialize_grads(False)  # otherwise zeros for them would be written
    ctx.save_for_backward(q, k, v, initial_state, y, inverse, slots)


def _backward(ctx: Any, dy: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    q, k, v, initial_state, y, inverse, slots = ctx.saved_tensors
    found = _rooms(q, k, v, initial_state)
    attention_backward(q, k, v, initial_state, y, inverse, slots, dy, ctx.precision, *found)
    return *found, None, None, None, None


attention.register_autograd(_backward, setup_context=_save)


def taylor_attention(
    q_BLHK: Tensor,
    k_BLHK: Tensor,
    v_BLHV: Tensor,
    *,
    initial_state: Tensor | None = None,
    return_state: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """The public function of `taylor_attention`, for inputs that `unsupported` has no reason against."""
    precision = precision_of(v_BLHV.dtype)
    gradients = differentiated(q_BLHK, k_BLHK, v_BLHV)
    y, _, state, _ = attention(q_BLHK, k_BLHK, v_BLHV, initial_state, return_state, precision, gradients)
    return (y, state) if return_state else y
