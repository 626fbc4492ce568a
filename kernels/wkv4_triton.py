"""WKV on a GPU: one thread for each channel of a sequence walks through time, forward and, from the end, backward.

With the sums a (of weighted values) and b (of weights) before token t, divided by exp(m), e = u + k_t, M = max(m, e),

    y = (a p + v q) / (b p + q),   p = exp(m - M), q = exp(e - M)

of which one is 1. Backward, with A and B the numerator and denominator, dA = dy / B and dB = -dy y / B, and with
p', q' those of the sums' own step, max(m + w, k), what later tokens ask of a and b is carried as alpha and beta:

    dv = q dA + q' alpha                    dk = q (dA v + dB) + q' (alpha v + beta)
    du = sum q (dA v + dB)                  dw = sum p' (alpha a + beta b)
    alpha <- p' alpha + p dA                beta <- p' beta + p dB

in the units of the sums there, so that they are bounded as these are. The forward keeps the sums before every CHUNK
tokens, 16 bytes a channel; the backward forms those between from there, by the same steps to the last bit.

Tokens of a chunk are loaded before any of them is used, and those of the next one before this one's work: what a
thread waits for is then its own recurrence, two exponentials a token.
"""

# mypy: allow-untyped-defs, disable-error-code="assignment"

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .partial_sums_triton import sum_parts
from .wkv4 import NOTHING

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
CHANNELS = 32  # of a program: one warp
CHUNK = 16  # tokens, a power of two


def unsupported(k: Tensor, v: Tensor, w: Tensor, u: Tensor, initial_state: Tensor | None = None) -> str | None:
    """Why the kernels do not take these inputs, or None if they do."""
    if any(part is not None and part.dtype not in DTYPES for part in (k, v, w, u, initial_state)):
        return "inputs must be float32, float16 or bfloat16"
    return "there is nothing to compute" if v.numel() == 0 else None


@triton.jit
def load_tokens(pointer, start, L, d, inside, D: tl.constexpr, T: tl.constexpr):
    """T rows (channels,) in float32, zeros outside the sequence."""
    rows = ()
    pointer += tl.cast(start, tl.int64) * D
    for t in tl.static_range(T):
        exists = inside & (start + t >= 0) & (start + t < L)
        rows += (tl.load(pointer + t * D + d, mask=exists, other=0.0).to(tl.float32),)
    return rows


@triton.jit
def joined(m, e):
    """exp(m - M), exp(e - M) for M = max(m, e)."""
    smaller = tl.exp(-tl.abs(m - e))
    return tl.where(m >= e, 1.0, smaller), tl.where(m >= e, smaller, 1.0)


@triton.jit
def advanced(a, b, m, age, k, v, w, exists):
    """The sums, times exp(m + age w), behind one more token; the same ones if there is none.

    Adding w to m token by token would round as often.
    """
    before = m + (age + 1) * w
    p, q = joined(before, k)
    a, b = tl.where(exists, a * p + v * q, a), tl.where(exists, b * p + q, b)
    stays = before >= k
    age = tl.where(exists, tl.where(stays, age + 1, 0.0), age)
    return a, b, tl.where(stays | (exists == 0), m, k), age


@triton.jit
def load_sums(pointer, d, inside, D: tl.constexpr, PRESENT: tl.constexpr, nothing):
    """a, b and m of a state (3,D), or those of none."""
    a, b = tl.zeros(d.shape, tl.float32), tl.zeros(d.shape, tl.float32)
    m = a + nothing
    if PRESENT:
        a = tl.load(pointer + d, mask=inside, other=0.0).to(tl.float32)
        b = tl.load(pointer + D + d, mask=inside, other=0.0).to(tl.float32)
        m = tl.load(pointer + 2 * D + d, mask=inside, other=0.0).to(tl.float32)
    return a, b, m


@triton.jit
def store_sums(pointer, a, b, m, d, inside, D: tl.constexpr):
    tl.store(pointer + d, a, mask=inside)
    tl.store(pointer + D + d, b, mask=inside)
    tl.store(pointer + 2 * D + d, m, mask=inside)


