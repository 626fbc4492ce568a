"""The delta rule as layers have it on a GPU, in bfloat16: torch operators around the Triton kernels.

Forward: scores of all chunks at once, then a walk over the chunks of every sequence, head and block of values.
Backward: a walk from the end, then all chunks at once. Between the launches: scores, factors of rows, and for the
backward S and R, what is new in the values and dv, in two numbers each.

`delta_rule_triton` does the same with a and b of their own. Here what is written and what is taken back stand under one
key, and all scores are those of q and n with n: half of the products, and of 4 K numbers a token in every launch 2 K.
With K = V = 64, bytes a token and head: scores 384, walk 640 (1,152 with what it keeps), back 1,024, gradients 1,664.

Chunks have 32 tokens, operands are bfloat16, exact for the inputs themselves; of two such numbers is what would be
rounded more than once: S and R where they are read, w and dv wherever they go on, and what scores get.
"""

# mypy: allow-untyped-defs

from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from . import delta_autograd
from .delta_rule_triton import WIDEST
from .dense_rows import dense_rows
from .differentiated import differentiated
from .layer_delta_channel_triton import channel_gradient_kernel, channel_scores_kernel, strong_gradient_kernel
from .layer_delta_gradient_triton import gradient_kernel
from .layer_delta_scores_triton import scores_kernel
from .layer_delta_walk_triton import output_kernel, reverse_kernel

TOKENS = 32  # of a chunk
SCORES_WARPS = 1  # a program of one warp waits for no other: its products are 32 rows
SCORES_REGISTERS = 168  # twelve such programs on a multiprocessor
STAGES = 3  # of a walk: with two of them the next chunk would be fetched when this one is done, and waited for
DECAYS = (torch.float32, torch.float16, torch.bfloat16)


def unsupported(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, g: Tensor | None = None, initial_state: Tensor | None = None
) -> str | None:
    """Why the kernels do not take these inputs, or None if they do."""
    if any(part.dtype != torch.bfloat16 for part in (q, k, v)):
        return "q, k and v must be bfloat16"
    if any(part is not None and part.dtype not in DECAYS for part in (beta, g, initial_state)):
        return "step sizes, decays and the state must be float32, float16 or bfloat16"
    if g is not None and g.shape[-1] not in (1, q.shape[-1]):
        return "decays are one a head or one a channel"
    if q.shape[-1] > WIDEST:
        return f"keys must be at most {WIDEST} wide"
    return "there is nothing to compute" if q.numel() == 0 or v.numel() == 0 else None


