"""`head_norm` in Triton: one pass forward, one backward, and a small sum of partial gradients.

A program takes one head and some tokens: so a tile's rows share their weights, and what these get is summed in
registers. Statistics are taken anew in the backward, from a row that it reads anyway. The backward's programs are fixed
in number, each leaves one row of partial sums: every device adds in the same order.
"""

# mypy: allow-untyped-defs

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .company import most_programs
from .head_rows_triton import TILE, WIDEST, flat_rows, head_vector, load_rows
from .partial_sums_triton import sum_parts

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
PROGRAMS = 1024  # of the backward, about; see `_backward_grid`


def unsupported(y: Tensor, *others: Tensor | None) -> str | None:
    """Why the kernels do not take these inputs, or None if they do."""
    if y.dtype not in DTYPES or any(part is not None and part.dtype not in DTYPES for part in others):
        return "inputs must be float32, float16 or bfloat16"
    if y.shape[-1] > WIDEST:
        return f"heads must be at most {WIDEST} wide"
    return None


@triton.jit
def _gate(x, ACTIVATION: tl.constexpr):
    """(f(x), f'(x))."""
    value, slope = x, tl.full(x.shape, 1.0, tl.float32)
    if ACTIVATION != "identity":
        s = tl.sigmoid(x)
        value, slope = s, s * (1 - s)
        if ACTIVATION == "silu":
            value, slope = x * s, s * (1 + x * (1 - s))
    return value, slope


@triton.jit
def _normed(y, inside, eps, V: tl.constexpr, CENTER: tl.constexpr):
    """(y without weights, 1 / sqrt(var + eps) of each row as a column)."""
    if CENTER:
        y = tl.where(inside, y - (tl.sum(y, 1) / V)[:, None], 0.0)
    scale = (1 / tl.sqrt(tl.sum(y * y, 1) / V + eps))[:, None]
    return y * scale, scale


