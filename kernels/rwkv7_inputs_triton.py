"""`rwkv7_inputs` in Triton: one pass forward and one backward, as in `delta_inputs_triton`."""

# mypy: allow-untyped-defs

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .company import most_programs
from .delta_inputs import EPS, RWKV7_DECAY
from .delta_inputs_triton import PROGRAMS, unsupported
from .exponentials_triton import sigmoid
from .head_rows_triton import TILE, flat_rows, head_vector, load_rows, store_rows, unit_gradient, unit_scale
from .partial_sums_triton import sum_parts

__all__ = ["rwkv7_inputs", "unsupported"]


@triton.jit(do_not_specialize=["tokens"])
def rwkv7_inputs_kernel(
    k, rate, decay, xi, alpha, k_out, a_out, b_out, g_out, k_row, rate_row, decay_row, tokens, eps, strongest,
    H: tl.constexpr, K: tl.constexpr, BK: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    head, columns = tl.program_id(0) % H, tl.arange(0, BK)
    token = tl.program_id(0) // H * ROWS + tl.arange(0, ROWS)
    inside = (token < tokens)[:, None] & (columns < K)[None, :]
    first, row = head * K, H * K
    x = load_rows(k + first, token, k_row, columns, inside)
    eta = sigmoid(load_rows(rate + first, token, rate_row, columns, inside))
    share = head_vector(alpha + first, columns, K, True, 0.0)
    store_rows(k_out + first, x * (1 + (eta - 1) * share), token, row, columns, inside)
    x *= head_vector(xi + first, columns, K, True, 0.0)
    x *= unit_scale(x, eps)
    store_rows(a_out + first, -eta * x, token, row, columns, inside)
    store_rows(b_out + first, x, token, row, columns, inside)
    g = strongest * sigmoid(load_rows(decay + first, token, decay_row, columns, inside))
    store_rows(g_out + first, g, token, row, columns, inside)


@triton.jit(do_not_specialize=["tokens"])
def rwkv7_inputs_backward_kernel(
    k, rate, decay, xi, alpha, dk_out, da_out, db_out, dg_out, dk, drate, ddecay, partials,
    k_row, rate_row, decay_row, tokens, eps, strongest,
    H: tl.constexpr, K: tl.constexpr, BK: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """dk, drate, ddecay, dense, and a program's sums (2,H,K) of the gradients of xi and alpha."""
    head, columns = tl.program_id(0) % H, tl.arange(0, BK)
    first, row = head * K, H * K
    factor = head_vector(xi + first, columns, K, True, 0.0)
    share = head_vector(alpha + first, columns, K, True, 0.0)
    dxi, dalpha = tl.zeros([ROWS, BK], tl.float32), tl.zeros([ROWS, BK], tl.float32)
    for tile in range(tl.program_id(0) // H, tl.cdiv(tokens, ROWS), tl.num_programs(0) // H):
        token = tile * ROWS + tl.arange(0, ROWS)
        inside = (token < tokens)[:, None] & (columns < K)[None, :]
        s = sigmoid(load_rows(decay + first, token, decay_row, columns, inside))
        dg = load_rows(dg_out + first, token, row, columns, inside)
        store_rows(ddecay + first, dg * strongest * s * (1 - s), token, row, columns, inside)
        x = load_rows(k + first, token, k_row, columns, inside)
        eta = sigmoid(load_rows(rate + first, token, rate_row, columns, inside))
        scale = unit_scale(x * factor, eps)
        n = x * factor * scale
        da = load_rows(da_out + first, token, row, columns, inside)
        dn = load_rows(db_out + first, token, row, columns, inside) - eta * da
        dn = unit_gradient(dn, n, scale)
        dxi += dn * x
        grad = load_rows(dk_out + first, token, row, columns, inside)
        dalpha += grad * x * (eta - 1)
        store_rows(dk + first, dn * factor + grad * (1 + (eta - 1) * share), token, row, columns, inside)
        deta = (grad * x * share - da * n) * eta * (1 - eta)
        store_rows(drate + first, deta, token, row, columns, inside)
    into = partials + tl.program_id(0) // H * (2 * row) + first + columns
    tl.store(into, tl.sum(dxi, 0), mask=columns < K)
    tl.store(into + row, tl.sum(dalpha, 0), mask=columns < K)


def _launch(k: Tensor, rate: Tensor, decay: Tensor, xi: Tensor, alpha: Tensor):
    """(pointers, strides and sizes, constants) that both kernels take."""
    heads, width = k.shape[-2:]
    flat = [flat_rows(part, heads * width) for part in (k, rate, decay)]
    numbers = [*(part.stride(0) for part in flat), len(flat[0]), EPS, RWKV7_DECAY]
    block = max(16, triton.next_power_of_2(width))
    constants = {"H": heads, "K": width, "BK": block, "ROWS": max(1, TILE // block), "num_warps": 2}
    return [*flat, xi.contiguous(), alpha.contiguous()], numbers, constants


@torch.library.custom_op("basedbench::rwkv7_inputs", mutates_args=())
def operator(k: Tensor, rate: Tensor, decay: Tensor, xi: Tensor, alpha: Tensor) -> list[Tensor]:
    """k, a, b and g (..., H, K)."""
    pointers, numbers, constants = _launch(k, rate, decay, xi, alpha)
    outputs = _outputs(k, rate, decay, xi, alpha)
    programs = constants["H"] * triton.cdiv(len(pointers[0]), constants["ROWS"])
    rwkv7_inputs_kernel[(programs,)](*pointers, *outputs, *numbers, **constants)
    return outputs


@operator.register_fake
def _outputs(k, rate, decay, xi, alpha):
    return [k.new_empty(k.shape) for _ in range(3)] + [k.new_empty(k.shape, dtype=torch.float32)]


@torch.library.custom_op("basedbench::rwkv7_inputs_backward", mutates_args=())
def backward_operator(
    k: Tensor, rate: Tensor, decay: Tensor, xi: Tensor, alpha: Tensor, grads: list[Tensor]
) -> list[Tensor]:
    """Gradients of k, rate and decay, and those of xi and alpha (2,H,K)."""
    pointers, numbers, constants = _launch(k, rate, decay, xi, alpha)
    *found, sums = _gradients_like(k, rate, decay, xi, alpha, grads)
    blocks = max(1, min(most_programs(PROGRAMS) // constants["H"], triton.cdiv(len(pointers[0]), constants["ROWS"])))
    partials = k.new_empty((blocks, sums.numel()), dtype=torch.float32)
    rwkv7_inputs_backward_kernel[(blocks * constants["H"],)](
        *pointers, *(grad.contiguous() for grad in grads), *found, partials, *numbers, **constants
    )
    return [*found, sum_parts(partials, torch.float32).view(sums.shape)]


@backward_operator.register_fake
def _gradients_like(k, rate, decay, xi, alpha, grads):
    found = [part.new_empty(part.shape) for part in (k, rate, decay)]
    return [*found, k.new_empty((2, *k.shape[-2:]), dtype=torch.float32)]


def _keep(ctx: Any, inputs: tuple[Tensor, ...], output: list[Tensor]) -> None:
    ctx.save_for_backward(*inputs)


def _gradients(ctx: Any, grads: list[Tensor]) -> tuple[Tensor, ...]:
    *_, xi, alpha = ctx.saved_tensors
    dk, drate, ddecay, sums = backward_operator(*ctx.saved_tensors, grads)
    return dk, drate, ddecay, sums[0].to(xi.dtype), sums[1].to(alpha.dtype)


operator.register_autograd(_gradients, setup_context=_keep)


def rwkv7_inputs(k, rate, decay, xi, alpha):
    """`delta_inputs.rwkv7_reference` by the kernels above, for inputs that `unsupported` has no reason against."""
    return tuple(operator(k, rate, decay, xi, alpha))
