"""`linear_cross_entropy` of wide models: the library's products, and one kernel for what is between them.

Above D = 256 a block of positions or words hardly fits beside its sums on a multiprocessor, and the products are so
large that a library's are the fastest. So logits are written, and read at once:

    logits -> loss, hit, height = logsumexp_v l_v, and in their place slopes G = dloss/dlogits
    dloss/dx = G weight, its rows times the gradient of the loss; dloss/dweight = G^T x, the rows of x times that

G does not depend on the gradient of the loss, so three products do, and of (N,V) numbers only G is kept, in half
precision. Where that is more than `KEPT` nothing of (N,V) numbers is, and no more than `CHUNK` logits are there at a
time (as in Liger, arXiv 2410.10989), which takes a fourth product:

    forward, positions by positions     logits -> G -> dloss/dx
    backward, words by words            logits once more -> G times the gradient of the loss -> dweight

No result is a sum over chunks. The slope by the target's logit is -rest / total,
rest over the other words: a nearly certain answer's is free of cancellation.
"""

# mypy: allow-untyped-defs

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .differentiated import once_differentiable

KEPT = 2**30  # slopes: 2 GiB in half precision
CHUNK = 2**27
EVEN = 128  # rows and columns of a product come in tiles of so many
ALIGNED = tl.constexpr(8)  # rows of logits begin at multiples of 16 bytes, whatever their width
BLOCK, WARPS = 1024, 4
LOG2E = tl.constexpr(1.4426950408889634)
LEAST = tl.constexpr(-1e38)  # below all logits but -inf, and differences to it are numbers


@triton.jit(do_not_specialize=["first"])
def lce_rows_kernel(
    logits, eighths, target, loss, hit, saved, first, N, V,
    BLOCK: tl.constexpr, SLOPES: tl.constexpr,
):  # fmt: skip
    """One position's logits, one of the rows of a chunk: its loss and hit, height and rest / total into saved (2,N).

    Every lane has a peak and a sum of its own until the end: nothing in the loop waits for other lanes. A row has 8
    `eighths` numbers: what lies behind the V'th is read and written too, so that 16 bytes at a time are.
    """
    n = first + tl.program_id(0)
    row = eighths * ALIGNED
    logits += tl.program_id(0).to(tl.int64) * row
    target_n = tl.load(target + n)
    known = (target_n >= 0) & (target_n < V)
    target_n = tl.where(known, target_n, -1).to(tl.int32)
    wanted = tl.load(logits + target_n, mask=known, other=float("nan")).to(tl.float32)
    column = tl.arange(0, BLOCK)
    peak_V = tl.full([BLOCK], LEAST, tl.float32)
    before_V = tl.full([BLOCK], float("-inf"), tl.float32)
    rest_V = tl.zeros([BLOCK], tl.float32)
    for start in tl.range(0, V, BLOCK):
        v = start + column
        logit_V = tl.load(logits + v, mask=v < row, other=float("-inf")).to(tl.float32)
        other_V = tl.where((v < V) & (v != target_n), logit_V, float("-inf"))
        above_V = other_V - peak_V
        less_V = tl.exp2(-tl.abs(above_V) * LOG2E)  # of the two exponentials one is 1
        rest_V = tl.where(above_V > 0, rest_V * less_V + 1, rest_V + less_V)
        peak_V = tl.maximum(peak_V, other_V)
        before_V = tl.maximum(before_V, tl.where(v < target_n, other_V, float("-inf")))
    highest, before = tl.max(peak_V, 0), tl.max(before_V, 0)
    peak = tl.maximum(highest, wanted)
    rest = tl.sum(rest_V * tl.exp2((peak_V - peak) * LOG2E), 0)
    total = rest + tl.exp2((wanted - peak) * LOG2E)
    height = peak + tl.log(total)
    wrong = rest / total
    tl.store(loss + n, height - wanted)
    tl.store(hit + n, (wanted > before) & (wanted >= highest) & (rest == rest))  # a NaN is no peak
    tl.store(saved + n, height)
    tl.store(saved + N + n, wrong)
    if SLOPES:
        for start in tl.range(0, V, BLOCK):
            v = start + column
            logit_V = tl.load(logits + v, mask=v < row, other=float("-inf")).to(tl.float32)
            slope_V = tl.where(v == target_n, -wrong, tl.exp2((logit_V - height) * LOG2E))
            tl.store(logits + v, slope_V.to(logits.dtype.element_ty), mask=v < row)


@triton.jit(do_not_specialize=["first"])
def lce_slopes_kernel(logits, eighths, target, saved, grad_loss, first, N, BLOCK: tl.constexpr):
    """Logits (N,width) of the words from `first` on become the gradients by them."""
    n = tl.program_id(0)
    v = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    row = eighths * ALIGNED
    logits += n.to(tl.int64) * row + v
    logit_V = tl.load(logits, mask=v < row, other=0.0).to(tl.float32)
    height, wrong, slope = tl.load(saved + n), tl.load(saved + N + n), tl.load(grad_loss + n)
    slope_V = tl.where(first + v == tl.load(target + n), -wrong, tl.exp2((logit_V - height) * LOG2E)) * slope
    tl.store(logits, slope_V.to(logits.dtype.element_ty), mask=v < row)


def kept(positions: int, words: int) -> bool:
    """Whether slopes of so many logits are kept for the backward."""
    return positions * words <= KEPT


