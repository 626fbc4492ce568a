"""Gradients of the gated delta rule, in two launches. With the names of `delta_rule_forward_triton` and

    R    what all outputs after a chunk ask of the state behind it (R = dS' of the chunk)
    du = qa^T dy + a^ R                                 p = (1 - ba)^-T du, what they ask of b^ S + bk v

the first launch walks over the chunks from the last one, keeping R and p, and writes

    dv = qk^T dy + k^ R + bk^T p                        R of the chunk before = 2^(sum of g) R + q^^T dy + b^^T p

The second takes all chunks at once. It sums over the values the gradients of q^, b^, k^, a^ (dy S^T, p S^T, v R^T,
u R^T) and of the scores (qk: dy v^T, qa: dy u^T, bk: p v^T, ba: p u^T), then takes both back to q, k, a, b and g.
What g gets from an exponent goes back by the matrix of -1, 0, 1 that summed it, so nothing cancels either.
"""

# mypy: allow-untyped-defs

import triton
import triton.language as tl

from .delta_rule_forward_triton import load_columns, load_decays, load_scores, load_state, state_tile
from .delta_rule_tiles_triton import fine_product, product, store_parts
from .taylor_tiles import head_offset, load_tile, operand


@triton.jit(do_not_specialize=["length", "heads"])
def reverse_kernel(
    q_pointer, k_pointer, a_pointer, b_pointer, dy_pointer, more, scores, decays, ends,
    dv_pointer, grad_final, grad_initial, kept, asked, asked_low,
    q_batch, q_row, q_head, k_batch, k_row, k_head, a_batch, a_row, a_head, b_batch, b_row, b_head, length, heads,
    K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, VP: tl.constexpr, T: tl.constexpr,
    EVEN: tl.constexpr, GATE: tl.constexpr, RANK: tl.constexpr, GRAD_INITIAL: tl.constexpr, GRAD_FINAL: tl.constexpr,
    PRECISION: tl.constexpr, MORE: tl.constexpr,
):  # fmt: skip
    """dv (B,L,H,V), R behind each chunk (B,H,chunks,VP,BK), p as u, and the gradient of the initial state.

    MORE: to dv belongs what others have for v.
    """
    BLOCKS: tl.constexpr = VP // BV
    sequence = tl.program_id(0) // BLOCKS
    t, keys = tl.arange(0, T), tl.arange(0, BK)
    values = tl.program_id(0) % BLOCKS * BV + tl.arange(0, BV)
    q_pointer += head_offset(sequence, heads, q_batch, q_head)
    k_pointer += head_offset(sequence, heads, k_batch, k_head)
    a_pointer += head_offset(sequence, heads, a_batch, a_head)
    b_pointer += head_offset(sequence, heads, b_batch, b_head)
    offset = head_offset(sequence, heads, heads.to(tl.int64) * length * V, V)
    chunks = tl.cdiv(length, T)
    R = load_state(grad_final, sequence, values, keys, K, V, GRAD_FINAL)
    for index in tl.range(chunks):
        chunk = chunks - 1 - index
        start = chunk * T
        left, first = length - start, tl.cast(start, tl.int64)
        number = sequence.to(tl.int64) * chunks + chunk
        place = offset + first * (heads * V)
        own = scores + number * ((4 if RANK else 1) * T * T)
        inside = (t < left)[None, :] & (values < V)[:, None]
        tl.store(kept + number * (VP * BK) + values[:, None] * BK + keys[None, :], R.to(kept.dtype.element_ty))
        # All that reads R first, as in the forward.
        behind, nothing = operand(R, PRECISION), tl.zeros([BV, T], tl.float32)
        k = load_tile(k_pointer + first * k_row, k_row, t, keys, left, K, BK, EVEN)
        dv = product(behind, tl.trans(operand(k, PRECISION)), nothing, PRECISION)
        if GATE == "head":
            into_q, into_b, into_k = load_decays(decays, number, t, T)
            dv *= into_k
        if RANK:
            a = load_tile(a_pointer + first * a_row, a_row, t, keys, left, K, BK, EVEN)
            p = fine_product(R, tl.trans(operand(a, PRECISION)), nothing, PRECISION)
            if GATE == "head":
                p *= into_k
        if GATE != "none":
            R *= tl.load(ends + number * BK + keys)[None, :]
        dy = operand(load_columns(dy_pointer + place, heads * V, values, t, left, V, VP, EVEN), PRECISION)
        dv = product(dy, operand(load_scores(own, 0, t[:, None], t[None, :], T), PRECISION), dv, PRECISION)
        q = load_tile(q_pointer + first * q_row, q_row, t, keys, left, K, BK, EVEN)
        if GATE == "head":
            R = fine_product(dy * into_q, operand(q, PRECISION), R, PRECISION)
        else:
            R = product(dy, operand(q, PRECISION), R, PRECISION)
        place += t[None, :] * (heads * V) + values[:, None]
        if RANK:
            qa = operand(load_scores(own, 1, t[:, None], t[None, :], T), PRECISION)
            p = product(dy, qa, p, PRECISION)
            inverse = operand(load_scores(own, 3, t[:, None], t[None, :], T), PRECISION)
            p = fine_product(p, inverse, p, PRECISION)
            store_parts(asked, asked_low, p, place, inside, PRECISION)
            dv = product(
                operand(p, PRECISION), operand(load_scores(own, 2, t[:, None], t[None, :], T), PRECISION), dv, PRECISION
            )
            b = load_tile(b_pointer + first * b_row, b_row, t, keys, left, K, BK, EVEN)
            if GATE == "head":
                p *= into_b
            R = fine_product(p, operand(b, PRECISION), R, PRECISION)
        if MORE:
            dv += tl.load(more + place, mask=inside, other=0.0).to(tl.float32)
        tl.store(dv_pointer + place, dv.to(dv_pointer.dtype.element_ty), mask=inside)
    if GRAD_INITIAL:
        place, inside = state_tile(grad_initial, sequence, values, keys, K, V)
        tl.store(place, R.to(grad_initial.dtype.element_ty), mask=inside)