@triton.jit(do_not_specialize=["tokens"])
def head_norm_kernel(
    y, weight, bias, gate, r, k, rho, v, out, y_row, gate_row, r_row, k_row, v_row, tokens, eps, per_head,
    H: tl.constexpr, V: tl.constexpr, BV: tl.constexpr, ROWS: tl.constexpr,
    HAS_WEIGHT: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_BONUS: tl.constexpr,
    HAS_GATE: tl.constexpr, ACTIVATION: tl.constexpr, CENTER: tl.constexpr,
):  # fmt: skip
    head, columns = tl.program_id(0) % H, tl.arange(0, BV)
    token = tl.program_id(0) // H * ROWS + tl.arange(0, ROWS)
    inside = (token < tokens)[:, None] & (columns < V)[None, :]
    first = head * V
    n, _ = _normed(load_rows(y + first, token, y_row, columns, inside), inside, eps, V, CENTER)
    n *= head_vector(weight + head * per_head, columns, V, HAS_WEIGHT, 1.0)
    n += head_vector(bias + head * per_head, columns, V, HAS_BIAS, 0.0)
    if HAS_BONUS:
        products = load_rows(r + first, token, r_row, columns, inside) * load_rows(
            k + first, token, k_row, columns, inside
        )
        products *= head_vector(rho + first, columns, V, True, 0.0)
        n += tl.sum(products, 1)[:, None] * load_rows(v + first, token, v_row, columns, inside)
    if HAS_GATE:
        value, _ = _gate(load_rows(gate + first, token, gate_row, columns, inside), ACTIVATION)
        n *= value
    place = out + token.to(tl.int64)[:, None] * (H * V) + first + columns[None, :]
    tl.store(place, n.to(out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["tokens"])
def head_norm_backward_kernel(
    y, weight, bias, gate, r, k, rho, v, dout, dy, dgate, dr, dk, dv, partials,
    y_row, gate_row, r_row, k_row, v_row, tokens, eps, per_head, part, part_head, part_way,
    H: tl.constexpr, V: tl.constexpr, BV: tl.constexpr, ROWS: tl.constexpr,
    HAS_WEIGHT: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_BONUS: tl.constexpr,
    HAS_GATE: tl.constexpr, ACTIVATION: tl.constexpr, CENTER: tl.constexpr,
):  # fmt: skip
    """Input gradients, dense, and a program's share of those of weight, bias and rho, `part_way` apart."""
    head, columns = tl.program_id(0) % H, tl.arange(0, BV)
    first = head * V
    gain = head_vector(weight + head * per_head, columns, V, HAS_WEIGHT, 1.0)
    shift = head_vector(bias + head * per_head, columns, V, HAS_BIAS, 0.0)
    d_gain = tl.zeros([ROWS, BV], tl.float32)
    d_shift, d_rho = d_gain, d_gain
    if HAS_BONUS:
        factor = head_vector(rho + first, columns, V, True, 0.0)
    for tile in range(tl.program_id(0) // H, tl.cdiv(tokens, ROWS), tl.num_programs(0) // H):
        token = tile * ROWS + tl.arange(0, ROWS)
        inside = (token < tokens)[:, None] & (columns < V)[None, :]
        place = token.to(tl.int64)[:, None] * (H * V) + first + columns[None, :]
        g = tl.load(dout + place, mask=inside, other=0.0).to(tl.float32)
        n, scale = _normed(load_rows(y + first, token, y_row, columns, inside), inside, eps, V, CENTER)
        if HAS_BONUS:
            r_tile = load_rows(r + first, token, r_row, columns, inside)
            k_tile = load_rows(k + first, token, k_row, columns, inside)
            v_tile = load_rows(v + first, token, v_row, columns, inside)
            sums = tl.sum(r_tile * k_tile * factor, 1)[:, None]
        if HAS_GATE:
            value, slope = _gate(load_rows(gate + first, token, gate_row, columns, inside), ACTIVATION)
            before = n * gain + shift
            if HAS_BONUS:
                before += sums * v_tile
            tl.store(dgate + place, (g * before * slope).to(dgate.dtype.element_ty), mask=inside)
            g *= value
        if HAS_BONUS:
            tl.store(dv + place, (g * sums).to(dv.dtype.element_ty), mask=inside)
            d_sums = tl.sum(g * v_tile, 1)[:, None]
            tl.store(dr + place, (d_sums * k_tile * factor).to(dr.dtype.element_ty), mask=inside)
            tl.store(dk + place, (d_sums * r_tile * factor).to(dk.dtype.element_ty), mask=inside)
            d_rho += d_sums * r_tile * k_tile
        d_gain += g * n
        d_shift += g
        g *= gain
        grad = g - n * (tl.sum(g * n, 1) / V)[:, None]
        if CENTER:
            grad -= (tl.sum(g, 1) / V)[:, None]
        tl.store(dy + place, (grad * scale).to(dy.dtype.element_ty), mask=inside)
    into = partials + tl.program_id(0) // H * part + head * part_head + columns
    if HAS_WEIGHT:
        tl.store(into, tl.sum(d_gain, 0), mask=columns < V)
        into += part_way
    if HAS_BIAS:
        tl.store(into, tl.sum(d_shift, 0), mask=columns < V)
        into += part_way
    if HAS_BONUS:
        tl.store(into, tl.sum(d_rho, 0), mask=columns < V)


def _launch(y, weight, bias, gate, r, k, rho, v, eps, center, activation):
    """(pointers, strides and sizes, constants) that both kernels take."""
    heads, values = y.shape[-2:]
    given = gate is not None
    y, gate, r, k, v = (flat_rows(y if part is None else part, heads * values) for part in (y, gate, r, k, v))
    pointers = [y, *(y if part is None else part.contiguous() for part in (weight, bias)), gate, r, k]
    pointers += [y if rho is None else rho.contiguous(), v]
    per_head = 0 if weight is not None and weight.ndim == 1 else values
    numbers = [part.stride(0) for part in (y, gate, r, k, v)] + [len(y), eps, per_head]
    block = max(16, triton.next_power_of_2(values))
    constants = {
        "H": heads, "V": values, "BV": block, "ROWS": max(1, TILE // block), "HAS_WEIGHT": weight is not None,
        "HAS_BIAS": bias is not None, "HAS_BONUS": rho is not None, "HAS_GATE": given,
        "ACTIVATION": activation, "CENTER": center, "num_warps": 2,
    }  # fmt: skip
    return pointers, numbers, constants


@torch.library.custom_op("basedbench::head_norm", mutates_args=())
def operator(
    y: Tensor, weight: Tensor | None, bias: Tensor | None, gate: Tensor | None,
    r: Tensor | None, k: Tensor | None, rho: Tensor | None, v: Tensor | None,
    eps: float, center: bool, activation: str, dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    """The output (..., H V)."""
    out = _output(y, weight, bias, gate, r, k, rho, v, eps, center, activation, dtype)
    if out.numel():
        pointers, numbers, constants = _launch(y, weight, bias, gate, r, k, rho, v, eps, center, activation)
        programs = constants["H"] * triton.cdiv(len(pointers[0]), constants["ROWS"])
        head_norm_kernel[(programs,)](*pointers, out, *numbers, **constants)
    return out


@operator.register_fake
def _output(y, weight, bias, gate, r, k, rho, v, eps, center, activation, dtype):
    return y.new_empty((*y.shape[:-2], y.shape[-2] * y.shape[-1]), dtype=dtype)


@torch.library.custom_op("basedbench::head_norm_backward", mutates_args=())
def backward_operator(
    dout: Tensor, y: Tensor, weight: Tensor | None, bias: Tensor | None, gate: Tensor | None,
    r: Tensor | None, k: Tensor | None, rho: Tensor | None, v: Tensor | None,
    eps: float, center: bool, activation: str,
) -> list[Tensor]:  # fmt: skip
    """Gradients of y, gate, r, k, v, (0,) for what there is not, and of weight, bias and rho in one."""
    pointers, numbers, constants = _launch(y, weight, bias, gate, r, k, rho, v, eps, center, activation)
    tokens, (heads, values) = len(pointers[0]), y.shape[-2:]
    dy, dgate, dr, dk, dv = (_like(part, y) for part in (y, gate, r, k, v))
    blocks = max(1, min(triton.cdiv(most_programs(PROGRAMS), heads), triton.cdiv(tokens, constants["ROWS"])))
    given, width = _parameters(weight, bias, rho)
    partials = y.new_empty((blocks, heads * values * given), dtype=torch.float32)
    head_norm_backward_kernel[(blocks * heads,)](
        *pointers, dout.contiguous(), dy, dgate, dr, dk, dv, partials, *numbers,
        given * heads * values, values, heads * values, **constants,
    )  # fmt: skip
    sums = sum_parts(partials.view(-1, width), torch.float32) if given else partials.new_empty(0)
    return [dy, dgate, dr, dk, dv, sums]


@backward_operator.register_fake
def _(dout, y, weight, bias, gate, r, k, rho, v, eps, center, activation):
    given, width = _parameters(weight, bias, rho)
    grads = [_like(part, y) for part in (y, gate, r, k, v)]
    return [*grads, y.new_empty(width if given else 0, dtype=torch.float32)]


def _parameters(*parts: Tensor | None) -> tuple[int, int]:
    """How many there are, and over how many numbers what the programs left is summed: of one shared by heads, V."""
    given = [part for part in parts if part is not None]
    largest = max((part.numel() for part in given), default=0)
    return len(given), len(given) * largest


def _like(part: Tensor | None, y: Tensor) -> Tensor:
    """A dense gradient, not yet written."""
    return y.new_empty(0) if part is None else part.new_empty(part.shape)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.eps, ctx.center, ctx.activation, _ = inputs
    ctx.save_for_backward(*tensors)


def _gradients(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
    tensors = ctx.saved_tensors
    dy, dgate, dr, dk, dv, sums = backward_operator(dout, *tensors, ctx.eps, ctx.center, ctx.activation)
    _, weight, bias, gate, r, k, rho, v = tensors
    given = [part for part in (weight, bias, rho) if part is not None]
    shares = iter(sums.chunk(len(given)) if given else ())
    dweight, dbias, drho = (
        None if part is None else next(shares).view(part.shape).to(part.dtype) for part in (weight, bias, rho)
    )
    found = (None if part is None else grad for part, grad in ((gate, dgate), (r, dr), (k, dk)))
    return dy, dweight, dbias, *found, drho, None if v is None else dv, None, None, None, None


operator.register_autograd(_gradients, setup_context=_keep)


def head_norm(y, weight, bias, gate, activation, bonus, eps, center, dtype) -> Tensor:
    """`head_norm.reference` by the kernels above, for inputs that `unsupported` has no reason against."""
    r, k, rho, v = (None, None, None, None) if bonus is None else bonus
    out: Tensor = operator(y, weight, bias, gate, r, k, rho, v, eps, center, activation, dtype)
    return out