@triton.jit(do_not_specialize=["L", "chunks"])
def wkv4_kernel(
    k, v, w, u, initial, y, final, kept, L, chunks, nothing,
    D: tl.constexpr, BD: tl.constexpr, T: tl.constexpr, INITIAL: tl.constexpr, KEEP: tl.constexpr,
):  # fmt: skip
    """y (B,L,D), the last state (B,3,D) and, with KEEP, those before each chunk (B,chunks,4,D), m's age the fourth."""
    blocks = (D + BD - 1) // BD
    d = tl.program_id(0) % blocks * BD + tl.arange(0, BD)
    batch, inside = (tl.program_id(0) // blocks).to(tl.int64), d < D
    k, v, y = k + batch * L * D, v + batch * L * D, y + batch * L * D
    w = tl.load(w + d, mask=inside, other=0.0).to(tl.float32)
    u = tl.load(u + d, mask=inside, other=0.0).to(tl.float32)
    a, b, m = load_sums(initial + batch * (3 * D), d, inside, D, INITIAL, nothing)
    age = tl.zeros([BD], tl.float32)
    next_k, next_v = load_tokens(k, 0, L, d, inside, D, T), load_tokens(v, 0, L, d, inside, D, T)
    for chunk in range(chunks):
        start = chunk * T
        ks, vs = next_k, next_v
        next_k, next_v = load_tokens(k, start + T, L, d, inside, D, T), load_tokens(v, start + T, L, d, inside, D, T)
        if KEEP:
            entry = kept + (batch * chunks + chunk) * (4 * D)
            store_sums(entry, a, b, m, d, inside, D)
            tl.store(entry + 3 * D + d, age, mask=inside)
        for t in tl.static_range(T):
            p, q = joined(m + age * w, u + ks[t])
            out = (a * p + vs[t] * q) / (b * p + q)
            place = y + tl.cast(start + t, tl.int64) * D + d
            tl.store(place, out.to(y.dtype.element_ty), mask=inside & (start + t < L))
            a, b, m, age = advanced(a, b, m, age, ks[t], vs[t], w, start + t < L)
    store_sums(final + batch * (3 * D), a, b, m + age * w, d, inside, D)


@triton.jit(do_not_specialize=["L", "chunks"])
def wkv4_backward_kernel(
    k, v, w, u, dy, grad_final, kept, dk, dv, grad_initial, partials, L, chunks, nothing,
    D: tl.constexpr, BD: tl.constexpr, T: tl.constexpr, GRAD_INITIAL: tl.constexpr, GRAD_FINAL: tl.constexpr,
):  # fmt: skip
    """dk, dv (B,L,D), the gradient of the initial state (B,3,D), and a sequence's share of those of w and u (B,2,D)."""
    blocks = (D + BD - 1) // BD
    d = tl.program_id(0) % blocks * BD + tl.arange(0, BD)
    batch, inside = (tl.program_id(0) // blocks).to(tl.int64), d < D
    sequence = batch * L * D
    k, v, dy, dk, dv = k + sequence, v + sequence, dy + sequence, dk + sequence, dv + sequence
    w = tl.load(w + d, mask=inside, other=0.0).to(tl.float32)
    u = tl.load(u + d, mask=inside, other=0.0).to(tl.float32)
    # How a state is divided between sums and exponent has no gradient.
    alpha, beta, _ = load_sums(grad_final + batch * (3 * D), d, inside, D, GRAD_FINAL, 0.0)
    dw, du = tl.zeros([BD], tl.float32), tl.zeros([BD], tl.float32)
    last = (chunks - 1) * T
    next_k, next_v = load_tokens(k, last, L, d, inside, D, T), load_tokens(v, last, L, d, inside, D, T)
    next_dy = load_tokens(dy, last, L, d, inside, D, T)
    for index in range(chunks):
        start = (chunks - 1 - index) * T
        ks, vs, grads = next_k, next_v, next_dy
        next_k, next_v = load_tokens(k, start - T, L, d, inside, D, T), load_tokens(v, start - T, L, d, inside, D, T)
        next_dy = load_tokens(dy, start - T, L, d, inside, D, T)
        entry = kept + (batch * chunks + chunks - 1 - index) * (4 * D)
        a, b, m = load_sums(entry, d, inside, D, True, nothing)
        age = tl.load(entry + 3 * D + d, mask=inside, other=0.0)
        sums_a, sums_b, exponents, ages = (), (), (), ()
        for t in tl.static_range(T):
            sums_a += (a,)
            sums_b += (b,)
            exponents += (m,)
            ages += (age,)
            if t < T - 1:
                a, b, m, age = advanced(a, b, m, age, ks[t], vs[t], w, start + t < L)
        for t in tl.static_range(T - 1, -1, -1):
            a, b, m, age = sums_a[t], sums_b[t], exponents[t], ages[t]
            p, q = joined(m + age * w, u + ks[t])
            whole, exists = b * p + q, start + t < L
            dA = grads[t] / whole
            dB = -dA * ((a * p + vs[t] * q) / whole)
            keeps, takes = joined(m + (age + 1) * w, ks[t])
            place = tl.cast(start + t, tl.int64) * D + d
            tl.store(dv + place, (q * dA + takes * alpha).to(dv.dtype.element_ty), mask=inside & exists)
            own = q * (dA * vs[t] + dB)
            grad = own + takes * (alpha * vs[t] + beta)
            tl.store(dk + place, grad.to(dk.dtype.element_ty), mask=inside & exists)
            du += own
            dw += tl.where(exists, keeps * (alpha * a + beta * b), 0.0)
            alpha = tl.where(exists, keeps * alpha + p * dA, alpha)
            beta = tl.where(exists, keeps * beta + p * dB, beta)
    tl.store(partials + batch * (2 * D) + d, dw, mask=inside)
    tl.store(partials + batch * (2 * D) + D + d, du, mask=inside)
    if GRAD_INITIAL:
        a, b, _ = load_sums(kept + batch * chunks * (4 * D), d, inside, D, True, nothing)
        store_sums(grad_initial + batch * (3 * D), alpha, beta, alpha * a + beta * b, d, inside, D)


def _launch(v: Tensor) -> tuple[tuple[int], tuple[int, int, float], dict[str, int]]:
    """Grid, sizes and constants of both kernels."""
    batch, length, channels = v.shape
    grid = (batch * triton.cdiv(channels, CHANNELS),)
    sizes = length, triton.cdiv(length, CHUNK), NOTHING
    return grid, sizes, {"D": channels, "BD": CHANNELS, "T": CHUNK, "num_warps": 1}


@torch.library.custom_op("basedbench::wkv4", mutates_args=())
def forward(k: Tensor, v: Tensor, w: Tensor, u: Tensor, initial_state: Tensor | None, keep: bool) -> list[Tensor]:
    """y (B,L,D), the last state (B,3,D), and the states before chunks or (0,)."""
    y, final, kept = outputs = _outputs(k, v, w, u, initial_state, keep)
    grid, sizes, constants = _launch(v)
    initial = v if initial_state is None else initial_state.contiguous()
    wkv4_kernel[grid](
        k.contiguous(), v.contiguous(), w.contiguous(), u.contiguous(), initial, y, final, kept, *sizes,
        **constants, INITIAL=initial_state is not None, KEEP=keep,
    )  # fmt: skip
    return outputs


@forward.register_fake
def _outputs(k, v, w, u, initial_state, keep):
    batch, length, channels = v.shape
    kept = (batch, (length + CHUNK - 1) // CHUNK, 4, channels) if keep else (0,)
    return [v.new_empty(v.shape), *(v.new_empty(s, dtype=torch.float32) for s in ((batch, 3, channels), kept))]


@torch.library.custom_op("basedbench::wkv4_backward", mutates_args=())
def backward(
    k: Tensor, v: Tensor, w: Tensor, u: Tensor, initial_state: Tensor | None, kept: Tensor,
    dy: Tensor, grad_state: Tensor | None,
) -> list[Tensor]:  # fmt: skip
    """Gradients of k, v, those of w and u (2,D), and of the initial state, (0,) if there is none."""
    dk, dv, _, dinitial = _gradients_like(k, v, w, u, initial_state, kept, dy, grad_state)
    partials = v.new_empty((len(v), 2 * v.shape[-1]), dtype=torch.float32)
    grid, sizes, constants = _launch(v)
    wkv4_backward_kernel[grid](
        k.contiguous(), v.contiguous(), w.contiguous(), u.contiguous(), dy.contiguous(),
        v if grad_state is None else grad_state.contiguous(), kept, dk, dv, dinitial, partials, *sizes,
        **constants, GRAD_INITIAL=initial_state is not None, GRAD_FINAL=grad_state is not None,
    )  # fmt: skip
    return [dk, dv, sum_parts(partials, torch.float32).view(2, -1), dinitial]


@backward.register_fake
def _gradients_like(k, v, w, u, initial_state, kept, dy, grad_state):
    dinitial = v.new_empty(0) if initial_state is None else initial_state.new_empty(initial_state.shape)
    return [k.new_empty(k.shape), v.new_empty(v.shape), v.new_empty((2, v.shape[-1]), dtype=torch.float32), dinitial]


def _keep(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    *tensors, _ = inputs
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(output[2])
    ctx.save_for_backward(*tensors, output[2])


def _backward(ctx: Any, grads: list[Tensor | None]) -> tuple[Tensor | None, ...]:
    k, v, w, u, initial_state, kept = ctx.saved_tensors
    dy = torch.zeros_like(v) if grads[0] is None else grads[0]
    dk, dv, (dw, du), dinitial = backward(k, v, w, u, initial_state, kept, dy, grads[1])
    return dk, dv, dw.to(w.dtype), du.to(u.dtype), None if initial_state is None else dinitial, None


forward.register_autograd(_backward, setup_context=_keep)


def wkv4(k, v, w, u, *, initial_state=None, return_state=False):
    """`wkv4.reference` by the kernels above, for inputs that `unsupported` has no reason against."""
    tensors = k, v, w, u, initial_state
    keep = torch.is_grad_enabled() and any(part is not None and part.requires_grad for part in tensors)
    y, state, _ = forward(*tensors, keep)
    return (y, state) if return_state else y
