"""Gradients of the gated delta rule by q, k, a, b and g: the second launch of its backward, one program per chunk.

See `delta_rule_backward_triton` for the formulas. What the exponents get is handed on by the chain rule to the sums
of g that they are, level by level (`delta_rule_tiles_triton`).
"""

# mypy: allow-untyped-defs

import triton
import triton.language as tl

from .delta_rule_scores_triton import between
from .delta_rule_tiles_triton import (
    chunk_place,
    decayed,
    fine_product,
    first_level,
    head_decays,
    level_decays,
    load_gate,
    parts_product,
    product,
    store_rows,
    sums,
    sums_after,
    sums_before,
    takes,
)
from .taylor_tiles import head_offset, load_tile, operand


@triton.jit
def times(weights, x, acc, PRECISION: tl.constexpr):
    return product(operand(weights, PRECISION), operand(x, PRECISION), acc, PRECISION)


@triton.jit
def rows_of(x, GATE: tl.constexpr):
    """What one exponent a row gets from its entries, where g is one a head."""
    if GATE == "head":
        x = tl.sum(x, 1)[:, None]
    return x


@triton.jit
def of_pairs(linked, later, t):
    """dg (T,) of decays between pairs t > s: the sum over s < j < t, and for j = t too if `later`."""
    sums_before = sums(t[:, None] > t[None, :], tl.trans(linked))
    reached = (t[:, None] < t[None, :]) | ((t[:, None] == t[None, :]) & later)
    return tl.sum(tl.where(reached, sums_before, 0.0), 1)


