"""Scores and gradients of the delta rule as layers have it where each channel has a decay.

In chunks that are mild, see `delta_rule_mild_triton`, exponents are taken from the middle M of a channel's decays: rows
of q and n by 2^(G - M), those of columns by 2^(M - G), and one product has all pairs. Others are taken level by level
(`delta_rule_tiles_triton`), by kernels that are launched afterwards and skip what is mild. The walks read

    q^ = 2^G q      n^ = 2^G n      k^ = beta 2^(G_T - G) n.

Gradients: names and tiles of `layer_delta_gradient_triton`.
"""

# mypy: allow-untyped-defs

import triton
import triton.language as tl

from .delta_rule_gradient_triton import of_levels
from .delta_rule_mild_triton import from_middle
from .delta_rule_scores_triton import between
from .delta_rule_stacked_triton import chosen, finely, load_lower, load_pair, store_pair, sums_until
from .delta_rule_tiles_triton import (
    chunk_place,
    first_level,
    is_mild,
    level_decays,
    load_gate,
    parts_product,
    product,
    store_rows,
    sums_after,
    sums_before,
    takes,
    two_halves,
)
from .layer_delta_gradient_triton import pairs
from .layer_delta_scores_triton import store_scores
from .taylor_tiles import head_offset, load_tile


@triton.jit(do_not_specialize=["length", "heads", "all_keys"])
def channel_scores_kernel(
    q_pointer, n_pointer, beta_pointer, g_pointer, scores, ends, q_decayed, n_decayed, k_decayed,
    q_batch, q_row, q_head, n_batch, n_row, n_head, g_batch, g_row, g_head, length, heads, all_keys,
    K: tl.constexpr, BK: tl.constexpr, KB: tl.constexpr, T: tl.constexpr, LEVELS: tl.constexpr, EVEN: tl.constexpr,
    STRONG: tl.constexpr,
):  # fmt: skip
    """scores (B,H,chunks,2,T,T), decays over chunks, ends (B,H,chunks,BK), and q^, n^ and k^, dense (B,L,H,K).

    STRONG: only of chunks that are not mild, of which otherwise nothing but `ends` is right; it is not written again,
    for a warp that is late may still ask whether the chunk is mild. KB keys at a time; `all_keys` is BK at run time.
    """
    program = tl.program_id(0)
    ends += program.to(tl.int64) * BK
    if not takes(ends, BK, STRONG):
        return
    sequence, left, first, token = chunk_place(program, length, heads, T)
    t = tl.arange(0, T)
    q_pointer += head_offset(sequence, heads, q_batch, q_head) + first * q_row
    n_pointer += head_offset(sequence, heads, n_batch, n_head) + first * n_row
    g_pointer += head_offset(sequence, heads, g_batch, g_head) + first * g_row
    beta = tl.load(beta_pointer + token + t * heads, mask=t < left, other=0.0).to(tl.float32)
    P, A = tl.zeros([T, T], tl.float32), tl.zeros([T, T], tl.float32)
    for key in tl.range(0, all_keys if STRONG or KB < BK else BK, KB):
        keys = key + tl.arange(0, KB)
        g = load_gate(g_pointer, g_row, t, keys, left, K, BK, EVEN, "channel")
        q = load_tile(q_pointer, q_row, t, keys, left, K, BK, EVEN).to(tl.float32)
        n = load_tile(n_pointer, n_row, t, keys, left, K, BK, EVEN).to(tl.float32)
        if STRONG:
            into, after = tl.exp2(sums_before(g, "channel") + g), tl.exp2(sums_after(g, "channel"))
            store_rows(q_decayed, q * into, token, heads, t, keys, left, K)
            store_rows(n_decayed, n * into, token, heads, t, keys, left, K)
            store_rows(k_decayed, n * after * beta[:, None], token, heads, t, keys, left, K)
            P += tl.where(t[:, None] == t[None, :], tl.sum(q * n, 1)[:, None], 0.0)
            lowest, whole = first_level(g, LEVELS)
            for level in tl.range(lowest, LEVELS):
                _, _, linked, into, _, to_edge = level_decays(g, level, whole)
                P += tl.where(linked, between(q * into, n * to_edge, "tf32"), 0.0)
                A += tl.where(linked, between(n * into, n * to_edge, "tf32"), 0.0)
        else:
            into, _, from_end, to_end = from_middle(g)
            tl.store(ends + keys, to_end * to_end)
            to_end = to_end[None, :]
            q, read, n = q * into, n * into, n * from_end
            store_rows(q_decayed, q * to_end, token, heads, t, keys, left, K)
            store_rows(n_decayed, read * to_end, token, heads, t, keys, left, K)
            store_rows(k_decayed, n * to_end * beta[:, None], token, heads, t, keys, left, K)
            P += between(q, n, "tf32")
            A += between(read, n, "tf32")
    P = tl.where(t[:, None] >= t[None, :], P * beta[None, :], 0.0)
    store_scores(scores, P, tl.where(t[:, None] > t[None, :], A * beta[None, :], 0.0), program, LEVELS)