def chunk_of(rows: int, width: int) -> int:
    """How many of `rows` a chunk has, each of so many logits: all alike but for the last, in whole tiles."""
    most = max(1, CHUNK // width)
    if most >= rows:
        return rows
    if most > EVEN:
        most -= most % EVEN
    each = triton.cdiv(rows, triton.cdiv(rows, most))
    return min(most, each if each <= EVEN else triton.cdiv(each, EVEN) * EVEN)


def row_of(width: int) -> int:
    """Numbers from one row of logits to the next."""
    return triton.cdiv(width, ALIGNED.value) * ALIGNED.value


def _block(width: int) -> dict[str, Any]:
    block = min(BLOCK, max(128, triton.next_power_of_2(width)))
    return {"BLOCK": block, "num_warps": max(1, WARPS * block // BLOCK)}


@torch.library.custom_op("basedbench::linear_cross_entropy_wide", mutates_args=())
def forward_operator(
    x: Tensor, weight: Tensor, target: Tensor, by_x: bool, by_weight: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """loss (N,), hit (N,), saved (2,N), and for the gradients asked for slopes (N,V), or dloss/dx (N,D), or nothing."""
    x, weight, target = x.contiguous(), weight.contiguous(), target.contiguous()
    N, V = len(x), len(weight)
    loss, hit, saved, slopes = outputs(x, weight, target, by_x, by_weight)
    whole = kept(N, V) and (by_x or by_weight)
    rows = N if whole else chunk_of(N, V)
    buffer = slopes.as_strided((N, row_of(V)), (row_of(V), 1)) if whole else x.new_empty(rows, row_of(V))
    for first in range(0, N, rows):
        part = x[first : first + rows]
        logits = torch.mm(part, weight.t(), out=buffer[: len(part), :V])
        lce_rows_kernel[(len(part),)](
            buffer, buffer.stride(0) // ALIGNED.value, target, loss, hit, saved, first, N, V,
            SLOPES=whole or by_x, **_block(V),
        )  # fmt: skip
        if by_x and not whole:
            torch.mm(logits, weight, out=slopes[first : first + rows])
    return loss, hit, saved, slopes


@forward_operator.register_fake
def outputs(
    x: Tensor, weight: Tensor, target: Tensor, by_x: bool, by_weight: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The outputs, not yet written."""
    (N, D), V = x.shape, len(weight)
    loss = x.new_empty(N, dtype=torch.float32)
    rows, width = (N if by_x or by_weight else 0, V) if kept(N, V) else (N if by_x else 0, D)
    slopes = x.new_empty(rows, row_of(width))[:, :width]
    return loss, loss.new_empty(N, dtype=torch.bool), loss.new_empty(2, N), slopes


@torch.library.custom_op("basedbench::linear_cross_entropy_wide_gradient", mutates_args=())
def gradient_operator(x: Tensor, weight: Tensor, target: Tensor, saved: Tensor, grad_loss: Tensor) -> Tensor:
    """The gradient by the weight (V,D), from logits made once more."""
    x, weight, target, grad_loss = x.contiguous(), weight.contiguous(), target.contiguous(), grad_loss.contiguous()
    N, V = len(x), len(weight)
    grad = torch.empty_like(weight)
    words = chunk_of(V, N)
    buffer = x.new_empty(N * row_of(words))
    for first in range(0, V, words):
        part = weight[first : first + words]
        width, row = len(part), row_of(len(part))
        rows = buffer[: N * row].view(N, row)
        logits = torch.mm(x, part.t(), out=rows[:, :width])
        how = _block(width)
        lce_slopes_kernel[(N, triton.cdiv(width, how["BLOCK"]))](
            rows, row // ALIGNED.value, target, saved, grad_loss, first, N, **how
        )  # fmt: skip
        torch.mm(logits.t(), x, out=grad[first : first + words])
    return grad


@gradient_operator.register_fake
def _(x, weight, target, saved, grad_loss):
    return weight.new_empty(weight.shape)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, weight, target, *_ = inputs
    _, hit, saved, slopes = output
    ctx.save_for_backward(x, weight, target, saved, slopes)
    ctx.kept = kept(len(x), len(weight))
    ctx.mark_non_differentiable(hit, saved, slopes)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad_loss: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
    if grad_loss is None:
        return None, None, None, None, None
    x, weight, target, saved, slopes = ctx.saved_tensors
    by_x, by_weight = ctx.needs_input_grad[:2]
    grad_x = grad_weight = None
    if by_x:
        grad_x = _scaled(slopes @ weight if ctx.kept else slopes, grad_loss)
    if by_weight and ctx.kept:
        grad_weight = slopes.t() @ _scaled(x, grad_loss)
    elif by_weight:
        grad_weight = gradient_operator(x, weight, target, saved, grad_loss)
    return grad_x, grad_weight, None, None, None


def _scaled(x_ND: Tensor, by_N: Tensor) -> Tensor:
    """Rows times float32 numbers, rounded once."""
    return torch.mul(x_ND, by_N.unsqueeze(-1), out=torch.empty_like(x_ND))


forward_operator.register_autograd(once_differentiable(_backward), setup_context=_keep)


def supported(x: Tensor, weight: Tensor) -> bool:
    """Whether these inputs are better off here than with the reference."""
    fits = x.dim() == weight.dim() == 2 and x.dtype == weight.dtype and 0 < len(x) < 2**31 and 0 < len(weight) < 2**31
    return fits and x.dtype in (torch.float16, torch.bfloat16)


def linear_cross_entropy(x_ND: Tensor, weight_VD: Tensor, target_N: Tensor) -> tuple[Tensor, Tensor]:
    """The public function's operands, already in the dtype of the product -> loss (N,) float32, hit (N,) bool."""
    trained = torch.is_grad_enabled()
    given = x_ND, weight_VD, target_N, trained and x_ND.requires_grad, trained and weight_VD.requires_grad
    loss, hit, _, _ = forward_operator(*given)
    return loss, hit
