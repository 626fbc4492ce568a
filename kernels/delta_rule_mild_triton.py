"""The gated delta rule where decays of channels are mild: scores and gradients of chunks without any levels.

Where every channel has more than 2^(-2 MILD) left at the end of a chunk, as with gates in use, all exponents are taken
from the middle of its decays: with G the sum of g until a token and M half of it over the whole chunk,

    2^(G_t - G_s) = 2^(G_t - M) 2^(M - G_s)             both between 2^-MILD and 2^MILD

so that one product has all pairs, and 2^M takes such rows to the beginning or the end of the chunk. Sums of g are at
most 2 MILD, and their differences right to more digits than bfloat16 has. Other chunks, and other dtypes, are left to
`delta_rule_scores_triton` and `delta_rule_gradient_triton`, which are launched afterwards and skip what is mild; with a
term of rank one `delta_rule_stacked_triton` has the gradients.
"""

# mypy: allow-untyped-defs

import triton
import triton.language as tl

from .delta_rule_scores_triton import between, inverse
from .delta_rule_tiles_triton import chunk_place, is_mild, load_gate, product, store_rows, sums
from .taylor_tiles import head_offset, load_tile, operand


@triton.jit
def from_middle(g):
    """g (T,KB) -> factors (T,KB) of q, of b, and of k and a; and (KB,) 2^M, with which they go to the chunk's ends."""
    t = tl.arange(0, g.shape[0])
    middle = 0.5 * tl.sum(g, 0)
    total = sums(t[:, None] >= t[None, :], g) - middle[None, :]
    return tl.exp2(total), tl.exp2(total - g), tl.exp2(-total), tl.exp2(middle)


@triton.jit(do_not_specialize=["length", "heads", "all_keys"])
def mild_scores_kernel(
    q_pointer, k_pointer, a_pointer, b_pointer, g_pointer, scores, decayed_pointer, ends,
    q_batch, q_row, q_head, k_batch, k_row, k_head, a_batch, a_row, a_head, b_batch, b_row, b_head,
    g_batch, g_row, g_head, length, heads, all_keys, part,
    K: tl.constexpr, BK: tl.constexpr, KB: tl.constexpr, T: tl.constexpr, LEVELS: tl.constexpr, EVEN: tl.constexpr,
    RANK: tl.constexpr, PRECISION: tl.constexpr, LEVEL_PRECISION: tl.constexpr,
):  # fmt: skip
    """What `scores_kernel` writes; of chunks that are not mild only `ends` is right."""
    program = tl.program_id(0)
    sequence, left, first, token = chunk_place(program, length, heads, T)
    t = tl.arange(0, T)
    part = tl.cast(part, tl.int64)
    q_pointer += head_offset(sequence, heads, q_batch, q_head) + first * q_row
    k_pointer += head_offset(sequence, heads, k_batch, k_head) + first * k_row
    a_pointer += head_offset(sequence, heads, a_batch, a_head) + first * a_row
    b_pointer += head_offset(sequence, heads, b_batch, b_head) + first * b_row
    g_pointer += head_offset(sequence, heads, g_batch, g_head) + first * g_row
    qk = tl.zeros([T, T], tl.float32)
    qa, bk, ba = qk, qk, qk
    for key in tl.range(0, BK if KB == BK and PRECISION == "bf16" else all_keys, KB):
        keys = key + tl.arange(0, KB)
        # All loads first: behind a barrier each would be waited for anew.
        g = load_gate(g_pointer, g_row, t, keys, left, K, BK, EVEN, "channel")
        q = load_tile(q_pointer, q_row, t, keys, left, K, BK, EVEN)
        k = load_tile(k_pointer, k_row, t, keys, left, K, BK, EVEN)
        if RANK:
            a = load_tile(a_pointer, a_row, t, keys, left, K, BK, EVEN)
            b = load_tile(b_pointer, b_row, t, keys, left, K, BK, EVEN)
        into_q, into_b, into_k, to_end = from_middle(g)
        tl.store(ends + program.to(tl.int64) * BK + keys, to_end * to_end)
        q, k = q.to(tl.float32) * into_q, k.to(tl.float32) * into_k
        store_rows(decayed_pointer, q * to_end[None, :], token, heads, t, keys, left, K)
        store_rows(decayed_pointer + part, k * to_end[None, :], token, heads, t, keys, left, K)
        qk += between(q, k, LEVEL_PRECISION)
        if RANK:
            a, b = a.to(tl.float32) * into_k, b.to(tl.float32) * into_b
            store_rows(decayed_pointer + 2 * part, a * to_end[None, :], token, heads, t, keys, left, K)
            store_rows(decayed_pointer + 3 * part, b * to_end[None, :], token, heads, t, keys, left, K)
            qa += between(q, a, LEVEL_PRECISION)
            bk += between(b, k, LEVEL_PRECISION)
            ba += between(b, a, LEVEL_PRECISION)
    scores += program.to(tl.int64) * ((4 if RANK else 1) * T * T) + t[:, None] * T + t[None, :]
    own, earlier = t[:, None] >= t[None, :], t[:, None] > t[None, :]
    number = scores.dtype.element_ty
    tl.store(scores, tl.where(own, qk, 0.0).to(number))
    if RANK:
        tl.store(scores + T * T, tl.where(own, qa, 0.0).to(number))
        tl.store(scores + 2 * T * T, tl.where(earlier, bk, 0.0).to(number))
        solved = inverse(tl.where(earlier, ba, 0.0), LEVELS, LEVEL_PRECISION)
        tl.store(scores + 3 * T * T, solved.to(number))


