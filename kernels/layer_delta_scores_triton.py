"""Scores inside the chunks of the delta rule as layers have it, one program a chunk, sequence and head.

With unit keys n, step sizes beta and G the sum of g from the beginning of the chunk of T tokens,

    P_ts = beta_s 2^(G_t - G_s) q_t . n_s  (s <= t)         A_ts = beta_s 2^(G_t - G_s) n_t . n_s  (s < t)

What a token writes in place of what its key has read, w = v - n^ S - A w, takes X = (1 + A)^-1 - 1. One decay a head is
a factor of rows and columns of the same two products as without decays. Their exponents are differences of sums here:
bfloat16 alone comes this way, and a sum's rounding, at most 2^-11 behind decays that leave nothing, is less than its.
"""

# mypy: allow-untyped-defs

import triton
import triton.language as tl

from .delta_rule_scores_triton import inverse
from .delta_rule_tiles_triton import LOG2E, chunk_place
from .taylor_tiles import head_offset, load_tile

# In units of log 2, and already nothing in float32: sums of 32 of them are right to 2^-12.
LEAST = tl.constexpr(-160.0)


@triton.jit
def load_decay(pointer, stride, t, left):
    """g (T,) of one decay a head."""
    g = tl.load(pointer + t * stride, mask=t < left, other=0.0)
    return tl.maximum(g.to(tl.float32) * LOG2E, LEAST)


@triton.jit
def store_scores(scores, P, A, program, LEVELS: tl.constexpr):
    """P and X (B,H,chunks,2,T,T)."""
    T: tl.constexpr = P.shape[0]
    t = tl.arange(0, T)
    scores += program.to(tl.int64) * (2 * T * T) + t[:, None] * T + t[None, :]
    tl.store(scores, P.to(scores.dtype.element_ty))
    tl.store(scores + T * T, inverse(-A, LEVELS, "tf32").to(scores.dtype.element_ty))


@triton.jit(do_not_specialize=["length", "heads"])
def scores_kernel(
    q_pointer, n_pointer, beta_pointer, g_pointer, scores, factors,
    q_batch, q_row, q_head, n_batch, n_row, n_head, g_batch, g_row, g_head, length, heads,
    K: tl.constexpr, BK: tl.constexpr, T: tl.constexpr, LEVELS: tl.constexpr, EVEN: tl.constexpr, GATE: tl.constexpr,
):  # fmt: skip
    """scores (B,H,chunks,2,T,T), and factors (B,H,chunks,3,T): beta 2^(G_T - G) of k^, 2^G of q^ and n^, and G.

    Without decays, of the factors only beta: (B,H,chunks,1,T). beta is dense.
    """
    program = tl.program_id(0)
    sequence, left, first, token = chunk_place(program, length, heads, T)
    t, keys = tl.arange(0, T), tl.arange(0, BK)
    q_pointer += head_offset(sequence, heads, q_batch, q_head) + first * q_row
    n_pointer += head_offset(sequence, heads, n_batch, n_head) + first * n_row
    q = load_tile(q_pointer, q_row, t, keys, left, K, BK, EVEN)
    n = load_tile(n_pointer, n_row, t, keys, left, K, BK, EVEN)
    beta = tl.load(beta_pointer + token + t * heads, mask=t < left, other=0.0).to(tl.float32)
    factors += program.to(tl.int64) * (3 * T if GATE == "head" else T) + t
    of_write = beta
    if GATE == "head":
        g_pointer += head_offset(sequence, heads, g_batch, g_head) + first * g_row
        g = load_decay(g_pointer, g_row, t, left)
        total = tl.cumsum(g, 0)
        tl.store(factors + T, tl.exp2(total))
        of_write = beta * tl.exp2(tl.sum(g, 0) - total)
        tl.store(factors + 2 * T, total)
    tl.store(factors, of_write)
    P, A = tl.dot(q, tl.trans(n)), tl.dot(n, tl.trans(n))
    weight = tl.where(t[:, None] >= t[None, :], beta[None, :], 0.0)
    if GATE == "head":
        weight *= tl.exp2(tl.minimum(total[:, None] - total[None, :], 0.0))
    store_scores(scores, P * weight, tl.where(t[:, None] > t[None, :], A * weight, 0.0), program, LEVELS)
