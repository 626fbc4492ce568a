"""The gated delta rule and gated linear attention on a GPU: torch operators around the Triton kernels.

Forward: scores of all chunks at once, then a walk over the chunks of every sequence, head and block of values.
Backward: a walk from the end, then all chunks at once. Between the launches, in float32: scores, with decays q^, k^, a^
and b^, and for the backward the states before and behind each chunk (bfloat16 for such inputs), u and p.

Why chunks and not a fused recurrence. With K = V = 64, per token and head: the recurrence is 9 K V = 37 thousand
operations on vector units forward, one step after the other, each thread reading 5 K numbers a token; its backward sums
over threads for every number of dq, dk, da and db. In chunks of T = 16, 8 K V + 8 T (K + V) = 49 thousand are products
for the matrix units (in float32 three times as many), a sixteenth of the steps wait for each other, and all but the
walks takes every chunk at once. More tokens a chunk would have the quadratic part and the inverse pass the rest; fewer
states would be kept: 8 K V / T = 2 kB a token in float32, next to 1.5 kB of inputs and output and, with decays of
channels, 1 kB of q^, k^, a^ and b^.

All sums are in float32. float16 and float32 with torch.get_float32_matmul_precision() = "highest" keep float32's
accuracy (three products), other float32 takes tf32. bfloat16 inputs take chunks of 32 tokens (512 bytes of states a
token) and products of bfloat16, exact for the inputs themselves. What is made of them and rounded once more costs as
much as rounding the outputs; where more than one such rounding would meet (u and p, and what they are made of and give
to the states and to da and db), one factor is two numbers of bfloat16, and with decays of channels scores are products
of tf32. Launch shapes are fixed by the widths, never tuned at run time.
"""

# mypy: allow-untyped-defs

from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from . import delta_autograd
from .delta_rule_backward_triton import reverse_kernel
from .delta_rule_forward_triton import output_kernel
from .delta_rule_gradient_triton import gradient_kernel
from .delta_rule_mild_triton import mild_gradient_kernel, mild_scores_kernel
from .delta_rule_scores_triton import scores_kernel
from .delta_rule_stacked_triton import stacked_gradient_kernel
from .dense_rows import dense_rows
from .differentiated import differentiated, once_differentiable
from .precision import float32_precision

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
WIDEST = 128  # keys
FEW = 264  # programs of a walk that all run at once, two on a multiprocessor; half of them with wide keys


def unsupported(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor | None = None,
    b: Tensor | None = None,
    g: Tensor | None = None,
    initial_state: Tensor | None = None,
) -> str | None:
    """Why the kernels do not take these inputs, or None if they do."""
    if v.dtype not in DTYPES or any(part is not None and part.dtype != v.dtype for part in (q, k, a, b)):
        return "q, k, v, a and b must share one of float32, float16, bfloat16"
    if any(part is not None and part.dtype not in DTYPES for part in (g, initial_state)):
        return "the decays and the state must be float32, float16 or bfloat16"
    if (a is None) != (b is None):
        return "a and b come together"
    if g is not None and g.shape[-1] not in (1, q.shape[-1]):
        return "decays are one a head or one a channel"
    if q.shape[-1] > WIDEST:
        return f"keys must be at most {WIDEST} wide"
    if q.numel() == 0 or v.numel() == 0:
        return "there is nothing to compute"
    return None


def _padded(width: int) -> int:
    return max(16, triton.next_power_of_2(width))


def precision_of(dtype: torch.dtype) -> str:
    """What operands are rounded to, see `taylor_tiles`. float16 keeps more digits than one product of tf32 would."""
    if dtype == torch.bfloat16:
        return "bf16"
    exact = dtype == torch.float16 or (dtype == torch.float32 and float32_precision() == "highest")
    return "tf32x3" if exact else "tf32"


def chunk_tokens(dtype: torch.dtype) -> int:
    """Tokens of a chunk, a power of two."""
    return 32 if dtype == torch.bfloat16 else 16


