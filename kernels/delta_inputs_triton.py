"""`delta_inputs` in Triton: one pass forward and one backward, which works out norms and decays once more.

A program takes one head and some tokens. The backward's are fixed in number and leave partial sums of the gradients of
the decays' biases and rates.
"""

# mypy: allow-untyped-defs

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .company import most_programs
from .delta_inputs import EPS
from .exponentials_triton import LOG2E, sigmoid
from .head_rows_triton import TILE, WIDEST, flat_rows, head_vector, load_rows, store_rows, unit_gradient, unit_scale
from .partial_sums_triton import sum_parts
from .ssd_tiles_triton import softplus

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
PROGRAMS = 1024  # of the backward, about


def unsupported(q: Tensor, *others: Tensor | None) -> str | None:
    """Why the kernels do not take these inputs, or None if they do."""
    if q.dtype not in DTYPES or any(part is not None and part.dtype not in DTYPES for part in others):
        return "inputs must be float32, float16 or bfloat16"
    if q.shape[-1] > WIDEST:
        return f"heads must be at most {WIDEST} wide"
    return "there is nothing to compute" if q.numel() == 0 else None


@triton.jit
def decay_steps(decay, A_log, bias, head, token, row, columns, inside, K: tl.constexpr, GATE: tl.constexpr):
    """(A, logits with their bias, which count): a column for decays of heads, rows for those of channels."""
    A = -tl.exp2(tl.load(A_log + head).to(tl.float32) * LOG2E)
    if GATE == "head":
        within = tl.max(inside.to(tl.int32), 1)[:, None] > 0
        place = decay + token.to(tl.int64)[:, None] * row + head
        logit = tl.load(place, mask=within, other=0.0).to(tl.float32) + tl.load(bias + head).to(tl.float32)
    else:
        within = inside
        logit = load_rows(decay + head * K, token, row, columns, inside)
        logit += head_vector(bias + head * K, columns, K, True, 0.0)
    return A, logit, within


@triton.jit
def step_logits(beta, token, row, head, tokens):
    """Of one head's tokens, as a column."""
    return tl.load(beta + token.to(tl.int64) * row + head, mask=token < tokens, other=0.0).to(tl.float32)[:, None]


@triton.jit(do_not_specialize=["tokens"])
def delta_inputs_kernel(
    q, k, beta, decay, A_log, bias, q_out, k_out, beta_out, g_out,
    q_row, k_row, beta_row, decay_row, tokens, eps, of_q,
    H: tl.constexpr, K: tl.constexpr, BK: tl.constexpr, ROWS: tl.constexpr, GATE: tl.constexpr,
):  # fmt: skip
    head, columns = tl.program_id(0) % H, tl.arange(0, BK)
    token = tl.program_id(0) // H * ROWS + tl.arange(0, ROWS)
    inside = (token < tokens)[:, None] & (columns < K)[None, :]
    first, row = head * K, H * K
    x = load_rows(q + first, token, q_row, columns, inside)
    store_rows(q_out + first, x * unit_scale(x, eps) * of_q, token, row, columns, inside)
    n = load_rows(k + first, token, k_row, columns, inside)
    store_rows(k_out + first, n * unit_scale(n, eps), token, row, columns, inside)
    step = sigmoid(step_logits(beta, token, beta_row, head, tokens))
    store_rows(beta_out + head, step, token, H, tl.arange(0, 1), (token < tokens)[:, None])
    if GATE != "none":
        A, logit, within = decay_steps(decay, A_log, bias, head, token, decay_row, columns, inside, K, GATE)
        g = A * softplus(logit)
        if GATE == "head":
            store_rows(g_out + head, g, token, H, tl.arange(0, 1), within)
        else:
            store_rows(g_out + first, g, token, row, columns, within)


