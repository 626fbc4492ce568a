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

Sums over tokens that a gradient or a later token sees are float64: a, b, alpha, beta (rounded to float32 where they
are kept or used) and the shares of w and u. Their errors would add up over thousands of tokens, and few threads wait
for each other here, so that the additions cost next to nothing.

In Gluon, for the layout is plain, and Triton's search for one takes time with the third power of an unrolled loop's
length: ten seconds a kernel.
"""

# mypy: allow-untyped-defs, disable-error-code="assignment,misc"

import triton.language as tl
from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from . import exponentials_triton

exponential = gluon.jit(exponentials_triton.exponential.fn)
CENTRE = gl.constexpr(6.88e-8)  # in powers of two: the hardware's exp2 is low on average


@gluon.constexpr_function
def _layout(channels):
    """One channel a thread of a warp."""
    return gl.BlockedLayout([1], [channels], [1], [0])


@gluon.jit
def load_tokens(pointer, start, L, d, inside, D: gl.constexpr, T: gl.constexpr):
    """T rows (channels,) in float32, zeros outside the sequence."""
    rows = ()
    pointer += gl.to_tensor(start).to(gl.int64) * D
    for t in gl.static_range(T):
        exists = inside & (start + t >= 0) & (start + t < L)
        rows += (gl.load(pointer + t * D + d, mask=exists, other=0.0).to(gl.float32),)
    return rows


@gluon.jit
def joined(m, e):
    """exp(m - M), exp(e - M) for M = max(m, e)."""
    # exp(-128) is 0 in float32, and -inf has no parts.
    smaller = exponential(gl.maximum(-gl.abs(m - e), -128.0), CENTRE)
    return gl.where(m >= e, 1.0, smaller), gl.where(m >= e, smaller, 1.0)


@gluon.jit
def advanced(a, b, m, age, k, v, w, exists):
    """The sums, times exp(m + age w), behind one more token; the same ones if there is none.

    Adding w to m token by token would round as often.
    """
    before = m + (age + 1) * w
    p, q = joined(before, k)
    a = gl.where(exists, a * p.to(tl.float64) + (v * q).to(tl.float64), a)
    b = gl.where(exists, b * p.to(tl.float64) + q.to(tl.float64), b)
    stays = before >= k
    age = gl.where(exists, gl.where(stays, age + 1, 0.0), age)
    return a, b, gl.where(stays | (exists == 0), m, k), age


@gluon.jit
def load_sums(pointer, d, inside, D: gl.constexpr, PRESENT: gl.constexpr, nothing):
    """a and b in float64 and m of a state (3,D), or those of none."""
    m = d * 0.0 + nothing
    a, b = (d * 0.0).to(tl.float64), (d * 0.0).to(tl.float64)
    if PRESENT:
        a = gl.load(pointer + d, mask=inside, other=0.0).to(tl.float64)
        b = gl.load(pointer + D + d, mask=inside, other=0.0).to(tl.float64)
        m = gl.load(pointer + 2 * D + d, mask=inside, other=0.0).to(gl.float32)
    return a, b, m


@gluon.jit
def store_sums(pointer, a, b, m, d, inside, D: gl.constexpr):
    gl.store(pointer + d, a.to(gl.float32), mask=inside)
    gl.store(pointer + D + d, b.to(gl.float32), mask=inside)
    gl.store(pointer + 2 * D + d, m.to(gl.float32), mask=inside)


@gluon.jit(do_not_specialize=["L", "chunks"])
def wkv4_kernel(
    k, v, w, u, initial, y, final, kept, L, chunks, nothing,
    D: gl.constexpr, BD: gl.constexpr, T: gl.constexpr, INITIAL: gl.constexpr, KEEP: gl.constexpr,
):  # fmt: skip
    """y (B,L,D), the last state (B,3,D) and, with KEEP, those before each chunk (B,chunks,4,D), m's age the fourth."""
    blocks = (D + BD - 1) // BD
    d = gl.program_id(0) % blocks * BD + gl.arange(0, BD, _layout(BD))
    batch, inside = (gl.program_id(0) // blocks).to(gl.int64), d < D
    k, v, y = k + batch * L * D, v + batch * L * D, y + batch * L * D
    w = gl.load(w + d, mask=inside, other=0.0).to(gl.float32)
    u = gl.load(u + d, mask=inside, other=0.0).to(gl.float32)
    a, b, m = load_sums(initial + batch * (3 * D), d, inside, D, INITIAL, nothing)
    age = gl.zeros([BD], gl.float32, _layout(BD))
    next_k, next_v = load_tokens(k, 0, L, d, inside, D, T), load_tokens(v, 0, L, d, inside, D, T)
    for chunk in range(chunks):
        start = chunk * T
        ks, vs = next_k, next_v
        next_k, next_v = load_tokens(k, start + T, L, d, inside, D, T), load_tokens(v, start + T, L, d, inside, D, T)
        if KEEP:
            entry = kept + (batch * chunks + chunk) * (4 * D)
            store_sums(entry, a, b, m, d, inside, D)
            gl.store(entry + 3 * D + d, age, mask=inside)
        for t in gl.static_range(T):
            p, q = joined(m + age * w, u + ks[t])
            out = (a.to(gl.float32) * p + vs[t] * q) / (b.to(gl.float32) * p + q)
            place = y + gl.to_tensor(start + t).to(gl.int64) * D + d
            gl.store(place, out.to(y.dtype.element_ty), mask=inside & (start + t < L))
            a, b, m, age = advanced(a, b, m, age, ks[t], vs[t], w, start + t < L)
    store_sums(final + batch * (3 * D), a, b, m + age * w, d, inside, D)


@gluon.jit(do_not_specialize=["L", "chunks"])
def wkv4_backward_kernel(
    k, v, w, u, dy, grad_final, kept, dk, dv, grad_initial, partials, L, chunks, nothing,
    D: gl.constexpr, BD: gl.constexpr, T: gl.constexpr, GRAD_INITIAL: gl.constexpr, GRAD_FINAL: gl.constexpr,
):  # fmt: skip
    """dk, dv (B,L,D), the gradient of the initial state (B,3,D), and a sequence's share of those of w and u (B,2,D)."""
    blocks = (D + BD - 1) // BD
    d = gl.program_id(0) % blocks * BD + gl.arange(0, BD, _layout(BD))
    batch, inside = (gl.program_id(0) // blocks).to(gl.int64), d < D
    sequence = batch * L * D
    k, v, dy, dk, dv = k + sequence, v + sequence, dy + sequence, dk + sequence, dv + sequence
    w = gl.load(w + d, mask=inside, other=0.0).to(gl.float32)
    u = gl.load(u + d, mask=inside, other=0.0).to(gl.float32)
    # How a state is divided between sums and exponent has no gradient.
    alpha, beta, _ = load_sums(grad_final + batch * (3 * D), d, inside, D, GRAD_FINAL, 0.0)
    dw, du = gl.zeros([BD], tl.float64, _layout(BD)), gl.zeros([BD], tl.float64, _layout(BD))
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
        age = gl.load(entry + 3 * D + d, mask=inside, other=0.0)
        sums_a, sums_b, exponents, ages = (), (), (), ()
        for t in gl.static_range(T):
            sums_a += (a.to(gl.float32),)
            sums_b += (b.to(gl.float32),)
            exponents += (m,)
            ages += (age,)
            if t < T - 1:
                a, b, m, age = advanced(a, b, m, age, ks[t], vs[t], w, start + t < L)
        for t in gl.static_range(T - 1, -1, -1):
            a, b, m, age = sums_a[t], sums_b[t], exponents[t], ages[t]
            asks_a, asks_b = alpha.to(gl.float32), beta.to(gl.float32)
            p, q = joined(m + age * w, u + ks[t])
            whole, exists = b * p + q, start + t < L
            dA = grads[t] / whole
            dB = -dA * ((a * p + vs[t] * q) / whole)
            keeps, takes = joined(m + (age + 1) * w, ks[t])
            place = gl.to_tensor(start + t).to(gl.int64) * D + d
            gl.store(dv + place, (q * dA + takes * asks_a).to(dv.dtype.element_ty), mask=inside & exists)
            own = q * (dA * vs[t] + dB)
            grad = own + takes * (asks_a * vs[t] + asks_b)
            gl.store(dk + place, grad.to(dk.dtype.element_ty), mask=inside & exists)
            du += own.to(tl.float64)
            dw += gl.where(exists, keeps * (asks_a * a + asks_b * b), 0.0).to(tl.float64)
            keeps = keeps.to(tl.float64)
            alpha = gl.where(exists, keeps * alpha + (p * dA).to(tl.float64), alpha)
            beta = gl.where(exists, keeps * beta + (p * dB).to(tl.float64), beta)
    gl.store(partials + batch * (2 * D) + d, dw.to(gl.float32), mask=inside)
    gl.store(partials + batch * (2 * D) + D + d, du.to(gl.float32), mask=inside)
    if GRAD_INITIAL:
        a, b, _ = load_sums(kept + batch * chunks * (4 * D), d, inside, D, True, nothing)
        store_sums(grad_initial + batch * (3 * D), alpha, beta, alpha * a + beta * b, d, inside, D)