class _Inputs(NamedTuple):
    """The inputs, rows dense; what is missing is None."""

    q: Tensor
    n: Tensor
    v: Tensor
    beta: Tensor
    g: Tensor | None

    @property
    def widths(self) -> dict[str, int]:
        """K, V and what they are padded to: BK, and VP in blocks of BV."""
        keys, values = (max(16, triton.next_power_of_2(part.shape[-1])) for part in (self.n, self.v))
        block = min(64, values)
        padded = triton.cdiv(self.v.shape[-1], block) * block
        return {"K": self.n.shape[-1], "V": self.v.shape[-1], "BK": keys, "BV": block, "VP": padded}

    @property
    def flags(self) -> dict[str, Any]:
        gate = "none" if self.g is None else "head" if self.g.shape[-1] == 1 else "channel"
        return {"T": TOKENS, "EVEN": self.q.shape[1] % TOKENS == 0, "GATE": gate}

    @property
    def chunks(self) -> int:
        """Of all sequences and heads."""
        batch, length, heads = self.q.shape[:3]
        return batch * heads * triton.cdiv(length, TOKENS)

    @property
    def sizes(self) -> tuple[int, int]:
        return self.q.shape[1], self.q.shape[2]

    @property
    def walks(self) -> tuple[tuple[int], dict[str, Any]]:
        """Grid and constants of a walk: 16 rows, here values, are what one warp multiplies."""
        widths = self.widths
        programs = self.q.shape[0] * self.q.shape[2] * (widths["VP"] // widths["BV"])
        return (programs,), widths | self.flags | {"num_warps": widths["BV"] // 16, "num_stages": STAGES}


def _strides(*parts: Tensor | None) -> list[int]:
    return [stride for part in parts for stride in ((0, 0, 0) if part is None else part.stride()[:3])]


def _inputs(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, g: Tensor | None) -> _Inputs:
    return _Inputs(dense_rows(q), dense_rows(k), dense_rows(v), beta.contiguous(), dense_rows(g))


def gradient_tile(widths: dict[str, int]) -> dict[str, int]:
    """Keys of a program, values at a time and warps: 64 rows are a warpgroup's, and 64 keys what it holds."""
    if widths["BK"] < 64:  # in one round the assembler takes descriptors from registers that nothing has written
        return {"KB": widths["BK"], "BV": min(32, max(16, widths["BV"] // 2)), "num_warps": 4, "num_stages": 2}
    return {"KB": 64, "num_warps": 4, "num_stages": 1}


@torch.library.custom_op("basedbench::layer_delta_rule", mutates_args=())
def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    g: Tensor | None,
    initial_state: Tensor | None,
    return_state: bool,
    keep: bool,
) -> list[Tensor]:
    """y (B,L,H,V), the last state (B,H,K,V), and what the backward reads: scores, factors of rows, states before

    chunks, both halves of w, and q^, n^ and k^. (0,) for what is not asked for or not there.
    """
    inputs = _inputs(q, k, v, beta, g)
    outputs = _outputs_like(inputs, return_state, keep)
    y, final, scores, factors, kept, new, decayed = outputs
    initial = y if initial_state is None else initial_state.contiguous()
    _scores(inputs, scores, factors, decayed)
    grid, constants = inputs.walks
    q, n, k = _walked(inputs, decayed)
    output_kernel[grid](
        q, n, k, inputs.v, scores, factors, factors, y, initial, final, kept, *_halves(new),
        *_strides(q, n, k, inputs.v), *inputs.sizes,
        **constants, INITIAL=initial_state is not None, FINAL=return_state, KEEP=keep,
    )  # fmt: skip
    return outputs


def _scores(inputs: _Inputs, scores: Tensor, factors: Tensor, decayed: Tensor) -> None:
    """Launches that fill in the other three."""
    widths, flags = inputs.widths, inputs.flags
    given, sizes = (inputs.q, inputs.n, inputs.beta), (*_strides(inputs.q, inputs.n, inputs.g), *inputs.sizes)
    common = {"K": widths["K"], "BK": widths["BK"], "T": TOKENS, "EVEN": flags["EVEN"]}
    common["LEVELS"] = TOKENS.bit_length() - 1
    if flags["GATE"] != "channel":
        decays = inputs.beta if inputs.g is None else inputs.g
        shape = {"GATE": flags["GATE"], "num_warps": SCORES_WARPS, "maxnreg": SCORES_REGISTERS}
        scores_kernel[(inputs.chunks,)](*given, decays, scores, factors, *sizes, **common, **shape)
        return
    for strong in (False, True):
        channel_scores_kernel[(inputs.chunks,)](
            *given, inputs.g, scores, factors, *decayed, *sizes, widths["BK"],
            **common, **channel_scores_tile(widths, strong), STRONG=strong,
        )  # fmt: skip


def channel_scores_tile(widths: dict[str, int], strong: bool) -> dict[str, int]:
    """Keys at a time, and warps; chunks that are not mild are few, and many instructions for each number."""
    keys = 16 if strong else 32 if widths["BK"] > 64 else widths["BK"]
    return {"KB": min(keys, widths["BK"]), "num_warps": 2, "num_stages": 1}


def _walked(inputs: _Inputs, decayed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """q, n and k of the walks."""
    return (decayed[0], decayed[1], decayed[2]) if len(decayed) else (inputs.q, inputs.n, inputs.n)


@torch.library.custom_op("basedbench::layer_delta_rule_backward", mutates_args=())
def backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    g: Tensor | None,
    initial_state: Tensor | None,
    scores: Tensor,
    factors: Tensor,
    kept: Tensor,
    new: Tensor,
    decayed: Tensor,
    dy: Tensor,
    grad_state: Tensor | None,
) -> list[Tensor]:
    """Gradients of q, k, v, beta, g and the initial state; (0,) for what there is not."""
    inputs = _inputs(q, k, v, beta, g)
    grads = _gradients_like(q, k, v, beta, g, initial_state)
    dq, dk, dv, dbeta, dg, dstate = grads
    dy = dy.contiguous()
    asked, dv_low = torch.empty_like(kept), torch.empty_like(dv)
    last = dy if grad_state is None else grad_state.contiguous()
    (grid, constants), walked = inputs.walks, _walked(inputs, decayed)
    reverse_kernel[grid](
        *walked, dy, scores, factors, factors, dv, dv_low, last, dstate, asked, *_strides(*walked), *inputs.sizes,
        **constants, GRAD_INITIAL=initial_state is not None, GRAD_FINAL=grad_state is not None,
    )  # fmt: skip
    given = (inputs.q, inputs.n, inputs.beta)
    read, written = (dy, dv, dv_low, *_halves(new), factors, kept, asked), (dq, dk, dbeta, dg)
    widths, flags = inputs.widths, inputs.flags
    if flags["GATE"] != "channel":
        sizes, shape = (*_strides(inputs.q, inputs.n), *inputs.sizes, dbeta.numel()), gradient_tile(widths)
        parts = widths["BK"] // shape["KB"]
        sums = written[2:] if parts == 1 else [_sums_like(x, parts) for x in written[2:]]
        gradient_kernel[(inputs.chunks * parts,)](*given, *read, dq, dk, *sums, *sizes, **widths | flags | shape)
        if parts > 1:
            grads[3:5] = [_summed(*pair) for pair in zip(sums, written[2:], strict=True)]
    else:
        grads[3] = _channel_gradients(inputs, (*given, inputs.g, *read), written)
    return grads


def _channel_gradients(inputs: _Inputs, given: tuple[Any, ...], written: tuple[Tensor, ...]) -> Tensor:
    """Launches that fill in dq, dk and dg; returns dbeta."""
    dq, dk, dbeta, dg = written
    widths, common = inputs.widths, {"T": TOKENS, "EVEN": inputs.flags["EVEN"]}
    shape = gradient_tile(widths)
    parts = widths["BK"] // shape["KB"]
    sums = _sums_like(dbeta, parts)
    pointers = (*given, dq, dk, sums, dg)
    sizes = (*_strides(inputs.q, inputs.n, inputs.g), *inputs.sizes, dbeta.numel())
    channel_gradient_kernel[(inputs.chunks * parts,)](*pointers, *sizes, **widths | common | shape)
    strong = {"KB": min(16, widths["BK"]), "BV": min(32, widths["BV"]), "num_warps": 4, "num_stages": 1}
    rounds = {"LEVELS": TOKENS.bit_length() - 1, "PARTS": parts}
    strong_gradient_kernel[(inputs.chunks,)](
        *pointers, *sizes, widths["BK"], widths["VP"], **widths | common | strong | rounds
    )
    return _summed(sums, dbeta)


def _sums_like(x: Tensor, parts: int) -> Tensor:
    """Where blocks of keys leave what they add to x."""
    return x.new_empty((parts, *x.shape), dtype=torch.float32)


def _summed(sums: Tensor, x: Tensor) -> Tensor:
    return (sums[0] if len(sums) == 1 else sums.sum(0)).to(x.dtype)


def _halves(x: Tensor) -> tuple[Tensor, Tensor]:
    return (x[0], x[1]) if len(x) else (x, x)


def _outputs_like(inputs: _Inputs, state: bool, keep: bool) -> list[Tensor]:
    v, widths = inputs.v, inputs.widths
    batch, _, heads, values = v.shape
    final = v.new_empty((batch, heads, widths["K"], values) if state else (0,), dtype=torch.float32)
    scores = v.new_empty((inputs.chunks, 2, TOKENS, TOKENS))
    gate = inputs.flags["GATE"]
    channels = gate == "channel"
    shape = (inputs.chunks, widths["BK"]) if channels else (inputs.chunks, 3 if gate == "head" else 1, TOKENS)
    factors, decayed = v.new_empty(shape, dtype=torch.float32), v.new_empty((3, *inputs.q.shape) if channels else (0,))
    kept = v.new_empty((inputs.chunks, widths["VP"], widths["BK"]) if keep else (0,))
    new = v.new_empty((2, *v.shape) if keep else (0,))
    return [v.new_empty(v.shape), final, scores, factors, kept, new, decayed]


def _gradients_like(*inputs: Tensor | None) -> list[Tensor]:
    return [inputs[0].new_empty((0,)) if part is None else part.new_empty(part.shape) for part in inputs]  # type: ignore[union-attr]


@forward.register_fake
def _(q, k, v, beta, g, initial_state, return_state, keep):
    return _outputs_like(_Inputs(q, k, v, beta, g), return_state, keep)


@backward.register_fake
def _(q, k, v, beta, g, initial_state, scores, factors, kept, new, decayed, dy, grad_state):
    return _gradients_like(q, k, v, beta, g, initial_state)


delta_autograd.register(forward, backward)


def layer_delta_rule(
    q_BLHK: Tensor,
    k_BLHK: Tensor,
    v_BLHV: Tensor,
    beta_BLH: Tensor,
    g_BLHK: Tensor | None = None,
    *,
    initial_state: Tensor | None = None,
    return_state: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """The public function of `layer_delta_rule`, for inputs `unsupported` has no reason against."""
    tensors = (q_BLHK, k_BLHK, v_BLHV, beta_BLH, g_BLHK, initial_state)
    keep = differentiated(*tensors)
    y, state, *_ = forward(*tensors, return_state, keep)
    return (y, state) if return_state else y