@triton.jit(do_not_specialize=["tokens"])
def delta_inputs_backward_kernel(
    q, k, beta, decay, A_log, bias, dq_out, dk_out, dbeta_out, dg_out,
    dq, dk, dbeta, ddecay, partials, q_row, k_row, beta_row, decay_row, tokens, eps, of_q,
    H: tl.constexpr, K: tl.constexpr, BK: tl.constexpr, ROWS: tl.constexpr, GATE: tl.constexpr,
):  # fmt: skip
    """dq, dk, dbeta, ddecay, dense, and a program's sums: of the bias's gradients (H or H K), then of A_log's (H)."""
    head, columns = tl.program_id(0) % H, tl.arange(0, BK)
    first, row = head * K, H * K
    WIDE: tl.constexpr = BK if GATE == "channel" else 1
    EACH: tl.constexpr = K if GATE == "channel" else 1
    sums, rates = tl.zeros([ROWS, WIDE], tl.float32), tl.zeros([ROWS, WIDE], tl.float32)
    for tile in range(tl.program_id(0) // H, tl.cdiv(tokens, ROWS), tl.num_programs(0) // H):
        token = tile * ROWS + tl.arange(0, ROWS)
        inside = (token < tokens)[:, None] & (columns < K)[None, :]
        x = load_rows(q + first, token, q_row, columns, inside)
        scale = unit_scale(x, eps)
        grad = load_rows(dq_out + first, token, row, columns, inside) * of_q
        store_rows(dq + first, unit_gradient(grad, x * scale, scale), token, row, columns, inside)
        n = load_rows(k + first, token, k_row, columns, inside)
        scale = unit_scale(n, eps)
        grad = load_rows(dk_out + first, token, row, columns, inside)
        store_rows(dk + first, unit_gradient(grad, n * scale, scale), token, row, columns, inside)
        logit, exists = step_logits(beta, token, beta_row, head, tokens), (token < tokens)[:, None]
        dstep = load_rows(dbeta_out + head, token, H, tl.arange(0, 1), exists)
        dstep *= sigmoid(logit) * sigmoid(-logit)
        store_rows(dbeta + head, dstep, token, H, tl.arange(0, 1), exists)
        if GATE != "none":
            A, logit, within = decay_steps(decay, A_log, bias, head, token, decay_row, columns, inside, K, GATE)
            g = A * softplus(logit)
            if GATE == "head":
                dg = load_rows(dg_out + head, token, H, tl.arange(0, 1), within)
            else:
                dg = load_rows(dg_out + first, token, row, columns, within)
            dlogit = tl.where(within, dg * A * sigmoid(logit), 0.0)
            if GATE == "head":
                store_rows(ddecay + head, dlogit, token, H, tl.arange(0, 1), within)
            else:
                store_rows(ddecay + first, dlogit, token, row, columns, within)
            sums += dlogit
            rates += tl.where(within, dg * g, 0.0)
    if GATE != "none":
        into = partials + tl.program_id(0) // H * (H * EACH + H)
        column = tl.arange(0, WIDE)
        tl.store(into + head * EACH + column, tl.sum(sums, 0), mask=column < EACH)
        tl.store(into + H * EACH + head, tl.sum(tl.sum(rates, 1), 0))


def _launch(q: Tensor, k: Tensor, beta: Tensor, decay: Tensor | None, A_log: Tensor | None, bias: Tensor | None):
    """(pointers, strides and sizes, constants) that both kernels take."""
    heads, width = q.shape[-2:]
    flat = [flat_rows(q, heads * width), flat_rows(k, heads * width), flat_rows(beta, heads)]
    flat.append(flat[2] if decay is None else flat_rows(decay, decay.shape[-1]))
    pointers = [*flat, *(flat[0] if part is None else part.contiguous() for part in (A_log, bias))]
    numbers = [*(part.stride(0) for part in flat), len(flat[0]), EPS, width**-0.5]
    gate = "none" if decay is None else "head" if decay.shape[-1] == heads and width > 1 else "channel"
    block = max(16, triton.next_power_of_2(width))
    constants = {"H": heads, "K": width, "BK": block, "ROWS": max(1, TILE // block), "GATE": gate, "num_warps": 2}
    return pointers, numbers, constants


@torch.library.custom_op("basedbench::delta_inputs", mutates_args=())
def operator(
    q: Tensor, k: Tensor, beta: Tensor, decay: Tensor | None, A_log: Tensor | None, bias: Tensor | None
) -> list[Tensor]:
    """q, k (..., H, K), beta (..., H), and g (..., H, K or 1), (0,) if there are no decays."""
    pointers, numbers, constants = _launch(q, k, beta, decay, A_log, bias)
    outputs = _outputs(q, k, beta, decay, A_log, bias)
    programs = constants["H"] * triton.cdiv(len(pointers[0]), constants["ROWS"])
    delta_inputs_kernel[(programs,)](*pointers, *outputs, *numbers, **constants)
    return outputs


@operator.register_fake
def _outputs(q, k, beta, decay, A_log, bias):
    shape = (0,) if decay is None else (*q.shape[:-1], decay.shape[-1] // q.shape[-2])
    wide = [q.new_empty(size, dtype=torch.float32) for size in (q.shape[:-1], shape)]
    return [q.new_empty(q.shape), q.new_empty(q.shape), *wide]


@torch.library.custom_op("basedbench::delta_inputs_backward", mutates_args=())
def backward_operator(
    q: Tensor, k: Tensor, beta: Tensor, decay: Tensor | None, A_log: Tensor | None, bias: Tensor | None,
    grads: list[Tensor],
) -> list[Tensor]:  # fmt: skip
    """Gradients of q, k, beta and decay, and those of bias and A_log side by side, (0,) for what there is not."""
    pointers, numbers, constants = _launch(q, k, beta, decay, A_log, bias)
    *found, sums = _gradients_like(q, k, beta, decay, A_log, bias, grads)
    blocks = max(1, min(most_programs(PROGRAMS) // constants["H"], triton.cdiv(len(pointers[0]), constants["ROWS"])))
    partials = q.new_empty((blocks, len(sums)), dtype=torch.float32)
    delta_inputs_backward_kernel[(blocks * constants["H"],)](
        *pointers, *(grad.contiguous() for grad in grads), *found, partials, *numbers, **constants
    )
    return [*found, sum_parts(partials, torch.float32) if len(sums) else sums]


@backward_operator.register_fake
def _gradients_like(q, k, beta, decay, A_log, bias, grads):
    found = [q.new_empty(0) if part is None else part.new_empty(part.shape) for part in (q, k, beta, decay)]
    return [*found, q.new_empty(0 if decay is None else len(bias) + len(A_log), dtype=torch.float32)]


def _keep(ctx: Any, inputs: tuple[Tensor | None, ...], output: list[Tensor]) -> None:
    ctx.save_for_backward(*inputs)


def _gradients(ctx: Any, grads: list[Tensor]) -> tuple[Tensor | None, ...]:
    *_, decay, A_log, bias = ctx.saved_tensors
    dq, dk, dbeta, ddecay, sums = backward_operator(*ctx.saved_tensors, grads)
    if decay is None:
        return dq, dk, dbeta, None, None, None
    dbias, dA_log = sums.split([len(bias), len(A_log)])
    return dq, dk, dbeta, ddecay, dA_log.to(A_log.dtype), dbias.to(bias.dtype)


operator.register_autograd(_gradients, setup_context=_keep)


def delta_inputs(q, k, beta, decay=None, A_log=None, bias=None):
    """`delta_inputs.reference` by the kernels above, for inputs that `unsupported` has no reason against."""
    q, k, beta, g = operator(q, k, beta, decay, A_log, bias)
    return q, k, beta, None if decay is None else g