def level_precision(precision: str) -> str:
    """Of products of decayed rows: rounded to 8 bits before and once more after, scores would lose too much."""
    return "tf32" if precision == "bf16" else precision


def launch_shape(widths: dict[str, int], programs: int, precision: str) -> dict[str, int]:
    """Warps and stages of a walk: 16 rows are what one warp multiplies, here as many values.

    The next chunk should be fetched behind this one's work: a walk waits for its products, not for memory too. With two
    stages the compiler fetches it when that work is done, and waits at once; but three programs fit a multiprocessor
    then, and wait in turns, where there are as many. Of keys wider than 64 three stages fill a multiprocessor.
    """
    few = FEW if widths["BK"] <= 64 else FEW // 2
    alone = programs <= few and precision == "bf16"
    return {"num_warps": widths["BV"] // 16, "num_stages": 3 if alone else 2}


def value_block(keys: int, dtype: torch.dtype) -> int:
    """Values of a walk's program. 64 are rows of the matrix units' warpgroup products, with less in registers."""
    return 64 if keys > 64 or dtype == torch.bfloat16 else 32


class _Inputs(NamedTuple):
    """The inputs, rows dense; what is missing is None."""

    q: Tensor
    k: Tensor
    v: Tensor
    a: Tensor | None
    b: Tensor | None
    g: Tensor | None
    initial: Tensor | None

    @property
    def widths(self) -> dict[str, int]:
        """K, V and what they are padded to: BK, and VP in blocks of BV."""
        keys, values = self.q.shape[-1], self.v.shape[-1]
        block = min(value_block(keys, self.v.dtype), _padded(values))
        return {"K": keys, "V": values, "BK": _padded(keys), "BV": block, "VP": triton.cdiv(values, block) * block}

    @property
    def flags(self) -> dict[str, Any]:
        gate = "none" if self.g is None else "head" if self.g.shape[-1] == 1 else "channel"
        even = self.q.shape[1] % self.tokens == 0
        precision = precision_of(self.v.dtype)
        return {"T": self.tokens, "EVEN": even, "GATE": gate, "RANK": self.a is not None, "PRECISION": precision}

    @property
    def tokens(self) -> int:
        """Of a chunk."""
        return chunk_tokens(self.v.dtype)

    @property
    def chunks(self) -> int:
        """Of all sequences and heads."""
        batch, length, heads = self.q.shape[:3]
        return batch * heads * triton.cdiv(length, self.tokens)

    @property
    def sizes(self) -> tuple[int, int]:
        return self.q.shape[1], self.q.shape[2]

    def pointers(self, names: str) -> list[Tensor]:
        """q stands for what is missing, and is not read."""
        parts = (getattr(self, name) for name in names)
        return [self.q if part is None else part for part in parts]

    def strides(self, names: str) -> list[int]:
        return [stride for part in self.pointers(names) for stride in part.stride()[:3]]


def _inputs(q, k, v, a, b, g, initial) -> _Inputs:
    q, k, v = (dense_rows(part) for part in (q, k, v))
    a, b, g = (dense_rows(part) for part in (a, b, g))
    return _Inputs(q, k, v, a, b, g, None if initial is None else initial.contiguous())


def _walk_shape(inputs: _Inputs) -> tuple[tuple[int], dict[str, Any]]:
    """Grid and constants of a walk."""
    widths, flags = inputs.widths, inputs.flags
    programs = inputs.q.shape[0] * inputs.q.shape[2] * (widths["VP"] // widths["BV"])
    return (programs,), {**widths, **flags, **launch_shape(widths, programs, flags["PRECISION"])}


def _for_walks(inputs: _Inputs, decayed: Tensor) -> _Inputs:
    """The inputs with q^, k^, a^ and b^ for q, k, a and b where there are decays of channels."""
    if inputs.flags["GATE"] != "channel":
        return inputs
    return inputs._replace(**dict(zip("qkab", decayed, strict=False)))


def chunk_tile(kernel: str, widths: dict[str, int], gate: str, precision: str) -> dict[str, int]:
    """Keys and values at a time, and warps, of a kernel that takes all chunks at once: "scores" or "gradient"."""
    if precision == "bf16":
        # With decays of channels these are the chunks that are not mild: few, and many instructions for each number.
        keys, values = (16, 32) if gate == "channel" else (64, 64)
        tile = {"KB": min(keys, widths["BK"]), "num_stages": 1}
        if kernel == "scores":  # products that follow each other share out rows alone: four warps would repeat two's
            return tile | {"num_warps": 2}
        return tile | {"BV": min(values, widths["BV"]), "num_warps": 4}
    keys, values, warps, stages = 32 if gate == "none" else 16, 16, 1, 1
    if kernel == "gradient" and gate != "channel":  # fewer instructions for each number of a state
        keys, values, warps, stages = 32, 32, 2, 2
    tile = {"KB": min(keys, widths["BK"]), "num_warps": warps, "num_stages": stages}
    return tile | {"BV": min(values, widths["BV"])} if kernel == "gradient" else tile


def _splits(inputs: _Inputs) -> bool:
    """Whether mild chunks have kernels of their own, with which the others start: they skip what is mild."""
    return bool(inputs.flags["GATE"] == "channel" and inputs.flags["PRECISION"] == "bf16")


def _stacks(inputs: _Inputs) -> bool:
    """Whether `stacked_gradient_kernel` has the gradients, where there are decays of channels those of mild chunks."""
    return bool(inputs.flags["RANK"] and inputs.flags["PRECISION"] == "bf16")


def _chunk_constants(inputs: _Inputs, name: str) -> dict[str, Any]:
    """Constants of a kernel of any decays that takes all chunks at once, "scores" or "gradient"."""
    flags, levels = inputs.flags, inputs.tokens.bit_length() - 1
    constants = {"LEVELS": levels, "LEVEL_PRECISION": level_precision(flags["PRECISION"]), "STRONG": _splits(inputs)}
    return flags | constants | chunk_tile(name, inputs.widths, flags["GATE"], flags["PRECISION"])


def _mild_constants(inputs: _Inputs, name: str, *missing: str) -> dict[str, Any]:
    """Those of the kernels of mild chunks, but for `missing`."""
    constants = _chunk_constants(inputs, name) | mild_tile(name, inputs.widths)
    return {key: value for key, value in constants.items() if key not in ("GATE", "STRONG", *missing)}


def mild_tile(kernel: str, widths: dict[str, int]) -> dict[str, int]:
    """`chunk_tile` of the kernels of mild chunks: all keys at once, but for what the scores of wide ones spill."""
    wide = widths["BK"] > 64
    if kernel == "scores":
        return {"KB": 32 if wide else widths["BK"], "num_warps": 2, "num_stages": 1}
    return {"KB": widths["BK"], "BV": min(64, widths["BV"]), "num_warps": max(2, widths["BK"] // 16), "num_stages": 1}


def stacked_shape(inputs: _Inputs) -> dict[str, Any]:
    """Its constants: with decays of channels, for which it has most to hold, at most 64 keys a program."""
    widths, flags = inputs.widths, inputs.flags
    keys = min(64, widths["BK"]) if flags["GATE"] == "channel" else widths["BK"]
    shape = {"KB": keys, "num_warps": 4 if keys <= 64 else 8, "num_stages": 1}
    if keys < 64:  # in one round the assembler takes descriptors from registers that nothing has written
        shape |= {"BV": min(32, max(16, widths["BV"] // 2)), "num_stages": 2}
    return widths | {name: flags[name] for name in ("T", "EVEN", "GATE")} | shape


@torch.library.custom_op("basedbench::delta_rule", mutates_args=())
def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor | None,
    b: Tensor | None,
    g: Tensor | None,
    initial_state: Tensor | None,
    return_state: bool,
    keep: bool,
) -> list[Tensor]:
    """y (B,L,H,V), the last state (B,H,K,V), and what the backward reads: scores, states before chunks, u, q^ k^ a^ b^,

    and decays over chunks. (0,) for what is not asked for or not there.
    """
    inputs = _inputs(q, k, v, a, b, g, initial_state)
    outputs = _outputs_like(inputs, return_state, keep)
    y, final, scores, kept, inner, decayed, ends = outputs
    initial = y if inputs.initial is None else inputs.initial
    widths = inputs.widths
    given = (
        *inputs.pointers("qkabg"), scores, decayed, ends, *inputs.strides("qkabg"), *inputs.sizes, widths["BK"],
        q.numel(),
    )  # fmt: skip
    shape = {"K": widths["K"], "BK": widths["BK"]}
    if _splits(inputs):
        mild_scores_kernel[(inputs.chunks,)](*given, **shape, **_mild_constants(inputs, "scores"))
    scores_kernel[(inputs.chunks,)](*given, **shape, **_chunk_constants(inputs, "scores"))
    grid, constants = _walk_shape(inputs)
    walked = _for_walks(inputs, decayed)
    output_kernel[grid](
        *walked.pointers("qkvab"), scores, decayed, ends, y, initial, final, kept, *_parts(inner),
        *walked.strides("qkvab"), *inputs.sizes,
        **constants, INITIAL=initial_state is not None, FINAL=return_state, KEEP=keep,
    )  # fmt: skip
    return outputs


@torch.library.custom_op("basedbench::delta_rule_backward", mutates_args=())
def backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor | None,
    b: Tensor | None,
    g: Tensor | None,
    initial_state: Tensor | None,
    scores: Tensor,
    kept: Tensor,
    inner: Tensor,
    decayed: Tensor,
    ends: Tensor,
    dy: Tensor,
    grad_state: Tensor | None,
    more_q: Tensor | None = None,
    more_k: Tensor | None = None,
    more_v: Tensor | None = None,
) -> list[Tensor]:
    """Gradients of q, k, v, a, b, g and the initial state; (0,) for what there is not.

    `more`, all or none and with a and b: what others who read q, k and v have for them, added to what is written.
    """
    inputs = _inputs(q, k, v, a, b, g, initial_state)
    widths, grads = inputs.widths, _gradients_like(q, k, v, a, b, g, initial_state)
    dq, dk, dv, da, db, dg, dstate = grads
    dy = dy.contiguous()
    asked, outer = torch.empty_like(kept), torch.empty_like(inner)
    last = dy if grad_state is None else grad_state.contiguous()
    grid, constants = _walk_shape(inputs)
    walked = _for_walks(inputs, decayed)
    more = [dy if part is None else part.contiguous() for part in (more_q, more_k, more_v)]
    reverse_kernel[grid](
        *walked.pointers("qkab"), dy, more[2], scores, decayed, ends, dv, last, dstate, asked, *_parts(outer),
        *walked.strides("qkab"), *inputs.sizes,
        **constants, GRAD_INITIAL=initial_state is not None, GRAD_FINAL=grad_state is not None,
        MORE=more_v is not None,
    )  # fmt: skip
    halves, rounds = (*_parts(inner), *_parts(outer)), (widths["BK"], widths["VP"])
    pointers = (*inputs.pointers("qkvabg"), dy, ends, kept, asked, *halves, *more[:2], dq, dk, da, db, dg)
    sizes = (*inputs.strides("qkvabg"), *inputs.sizes)
    if _stacks(inputs):
        shape = stacked_shape(inputs) | {"MORE": more_q is not None}
        stacked_gradient_kernel[(inputs.chunks * (shape["BK"] // shape["KB"]),)](*pointers, *sizes, **shape)
    elif _splits(inputs):
        mild_gradient_kernel[(inputs.chunks,)](
            *inputs.pointers("qkvg"), dy, ends, kept, asked, dq, dk, dg, *inputs.strides("qkvg"), *inputs.sizes,
            *rounds, **widths | _mild_constants(inputs, "gradient", "LEVELS", "RANK"),
        )  # fmt: skip
    if _splits(inputs) or not _stacks(inputs):
        gradient_kernel[(inputs.chunks,)](
            *pointers, *sizes, *rounds, **widths | _chunk_constants(inputs, "gradient"), MORE=more_q is not None
        )  # fmt: skip
    return grads


def _outputs_like(inputs: _Inputs, state: bool, keep: bool) -> list[Tensor]:
    v, widths = inputs.v, inputs.widths
    batch, _, heads, values = v.shape
    matrices, decays = 1 if inputs.a is None else 4, inputs.g is not None
    operands = torch.bfloat16 if v.dtype == torch.bfloat16 else torch.float32  # of products, as they are read
    shapes = (
        (batch, heads, widths["K"], values) if state else (0,),
        (inputs.chunks, widths["BK"]) if decays else (0,),
        (inputs.chunks, matrices, inputs.tokens, inputs.tokens),
        (inputs.chunks, widths["VP"], widths["BK"]) if keep else (0,),
    )
    final, ends = (v.new_empty(shape, dtype=torch.float32) for shape in shapes[:2])
    scores, kept = (v.new_empty(shape, dtype=operands) for shape in shapes[2:])
    inner = v.new_empty((4 // operands.itemsize, *v.shape) if keep and inputs.a is not None else (0,), dtype=operands)
    if inputs.flags["GATE"] == "head":
        decayed = v.new_empty((inputs.chunks, 3, inputs.tokens), dtype=torch.float32)
    else:
        shape = (2 if inputs.a is None else 4, *inputs.q.shape) if decays else (0,)
        decayed = v.new_empty(shape, dtype=operands)
    return [v.new_empty(v.shape), final, scores, kept, inner, decayed, ends]


def _parts(x: Tensor) -> tuple[Tensor, Tensor]:
    """The first and the last part of u or p, which may be the same one, or none."""
    return (x[0], x[-1]) if len(x) else (x, x)


def _gradients_like(q: Tensor, *inputs: Tensor | None) -> list[Tensor]:
    return [q.new_empty((0,)) if part is None else part.new_empty(part.shape) for part in (q, *inputs)]


@forward.register_fake
def _(q, k, v, a, b, g, initial_state, return_state, keep):
    return _outputs_like(_Inputs(q, k, v, a, b, g, initial_state), return_state, keep)


@backward.register_fake
def _(q, k, v, a, b, g, initial_state, scores, kept, inner, decayed, ends, dy, grad_state, *more):
    return _gradients_like(q, k, v, a, b, g, initial_state)


delta_autograd.register(forward, backward)


def delta_rule(
    q_BLHK: Tensor,
    k_BLHK: Tensor,
    v_BLHV: Tensor,
    a_BLHK: Tensor | None = None,
    b_BLHK: Tensor | None = None,
    g_BLHK: Tensor | None = None,
    *,
    initial_state: Tensor | None = None,
    return_state: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """The public function of `delta_rule`, for inputs `unsupported` has no reason against; a, b None: no such term."""
    tensors = (q_BLHK, k_BLHK, v_BLHV, a_BLHK, b_BLHK, g_BLHK, initial_state)
    keep = differentiated(*tensors)
    y, state, *_ = forward(*tensors, return_state, keep)
    return (y, state) if return_state else y


class _Shared(torch.autograd.Function):
    """The rule, and q, k and v again: what is asked of them comes back here, and no launch adds up gradients."""

    @staticmethod
    def forward(ctx: Any, *tensors: Tensor) -> tuple[Tensor, ...]:
        y, _, *rest = forward(*tensors, None, False, any(ctx.needs_input_grad))
        ctx.save_for_backward(*tensors, *rest)
        return y, *(part.view_as(part) for part in tensors[:3])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor, *more: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        tensors, rest = saved[:6], saved[6:]
        found = backward(*tensors, None, *rest, dy, None, *more)[:6]
        return tuple(None if part is None else grad for part, grad in zip(tensors, found, strict=True))


def shared_delta_rule(q, k, v, a, b, g=None):
    """The public function of `delta_rule`, for inputs `unsupported` has no reason against."""
    return _Shared.apply(q, k, v, a, b, g)
