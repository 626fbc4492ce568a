"""Scores of the gated delta rule inside a chunk, one program per chunk, sequence and head: nothing here is serial.

With the decays of `delta_rule_tiles_triton`,

    qk_ts = q_t . k_s, qa_ts = q_t . a_s  (s <= t)        bk_ts = b_t . k_s, ba_ts = b_t . a_s  (s < t)

What b reads, u_t = b_t^T S_t-1, depends on the u before it: u = b S + bk v + ba u, hence u = (1 - ba)^-1 (b S + bk v).
The inverse is put together from the inverses X of blocks: those of two neighbours and the scores between them give
X + X (ba between) X, doubled until it has T rows. Like a substitution, and unlike powers of ba, this stays accurate
where ba is large: the same key again and again is -1 everywhere.
"""

# mypy: allow-untyped-defs

import triton
import triton.language as tl

from .delta_rule_tiles_triton import (
    chunk_place,
    decayed,
    first_level,
    head_decays,
    level_decays,
    load_gate,
    product,
    store_rows,
    sums_after,
    sums_before,
    takes,
)
from .taylor_tiles import head_offset, load_tile, operand


@triton.jit
def between(x, y, PRECISION: tl.constexpr):
    """x y^T for two tiles (T,BK): (T,T)."""
    T: tl.constexpr = x.shape[0]
    return product(operand(x, PRECISION), tl.trans(operand(y, PRECISION)), tl.zeros([T, T], tl.float32), PRECISION)


@triton.jit
def inverse(ba, LEVELS: tl.constexpr, PRECISION: tl.constexpr):
    """(1 - ba)^-1 - 1 for a strictly lower triangular matrix; to float32's accuracy where inputs are, for errors here

    spread. What is not 1 is small, and rounded in a product that adds to what the 1 gives.
    """
    t = tl.arange(0, ba.shape[0])
    # The first bit in which row and column differ tells the level: the pair lies in neighbouring blocks of 2^level.
    apart = t[:, None] ^ t[None, :]
    x = tl.where(apart == 0, 1.0, tl.where(apart == 1, ba, 0.0))
    rounded = operand(ba, PRECISION)
    for level in tl.range(1, LEVELS):
        off = tl.where(apart >> level == 1, rounded, 0.0)
        nothing = tl.zeros([ba.shape[0], ba.shape[0]], tl.float32)
        more = product(off, operand(x, PRECISION), nothing, PRECISION)
        x = product(operand(x, PRECISION), operand(more, PRECISION), x, PRECISION)
    return x - tl.where(t[:, None] == t[None, :], 1.0, 0.0)