@triton.jit
def stacked_sums(
    pointer, stride, rows, keys, left, T: tl.constexpr, K: tl.constexpr, BK: tl.constexpr, EVEN: tl.constexpr
):  # fmt: skip
    """G - M (2 T,KB), whose halves are alike, and 2^M (1,KB)."""
    t = rows % T
    g = load_gate(pointer, stride, t, keys, left, K, BK, EVEN, "channel")
    middle = 0.5 * tl.sum(tl.where((rows < T)[:, None], g, 0.0), 0)
    return sums_until(g, t, T) - middle[None, :], tl.exp2(middle)[None, :]


@triton.jit(do_not_specialize=["length", "heads"])
def channel_gradient_kernel(
    q_pointer, n_pointer, beta_pointer, g_pointer, dy_pointer, dv_pointer, dv_low, new, new_low, ends, kept, asked,
    dq_pointer, dn_pointer, dbeta_pointer, dg_pointer,
    q_batch, q_row, q_head, n_batch, n_row, n_head, g_batch, g_row, g_head, length, heads, all_rows,
    K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, KB: tl.constexpr, BV: tl.constexpr, VP: tl.constexpr,
    T: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """dq, dn, dg (B,L,H,K), and what each block of keys adds to dbeta (blocks,B,L,H), of mild chunks.

    `all_rows` is B L H. Program: chunk and KB of BK keys.
    """
    program = tl.program_id(0) // (BK // KB)
    ends += program.to(tl.int64) * BK
    if not is_mild(ends, BK):
        return
    sequence, left, first, token = chunk_place(program, length, heads, T)
    block_of_keys = tl.program_id(0) % (BK // KB)
    rows, keys = tl.arange(0, 2 * T), block_of_keys * KB + tl.arange(0, KB)
    t, below, exists = rows % T, rows >= T, rows % T < left
    q_pointer += head_offset(sequence, heads, q_batch, q_head) + first * q_row
    n_pointer += head_offset(sequence, heads, n_batch, n_head) + first * n_row
    g_pointer += head_offset(sequence, heads, g_batch, g_head) + first * g_row
    dy_pointer, dv_pointer, dv_low = dy_pointer + token * V, dv_pointer + token * V, dv_low + token * V
    new, new_low = new + token * V, new_low + token * V
    states = program.to(tl.int64) * (VP * BK)
    row = heads * V
    beta = tl.load(beta_pointer + token + t * heads, mask=exists, other=0.0).to(tl.float32)
    sign = tl.where(below, -1.0, 1.0)
    # A token's own pairs, of q with n, have no decay: apart from the others, for they would cancel out of dg.
    same = (t[:, None] == t[None, :]) & (below[:, None] != below[None, :])
    # First all of the rows, then all of the columns: both at once would take registers that there are not.
    w, dx, end = tl.zeros([2 * T, 2 * T], tl.float32), tl.zeros([2 * T, KB], tl.float32), tl.zeros([KB], tl.float32)
    for block in tl.range(0, VP, BV):
        values = block + tl.arange(0, BV)
        c = load_pair(dy_pointer, row, dv_pointer, row, rows, values, left, T, V, VP, EVEN)
        c_low = load_lower(dv_low, row, rows, values, left, T, V)
        z_low = load_lower(new_low, row, rows, values, left, T, V)
        z = load_lower(new, row, rows, values, left, T, V)
        place = states + values[:, None] * BK + keys[None, :]
        S, R = tl.load(kept + place), tl.load(asked + place)
        w = pairs(c, c_low, z, z_low, w)
        end += tl.sum(S.to(tl.float32) * R.to(tl.float32), 0)
        dx = tl.dot(c_low, S, tl.dot(c, S, dx))
    own = tl.sum(tl.where(same & below[None, :], w, 0.0), 1)
    w *= tl.where((t[:, None] > t[None, :]) & below[None, :], sign[:, None] * beta[None, :], 0.0)
    total, to_end = stacked_sums(g_pointer, g_row, rows, keys, left, T, K, BK, EVEN)
    x = load_pair(q_pointer, q_row, n_pointer, n_row, rows, keys, left, T, K, BK, EVEN)
    high, low = two_halves(w)
    x_high, x_low = two_halves(x.to(tl.float32) * tl.exp2(-total))
    dx = finely(high, low, x_high, x_low, dx * (sign[:, None] * to_end)) * tl.exp2(total)
    turned, m = tl.zeros([2 * T, 2 * T], tl.float32), tl.zeros([2 * T, KB], tl.float32)
    for block in tl.range(0, VP, BV):
        values = block + tl.arange(0, BV)
        c = load_pair(dy_pointer, row, dv_pointer, row, rows, values, left, T, V, VP, EVEN)
        z = load_lower(new, row, rows, values, left, T, V)
        c_low = load_lower(dv_low, row, rows, values, left, T, V)
        z_low = load_lower(new_low, row, rows, values, left, T, V)
        R = tl.load(asked + states + values[:, None] * BK + keys[None, :])
        turned = pairs(z, z_low, c, c_low, turned)
        m = tl.dot(z_low, R, tl.dot(z, R, m))
    own += tl.sum(tl.where(same & below[:, None], turned, 0.0), 1)
    turned *= tl.where((t[None, :] > t[:, None]) & below[:, None], sign[None, :], 0.0)
    x = x.to(tl.float32)
    m *= to_end
    dg = end[None, :] * (to_end * to_end) + tl.sum(x * m * tl.exp2(-total) * beta[:, None], 0)[None, :]
    high, low = two_halves(turned)
    x_high, x_low = two_halves(x * tl.exp2(total))
    m = finely(high, low, x_high, x_low, m) * tl.exp2(-total)
    dg += chosen(t[None, :] >= rows[:, None], x * (dx - m * beta[:, None]))
    place = dg_pointer + (token + rows * heads)[:, None] * K + keys[None, :]
    inside = (rows < T)[:, None] & (rows < left)[:, None] & (keys < K)[None, :]
    tl.store(place, dg.to(dg_pointer.dtype.element_ty), mask=inside)
    other = load_pair(n_pointer, n_row, q_pointer, q_row, rows, keys, left, T, K, BK, EVEN).to(tl.float32)
    of_write = tl.sum(x * (m + own[:, None] * other), 1)
    written = below & exists
    tl.store(dbeta_pointer + block_of_keys.to(tl.int64) * all_rows + token + t * heads, of_write, mask=written)
    dx += (m + own[:, None] * other) * beta[:, None]
    store_pair(dq_pointer + token * K, dn_pointer + token * K, dx, heads * K, rows, keys, left, T, K)


@triton.jit(do_not_specialize=["length", "heads", "all_keys", "all_values"])
def strong_gradient_kernel(
    q_pointer, n_pointer, beta_pointer, g_pointer, dy_pointer, dv_pointer, dv_low, new, new_low, ends, kept, asked,
    dq_pointer, dn_pointer, dbeta_pointer, dg_pointer,
    q_batch, q_row, q_head, n_batch, n_row, n_head, g_batch, g_row, g_head, length, heads, all_rows,
    all_keys, all_values,
    K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, KB: tl.constexpr, BV: tl.constexpr, VP: tl.constexpr,
    T: tl.constexpr, LEVELS: tl.constexpr, EVEN: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """What `channel_gradient_kernel` writes, of the other chunks; the first of dbeta's PARTS has all.

    `all_keys` is BK, `all_values` VP at run time: loops of a few rounds would be unrolled.
    """
    program = tl.program_id(0)
    ends += program.to(tl.int64) * BK
    if is_mild(ends, BK):
        return
    sequence, left, first, token = chunk_place(program, length, heads, T)
    t = tl.arange(0, T)
    q_pointer += head_offset(sequence, heads, q_batch, q_head) + first * q_row
    n_pointer += head_offset(sequence, heads, n_batch, n_head) + first * n_row
    g_pointer += head_offset(sequence, heads, g_batch, g_head) + first * g_row
    dy_pointer, dv_pointer, dv_low = dy_pointer + token * V, dv_pointer + token * V, dv_low + token * V
    new, new_low = new + token * V, new_low + token * V
    states = program.to(tl.int64) * (VP * BK)
    row = heads * V
    beta = tl.load(beta_pointer + token + t * heads, mask=t < left, other=0.0).to(tl.float32)
    dP, dA, dbeta = tl.zeros([T, T], tl.float32), tl.zeros([T, T], tl.float32), tl.zeros([T], tl.float32)
    for block in tl.range(0, all_values, BV):
        values = block + tl.arange(0, BV)
        w = tl.trans(load_tile(new, row, t, values, left, V, VP, EVEN))
        w_low = tl.trans(load_tile(new_low, row, t, values, left, V, VP, EVEN))
        dy = load_tile(dy_pointer, row, t, values, left, V, VP, EVEN)
        dP = tl.dot(dy, w, tl.dot(dy, w_low, dP))
        dA = parts_product(dv_pointer, dv_low, row, t, values, left, w, dA, V, VP, EVEN, "bf16")
        dA = tl.dot(load_tile(dv_pointer, row, t, values, left, V, VP, EVEN), w_low, dA)
    for key in tl.range(0, all_keys, KB):
        keys = key + tl.arange(0, KB)
        dq, dn, dk = (tl.zeros([T, KB], tl.float32), tl.zeros([T, KB], tl.float32), tl.zeros([T, KB], tl.float32))
        end = tl.zeros([KB], tl.float32)
        for block in tl.range(0, all_values, BV):
            values = block + tl.arange(0, BV)
            place = states + values[:, None] * BK + keys[None, :]
            S, R = tl.load(kept + place), tl.load(asked + place)
            end += tl.sum(S.to(tl.float32) * R.to(tl.float32), 0)
            dq = product(load_tile(dy_pointer, row, t, values, left, V, VP, EVEN), S, dq, "bf16")
            dn = parts_product(dv_pointer, dv_low, row, t, values, left, S, dn, V, VP, EVEN, "bf16")
            dk = parts_product(new, new_low, row, t, values, left, R, dk, V, VP, EVEN, "bf16")
        g = load_gate(g_pointer, g_row, t, keys, left, K, BK, EVEN, "channel")
        q = load_tile(q_pointer, q_row, t, keys, left, K, BK, EVEN).to(tl.float32)
        n = load_tile(n_pointer, n_row, t, keys, left, K, BK, EVEN).to(tl.float32)
        k, into = n * beta[:, None], tl.exp2(sums_before(g, "channel") + g)
        dq, dn, dk = dq * into, -dn * into, dk * tl.exp2(sums_after(g, "channel"))
        of_rows = q * dq + n * dn
        dg = of_rows + sums_after(of_rows, "channel") + sums_before(k * dk, "channel")
        dg += (end * tl.exp2(tl.sum(g, 0)))[None, :]
        own = tl.sum(tl.where(t[:, None] == t[None, :], dP, 0.0), 1)[:, None]
        dq += own * k
        dk += own * q
        dq, dk, _, dg = of_levels(q, k, k, dP, dP, g, dq, dk, dk, dg, False, False, LEVELS, "tf32")
        dn, dk, _, dg = of_levels(n, k, k, -dA, dA, g, dn, dk, dk, dg, False, False, LEVELS, "tf32")
        store_rows(dq_pointer, dq, token, heads, t, keys, left, K)
        store_rows(dn_pointer, dn + dk * beta[:, None], token, heads, t, keys, left, K)
        store_rows(dg_pointer, dg, token, heads, t, keys, left, K)
        dbeta += tl.sum(dk * n, 1)
    for part in tl.static_range(PARTS):
        place = dbeta_pointer + token + t * heads + tl.cast(all_rows, tl.int64) * part
        tl.store(place, dbeta if part == 0 else tl.zeros([T], tl.float32), mask=t < left)