@triton.jit(do_not_specialize=["length", "heads", "all_keys", "all_values"])
def mild_gradient_kernel(
    q_pointer, k_pointer, v_pointer, g_pointer, dy_pointer, ends, kept, asked, dq_pointer, dk_pointer, dg_pointer,
    q_batch, q_row, q_head, k_batch, k_row, k_head, v_batch, v_row, v_head, g_batch, g_row, g_head,
    length, heads, all_keys, all_values,
    K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, KB: tl.constexpr, BV: tl.constexpr, VP: tl.constexpr,
    T: tl.constexpr, EVEN: tl.constexpr, PRECISION: tl.constexpr, LEVEL_PRECISION: tl.constexpr,
):  # fmt: skip
    """What `gradient_kernel` writes without a term of rank one, for mild chunks."""
    program = tl.program_id(0)
    ends += program.to(tl.int64) * BK
    if not is_mild(ends, BK):
        return
    sequence, left, first, token = chunk_place(program, length, heads, T)
    t = tl.arange(0, T)
    q_pointer += head_offset(sequence, heads, q_batch, q_head) + first * q_row
    k_pointer += head_offset(sequence, heads, k_batch, k_head) + first * k_row
    v_pointer += head_offset(sequence, heads, v_batch, v_head) + first * v_row
    g_pointer += head_offset(sequence, heads, g_batch, g_head) + first * g_row
    dy_pointer += token * V
    states = program.to(tl.int64) * (VP * BK)
    dqk = tl.zeros([T, T], tl.float32)
    for block in tl.range(0, VP if BV == VP and PRECISION == "bf16" else all_values, BV):
        values = block + tl.arange(0, BV)
        v = tl.trans(operand(load_tile(v_pointer, v_row, t, values, left, V, VP, EVEN), PRECISION))
        dy = operand(load_tile(dy_pointer, heads * V, t, values, left, V, VP, EVEN), PRECISION)
        dqk = product(dy, v, dqk, PRECISION)
    # A token's own pairs have no decay: apart from the others, for they would cancel out of dg.
    same, earlier = t[:, None] == t[None, :], t[:, None] > t[None, :]
    own = tl.sum(tl.where(same, dqk, 0.0), 1)[:, None]
    dqk = operand(tl.where(earlier, dqk, 0.0), LEVEL_PRECISION)
    for key in tl.range(0, BK if KB == BK and PRECISION == "bf16" else all_keys, KB):
        keys = key + tl.arange(0, KB)
        dq, dk, end = tl.zeros([T, KB], tl.float32), tl.zeros([T, KB], tl.float32), tl.zeros([KB], tl.float32)
        for block in tl.range(0, VP if BV == VP and PRECISION == "bf16" else all_values, BV):
            values = block + tl.arange(0, BV)
            place = states + values[:, None] * BK + keys[None, :]
            S, R = tl.load(kept + place), tl.load(asked + place)
            end += tl.sum(S.to(tl.float32) * R.to(tl.float32), 0)
            S, R = operand(S, PRECISION), operand(R, PRECISION)
            dy = operand(load_tile(dy_pointer, heads * V, t, values, left, V, VP, EVEN), PRECISION)
            v = operand(load_tile(v_pointer, v_row, t, values, left, V, VP, EVEN), PRECISION)
            dq = product(dy, S, dq, PRECISION)
            dk = product(v, R, dk, PRECISION)
        g = load_gate(g_pointer, g_row, t, keys, left, K, BK, EVEN, "channel")
        into_q, _, into_k, to_end = from_middle(g)
        to_end = to_end[None, :]
        q = load_tile(q_pointer, q_row, t, keys, left, K, BK, EVEN).to(tl.float32) * into_q
        k = load_tile(k_pointer, k_row, t, keys, left, K, BK, EVEN).to(tl.float32) * into_k
        dq, dk = dq * to_end, dk * to_end
        of_state = k * dk
        k_rows, q_rows = operand(k, LEVEL_PRECISION), operand(q, LEVEL_PRECISION)
        dq = product(dqk, k_rows, dq, LEVEL_PRECISION)
        dk = product(tl.trans(dqk), q_rows, dk, LEVEL_PRECISION)
        # G_t goes up with all g until t: of q, and of what k misses of the whole chunk's.
        of_sums = q * dq - k * dk
        dg = end[None, :] * (to_end * to_end) + tl.sum(of_state, 0)[None, :]
        # Own pairs: into_q and into_k give 1.
        store_rows(dq_pointer, (dq + own * k) * into_q, token, heads, t, keys, left, K)
        store_rows(dk_pointer, (dk + own * q) * into_k, token, heads, t, keys, left, K)
        dg += sums(t[:, None] <= t[None, :], of_sums)
        store_rows(dg_pointer, dg, token, heads, t, keys, left, K)