@triton.jit(do_not_specialize=["length", "heads", "all_keys"])
def scores_kernel(
    q_pointer, k_pointer, a_pointer, b_pointer, g_pointer, scores, decayed_pointer, ends,
    q_batch, q_row, q_head, k_batch, k_row, k_head, a_batch, a_row, a_head, b_batch, b_row, b_head,
    g_batch, g_row, g_head, length, heads, all_keys, part,
    K: tl.constexpr, BK: tl.constexpr, KB: tl.constexpr, T: tl.constexpr, LEVELS: tl.constexpr, EVEN: tl.constexpr,
    GATE: tl.constexpr, RANK: tl.constexpr, PRECISION: tl.constexpr, LEVEL_PRECISION: tl.constexpr,
    STRONG: tl.constexpr,
):  # fmt: skip
    """scores (B,H,chunks,4,T,T): qk, and with RANK, the term of rank one, qa, bk and (1 - ba)^-1.

    With decays also what the walks need: those over whole chunks, ends (B,H,chunks,BK), and with one a head those of
    q^, b^ and k^ (B,H,chunks,3,T), otherwise q^, k^, a^ and b^ themselves (4,B,L,H,K), `part` numbers each, which every
    block of values would form anew.

    STRONG: only chunks that `is_mild` says are not, whose `ends` stand. KB keys at a time; `all_keys` is BK at run
    time, as in `gradient_kernel`.
    """
    program = tl.program_id(0)
    if not takes(ends + program.to(tl.int64) * BK, BK, STRONG):
        return
    sequence, left, first, token = chunk_place(program, length, heads, T)
    t = tl.arange(0, T)
    part = tl.cast(part, tl.int64)
    q_pointer += head_offset(sequence, heads, q_batch, q_head) + first * q_row
    k_pointer += head_offset(sequence, heads, k_batch, k_head) + first * k_row
    a_pointer += head_offset(sequence, heads, a_batch, a_head) + first * a_row
    b_pointer += head_offset(sequence, heads, b_batch, b_head) + first * b_row
    g_pointer += head_offset(sequence, heads, g_batch, g_head) + first * g_row
    if GATE == "head":
        g = load_gate(g_pointer, g_row, t, t, left, K, BK, EVEN, GATE)
        before, after = sums_before(g, GATE), sums_after(g, GATE)
        rows = decayed_pointer + program.to(tl.int64) * (3 * T) + t[:, None]
        tl.store(rows, tl.exp2(before + g))
        tl.store(rows + T, tl.exp2(before))
        tl.store(rows + 2 * T, tl.exp2(after))
    if GATE == "none":
        g = 0.0
    qk = tl.zeros([T, T], tl.float32)
    if RANK:
        qa, bk, ba = tl.zeros([T, T], tl.float32), tl.zeros([T, T], tl.float32), tl.zeros([T, T], tl.float32)
    for key in tl.range(0, all_keys, KB):
        keys = key + tl.arange(0, KB)
        q = load_tile(q_pointer, q_row, t, keys, left, K, BK, EVEN)
        k = load_tile(k_pointer, k_row, t, keys, left, K, BK, EVEN)
        if RANK:
            a = load_tile(a_pointer, a_row, t, keys, left, K, BK, EVEN)
            b = load_tile(b_pointer, b_row, t, keys, left, K, BK, EVEN)
        if GATE == "channel":
            g = load_gate(g_pointer, g_row, t, keys, left, K, BK, EVEN, GATE)
            before, after = sums_before(g, GATE), sums_after(g, GATE)
        if GATE == "channel":
            store_rows(decayed_pointer, decayed(q, before + g, GATE), token, heads, t, keys, left, K)
            store_rows(decayed_pointer + part, decayed(k, after, GATE), token, heads, t, keys, left, K)
            if RANK:
                store_rows(decayed_pointer + 2 * part, decayed(a, after, GATE), token, heads, t, keys, left, K)
                store_rows(decayed_pointer + 3 * part, decayed(b, before, GATE), token, heads, t, keys, left, K)
        if GATE != "none" and not STRONG:  # a warp that is late may still ask them whether the chunk is mild
            tl.store(ends + program.to(tl.int64) * BK + keys, tl.exp2(tl.sum(g, 0) + tl.zeros([KB], tl.float32)))
        if GATE == "channel":
            q, k = q.to(tl.float32), k.to(tl.float32)
            same = t[:, None] == t[None, :]
            qk += tl.where(same, tl.sum(q * k, 1)[:, None], 0.0)
            if RANK:
                a, b = a.to(tl.float32), b.to(tl.float32)
                qa += tl.where(same, tl.sum(q * a, 1)[:, None], 0.0)
            lowest, whole = first_level(g, LEVELS)
            for level in tl.range(lowest, LEVELS):
                _, _, pairs, into_q, into_b, into_k = level_decays(g, level, whole)
                q_part, k_part = q * into_q, k * into_k
                qk += tl.where(pairs, between(q_part, k_part, LEVEL_PRECISION), 0.0)
                if RANK:
                    b_part, a_part = b * into_b, a * into_k
                    qa += tl.where(pairs, between(q_part, a_part, LEVEL_PRECISION), 0.0)
                    bk += tl.where(pairs, between(b_part, k_part, LEVEL_PRECISION), 0.0)
                    ba += tl.where(pairs, between(b_part, a_part, LEVEL_PRECISION), 0.0)
        else:
            qk += between(q, k, PRECISION)
            if RANK:
                qa += between(q, a, PRECISION)
                bk += between(b, k, PRECISION)
                ba += between(b, a, PRECISION)
    if GATE != "channel":
        into_q, into_b = head_decays(g, GATE, T)
        qk *= into_q
        if RANK:
            qa, bk, ba = qa * into_q, bk * into_b, ba * into_b
    scores += program.to(tl.int64) * ((4 if RANK else 1) * T * T) + t[:, None] * T + t[None, :]
    tl.store(scores, qk.to(scores.dtype.element_ty))
    if RANK:
        tl.store(scores + T * T, qa.to(scores.dtype.element_ty))
        tl.store(scores + 2 * T * T, bk.to(scores.dtype.element_ty))
        solved = inverse(ba, LEVELS, "tf32" if PRECISION == "bf16" else "tf32x3")
        tl.store(scores + 3 * T * T, solved.to(scores.dtype.element_ty))