@triton.jit
def of_levels(
    x, k, a, by_k, by_a, g, dx, dk, da, dg,
    OF_B: tl.constexpr, RANK: tl.constexpr, LEVELS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Adds to dx, dk, da and dg (T,KB) what the scores of x (q, or with OF_B b) with k and a got, by_k and by_a."""
    nothing = tl.zeros_like(k)
    lowest, whole = first_level(g, LEVELS)
    for level in tl.range(lowest, LEVELS):
        above, signs, pairs, into_q, into_b, into_k = level_decays(g, level, whole)
        into_x = into_b if OF_B else into_q
        weights = tl.where(pairs, by_k, 0.0)
        x_more = times(weights, k * into_k, nothing, PRECISION)
        k_more = times(tl.trans(weights), x * into_x, nothing, PRECISION) * into_k
        dk += k_more
        of_k = k * k_more
        if RANK:
            weights = tl.where(pairs, by_a, 0.0)
            x_more = times(weights, a * into_k, x_more, PRECISION)
            a_more = times(tl.trans(weights), x * into_x, nothing, PRECISION) * into_k
            da += a_more
            of_k += a * a_more
        x_more *= into_x
        dx += x_more
        of_x = x * x_more
        # What the exponents of `level_decays` got: by the sum from the edge, and by g itself where that was added.
        dg += sums(tl.trans(signs), of_x - of_k)
        dg += tl.where(above, -of_k, -of_x) if OF_B else tl.where(above, of_x - of_k, 0.0)
    return dx, dk, da, dg


@triton.jit(do_not_specialize=["length", "heads", "all_keys", "all_values"])
def gradient_kernel(
    q_pointer, k_pointer, v_pointer, a_pointer, b_pointer, g_pointer, dy_pointer, ends, kept, asked,
    inner, inner_low, outer, outer_low, more_q, more_k,
    dq_pointer, dk_pointer, da_pointer, db_pointer, dg_pointer,
    q_batch, q_row, q_head, k_batch, k_row, k_head, v_batch, v_row, v_head, a_batch, a_row, a_head,
    b_batch, b_row, b_head, g_batch, g_row, g_head, length, heads, all_keys, all_values,
    K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, KB: tl.constexpr, BV: tl.constexpr, VP: tl.constexpr,
    T: tl.constexpr, LEVELS: tl.constexpr, EVEN: tl.constexpr, GATE: tl.constexpr, RANK: tl.constexpr,
    PRECISION: tl.constexpr, LEVEL_PRECISION: tl.constexpr, STRONG: tl.constexpr, MORE: tl.constexpr,
):  # fmt: skip
    """dq, dk, da, db (B,L,H,K), dg as g, from S (kept) and R (asked) of the chunk, u (inner) and p (outer).

    MORE: to dq and dk belongs what others have for q and k.

    First what the scores get, for they are sums over the values; then KB keys at a time. `all_keys` is BK, `all_values`
    VP at run time: loops of a few rounds would be unrolled, and need more registers than there are. STRONG: only chunks
    that `is_mild` says are not.
    """
    program = tl.program_id(0)
    if not takes(ends + program.to(tl.int64) * BK, BK, STRONG):
        return
    sequence, left, first, token = chunk_place(program, length, heads, T)
    t = tl.arange(0, T)
    q_pointer += head_offset(sequence, heads, q_batch, q_head) + first * q_row
    k_pointer += head_offset(sequence, heads, k_batch, k_head) + first * k_row
    v_pointer += head_offset(sequence, heads, v_batch, v_head) + first * v_row
    a_pointer += head_offset(sequence, heads, a_batch, a_head) + first * a_row
    b_pointer += head_offset(sequence, heads, b_batch, b_head) + first * b_row
    g_pointer += head_offset(sequence, heads, g_batch, g_head) + first * g_row
    dy_pointer += token * V
    inner, inner_low = inner + token * V, inner_low + token * V
    outer, outer_low = outer + token * V, outer_low + token * V
    states = program.to(tl.int64) * (VP * BK)
    dqk = tl.zeros([T, T], tl.float32)
    dqa = dqk  # stands for what there is not, as do a and da
    if RANK:
        dqa, dbk, dba = tl.zeros([T, T], tl.float32), tl.zeros([T, T], tl.float32), tl.zeros([T, T], tl.float32)
    for block in tl.range(0, all_values, BV):
        values = block + tl.arange(0, BV)
        v = tl.trans(operand(load_tile(v_pointer, v_row, t, values, left, V, VP, EVEN), PRECISION))
        dy = operand(load_tile(dy_pointer, heads * V, t, values, left, V, VP, EVEN), PRECISION)
        dqk = product(dy, v, dqk, PRECISION)
        if RANK:
            u = tl.trans(operand(load_tile(inner, heads * V, t, values, left, V, VP, EVEN), PRECISION))
            p = operand(load_tile(outer, heads * V, t, values, left, V, VP, EVEN), PRECISION)
            dqa = product(dy, u, dqa, PRECISION)
            dbk = product(p, v, dbk, PRECISION)
            dba = product(p, u, dba, PRECISION)
    if GATE != "channel":
        g = load_gate(g_pointer, g_row, t, t, left, K, BK, EVEN, GATE) if GATE == "head" else 0.0
        into_q, into_b = head_decays(g, GATE, T)
        if GATE == "head":
            before, after = sums_before(g, GATE), sums_after(g, GATE)
            dg, qk = tl.zeros([T, 1], tl.float32), tl.zeros([T, T], tl.float32)
            qa, bk, ba = qk, qk, qk
        dqk *= into_q
        if RANK:
            dqa, dbk, dba = dqa * into_q, dbk * into_b, dba * into_b
    for key in tl.range(0, all_keys, KB):
        keys = key + tl.arange(0, KB)
        dq, dk, end = tl.zeros([T, KB], tl.float32), tl.zeros([T, KB], tl.float32), tl.zeros([KB], tl.float32)
        da = dk
        if RANK:
            da, db = tl.zeros([T, KB], tl.float32), tl.zeros([T, KB], tl.float32)
        for block in tl.range(0, all_values, BV):
            values = block + tl.arange(0, BV)
            place = states + values[:, None] * BK + keys[None, :]
            S, R = tl.load(kept + place), tl.load(asked + place)
            if GATE != "none":
                end += tl.sum(S.to(tl.float32) * R.to(tl.float32), 0)
            S, R = operand(S, PRECISION), operand(R, PRECISION)
            dy = operand(load_tile(dy_pointer, heads * V, t, values, left, V, VP, EVEN), PRECISION)
            v = operand(load_tile(v_pointer, v_row, t, values, left, V, VP, EVEN), PRECISION)
            dq = product(dy, S, dq, PRECISION)
            dk = product(v, R, dk, PRECISION)
            if RANK:
                db = parts_product(outer, outer_low, heads * V, t, values, left, S, db, V, VP, EVEN, PRECISION)
                da = parts_product(inner, inner_low, heads * V, t, values, left, R, da, V, VP, EVEN, PRECISION)
        q = load_tile(q_pointer, q_row, t, keys, left, K, BK, EVEN).to(tl.float32)
        k = load_tile(k_pointer, k_row, t, keys, left, K, BK, EVEN).to(tl.float32)
        a = k
        if RANK:
            a = load_tile(a_pointer, a_row, t, keys, left, K, BK, EVEN).to(tl.float32)
            b = load_tile(b_pointer, b_row, t, keys, left, K, BK, EVEN).to(tl.float32)
        if GATE == "channel":
            g = load_gate(g_pointer, g_row, t, keys, left, K, BK, EVEN, GATE)
            before, after = sums_before(g, GATE), sums_after(g, GATE)
        if GATE != "none":
            # Through the state: q^ and b^ from the beginning of the chunk, k^ and a^ to its end, S to R over all of it.
            dq, dk = decayed(dq, before + g, GATE), decayed(dk, after, GATE)
            more = rows_of(q * dq, GATE)
            of_before, of_after = more, rows_of(k * dk, GATE)
            if RANK:
                db, da = decayed(db, before, GATE), decayed(da, after, GATE)
                of_before += rows_of(b * db, GATE)
                of_after += rows_of(a * da, GATE)
            end *= tl.exp2(tl.sum(g, 0))
            more += sums_after(of_before, GATE) + sums_before(of_after, GATE) + rows_of(end[None, :], GATE)
        if GATE == "channel":
            dg = more
            same = t[:, None] == t[None, :]
            own = tl.sum(tl.where(same, dqk, 0.0), 1)[:, None]
            dq += own * k
            dk += own * q
            if RANK:
                own = tl.sum(tl.where(same, dqa, 0.0), 1)[:, None]
                dq += own * a
                da += own * q
                db, dk, da, dg = of_levels(
                    b, k, a, dbk, dba, g, db, dk, da, dg, True, RANK, LEVELS, LEVEL_PRECISION
                )  # fmt: skip
                store_rows(db_pointer, db, token, heads, t, keys, left, K)
                # Read again: it would take registers that there are not.
                q = load_tile(q_pointer, q_row, t, keys, left, K, BK, EVEN).to(tl.float32)
            dq, dk, da, dg = of_levels(
                q, k, a, dqk, dqa, g, dq, dk, da, dg, False, RANK, LEVELS, LEVEL_PRECISION
            )  # fmt: skip
            store_rows(dg_pointer, dg, token, heads, t, keys, left, K)
        else:
            if GATE == "head":
                dg += more
                qk += between(q, k, PRECISION)
                if RANK:
                    qa += between(q, a, PRECISION)
                    bk += between(b, k, PRECISION)
                    ba += between(b, a, PRECISION)
            dq = times(dqk, k, dq, PRECISION)
            dk = times(tl.trans(dqk), q, dk, PRECISION)
            if RANK:
                dq = times(dqa, a, dq, PRECISION)
                dk = times(tl.trans(dbk), b, dk, PRECISION)
                a, b = operand(a, PRECISION), operand(b, PRECISION)
                db = fine_product(dba, a, fine_product(dbk, operand(k, PRECISION), db, PRECISION), PRECISION)
                da = fine_product(tl.trans(dqa), operand(q, PRECISION), da, PRECISION)
                da = fine_product(tl.trans(dba), b, da, PRECISION)
                store_rows(db_pointer, db, token, heads, t, keys, left, K)
        if MORE:
            place, inside = (
                token * K + t[:, None] * (heads * K) + keys[None, :],
                (t < left)[:, None] & (keys < K)[None, :],
            )
            dq += tl.load(more_q + place, mask=inside, other=0.0).to(tl.float32)
            dk += tl.load(more_k + place, mask=inside, other=0.0).to(tl.float32)
        store_rows(dq_pointer, dq, token, heads, t, keys, left, K)
        store_rows(dk_pointer, dk, token, heads, t, keys, left, K)
        if RANK:
            store_rows(da_pointer, da, token, heads, t, keys, left, K)
    if GATE == "head":
        linked = dqk * qk  # of these two, dqk has the decays
        if RANK:
            linked += dqa * qa
            dg += of_pairs(dbk * bk + dba * ba, False, t)[:, None]
        dg += of_pairs(linked, True, t)[:, None]
        store_rows(dg_pointer, dg, token, heads, t, tl.arange(0, 1), left, 1)
