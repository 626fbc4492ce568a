"""Outputs of the gated delta rule: one program walks over the chunks of a sequence, head and block of values.

With the scores of `delta_rule_scores_triton` and the decays of `delta_rule_tiles_triton`, per chunk of T tokens and for
the state S before it,

    u  = (1 - ba)^-1 (b^ S + bk v)                      q^, b^: decayed from the beginning of the chunk
    y  = q^ S + qk v + qa u                             k^, a^: decayed to its end
    S' = 2^(sum of g) S + k^^T v + a^^T u

Only b^ S, u and S' wait for the chunk before: three products in a row, the others fill the gaps. The state lies in
registers, values x keys, and so do y and u, values x tokens: a warp has its values' rows of all of them.
"""

# mypy: allow-untyped-defs

import triton
import triton.language as tl

from .delta_rule_tiles_triton import fine_product, product, store_parts
from .taylor_tiles import head_offset, load_tile, operand


@triton.jit
def state_tile(pointer, sequence, values, keys, K: tl.constexpr, V: tl.constexpr):
    """(places, which exist) of a tile, values x keys, of a state (B,H,K,V) as the caller has it."""
    place = pointer + sequence.to(tl.int64) * (K * V) + keys[None, :] * V + values[:, None]
    return place, (values < V)[:, None] & (keys < K)[None, :]


@triton.jit
def load_state(pointer, sequence, values, keys, K: tl.constexpr, V: tl.constexpr, PRESENT: tl.constexpr):
    if PRESENT:
        place, inside = state_tile(pointer, sequence, values, keys, K, V)
        state = tl.load(place, mask=inside, other=0.0).to(tl.float32)
    else:
        state = tl.zeros([values.shape[0], keys.shape[0]], tl.float32)
    return state


@triton.jit
def load_scores(pointer, number, rows, columns, T: tl.constexpr):
    """One of a chunk's matrices (T,T)."""
    return tl.load(pointer + number * (T * T) + rows * T + columns)


@triton.jit
def load_decays(pointer, chunk, t, T: tl.constexpr):
    """Where decays are one a head: those of a chunk's tokens in q^, in b^, and in k^ and a^, as rows."""
    pointer += chunk * (3 * T) + t[None, :]
    return tl.load(pointer), tl.load(pointer + T), tl.load(pointer + 2 * T)


@triton.jit
def load_columns(pointer, stride, values, t, left, V: tl.constexpr, VP: tl.constexpr, EVEN: tl.constexpr):
    """Tokens of a (T,V) as columns: values x tokens."""
    place = pointer + values[:, None] + t[None, :] * stride
    if EVEN and V == VP:
        return tl.load(place)
    return tl.load(place, mask=(values < V)[:, None] & (t < left)[None, :], other=0.0)


@triton.jit(do_not_specialize=["length", "heads"])
def output_kernel(
    q_pointer, k_pointer, v_pointer, a_pointer, b_pointer, scores, decays, ends,
    y_pointer, initial, final, kept, inner, inner_low,
    q_batch, q_row, q_head, k_batch, k_row, k_head, v_batch, v_row, v_head, a_batch, a_row, a_head,
    b_batch, b_row, b_head, length, heads,
    K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, VP: tl.constexpr, T: tl.constexpr,
    EVEN: tl.constexpr, GATE: tl.constexpr, RANK: tl.constexpr, INITIAL: tl.constexpr, FINAL: tl.constexpr,
    KEEP: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """y (B,L,H,V); FINAL: the last state; KEEP: states before chunks (B,H,chunks,VP,BK) and u as in `store_parts`.

    With decays of channels q, k, a and b are q^, k^, a^ and b^; with one a head what stands beside them is decayed
    by `decays` (B,H,chunks,3,T). `ends` has the decays over whole chunks.
    Program: sequence, head, block of BV of the VP values (V, padded).
    """
    BLOCKS: tl.constexpr = VP // BV
    sequence = tl.program_id(0) // BLOCKS
    t, keys = tl.arange(0, T), tl.arange(0, BK)
    values = tl.program_id(0) % BLOCKS * BV + tl.arange(0, BV)
    q_pointer += head_offset(sequence, heads, q_batch, q_head)
    k_pointer += head_offset(sequence, heads, k_batch, k_head)
    v_pointer += head_offset(sequence, heads, v_batch, v_head)
    a_pointer += head_offset(sequence, heads, a_batch, a_head)
    b_pointer += head_offset(sequence, heads, b_batch, b_head)
    y_offset = head_offset(sequence, heads, heads.to(tl.int64) * length * V, V)
    chunks = tl.cdiv(length, T)
    chunk = sequence.to(tl.int64) * chunks
    state = load_state(initial, sequence, values, keys, K, V, INITIAL)
    for start in tl.range(0, length, T):
        left, first = length - start, tl.cast(start, tl.int64)
        own = scores + chunk * ((4 if RANK else 1) * T * T)
        place = y_offset + first * (heads * V) + t[None, :] * (heads * V) + values[:, None]
        inside = (t < left)[None, :] & (values < V)[:, None]
        if KEEP:
            entry = kept + chunk * (VP * BK) + values[:, None] * BK + keys[None, :]
            tl.store(entry, state.to(kept.dtype.element_ty))
        # All that reads the state first: then it need not be held twice.
        before_chunk, nothing = operand(state, PRECISION), tl.zeros([BV, T], tl.float32)
        q = load_tile(q_pointer + first * q_row, q_row, t, keys, left, K, BK, EVEN)
        y = product(before_chunk, tl.trans(operand(q, PRECISION)), nothing, PRECISION)
        if GATE == "head":
            into_q, into_b, into_k = load_decays(decays, chunk, t, T)
            y *= into_q
        if RANK:
            b = load_tile(b_pointer + first * b_row, b_row, t, keys, left, K, BK, EVEN)
            u = fine_product(state, tl.trans(operand(b, PRECISION)), nothing, PRECISION)
            if GATE == "head":
                u *= into_b
        if GATE != "none":
            state *= tl.load(ends + chunk * BK + keys)[None, :]
        v = load_columns(v_pointer + first * v_row, v_row, values, t, left, V, VP, EVEN)
        v = operand(v, PRECISION)
        y = product(v, operand(load_scores(own, 0, t[None, :], t[:, None], T), PRECISION), y, PRECISION)
        k = load_tile(k_pointer + first * k_row, k_row, t, keys, left, K, BK, EVEN)
        if GATE == "head":
            state = fine_product(v * into_k, operand(k, PRECISION), state, PRECISION)
        else:
            state = product(v, operand(k, PRECISION), state, PRECISION)
        if RANK:
            bk = operand(load_scores(own, 2, t[None, :], t[:, None], T), PRECISION)
            u = product(v, bk, u, PRECISION)
            inverse = operand(load_scores(own, 3, t[None, :], t[:, None], T), PRECISION)
            u = fine_product(u, inverse, u, PRECISION)
            if KEEP:
                store_parts(inner, inner_low, u, place, inside, PRECISION)
            y = product(
                operand(u, PRECISION), operand(load_scores(own, 1, t[None, :], t[:, None], T), PRECISION), y, PRECISION
            )
            a = load_tile(a_pointer + first * a_row, a_row, t, keys, left, K, BK, EVEN)
            if GATE == "head":
                u *= into_k
            state = fine_product(u, operand(a, PRECISION), state, PRECISION)
        tl.store(y_pointer + place, y.to(y_pointer.dtype.element_ty), mask=inside)
        chunk += 1
    if FINAL:
        place, inside = state_tile(final, sequence, values, keys, K, V)
        tl.store(place, state, mask=inside)
