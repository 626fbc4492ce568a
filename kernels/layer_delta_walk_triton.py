"""Both walks of the delta rule as layers have it: one program for a sequence, head and block of values.

With the names of `layer_delta_scores_triton`, per chunk of T tokens and for the state S before it,

    r  = v - n^ S               w = r + X r             what is new in the values, and takes the others' place
    y  = q^ S + P w             S' = 2^(sum of g) S + k^^T w

q^ and n^ are decayed from the beginning of the chunk, k^ = beta n to its end. From the last chunk on, for R = dS',

    dw = P^T dy + k^ R          dv = dw + X^T dw        R of the chunk before = 2^(sum of g) R + q^^T dy - n^^T dv

States and rows of values lie as in `delta_rule_forward_triton`, values x keys and values x tokens, in the registers of
the warps that own these values. Three products wait for each other: with S, with X, and with k^. Decays of tokens are
factors of rows; a chunk's are read while the one before is worked on, for they are too small for asynchronous copies.
"""

# mypy: allow-untyped-defs

import triton
import triton.language as tl

from .delta_rule_forward_triton import load_columns, load_scores, load_state, state_tile
from .delta_rule_tiles_triton import two_halves
from .taylor_tiles import head_offset, load_tile


@triton.jit
def load_factors(factors, ends, chunk, t, keys, T: tl.constexpr, BK: tl.constexpr, GATE: tl.constexpr):
    """Of a chunk: the factors (1,T) of q^ and n^, those of k^, and the decays of the state, a number or (1,BK)."""
    into, weight, end = 1.0, 1.0, 1.0
    if GATE == "none":
        weight = tl.load(factors + chunk * T + t)[None, :]
    elif GATE == "head":
        factors += chunk * (3 * T)
        weight, into = tl.load(factors + t)[None, :], tl.load(factors + T + t)[None, :]
        end = tl.load(factors + 2 * T - 1)
    else:
        end = tl.load(ends + chunk * BK + keys)[None, :]
    return into, weight, end


@triton.jit
def fine(x, y, accumulator):
    """accumulator + x y for a float32 x, of which 16 bits are taken, and a bfloat16 y."""
    high, low = two_halves(x)
    return tl.dot(high, y, tl.dot(low, y, accumulator))


@triton.jit(do_not_specialize=["length", "heads"])
def output_kernel(
    q_pointer, n_pointer, k_pointer, v_pointer, scores, factors, ends, y_pointer, initial, final, kept, new, new_low,
    q_batch, q_row, q_head, n_batch, n_row, n_head, k_batch, k_row, k_head, v_batch, v_row, v_head, length, heads,
    K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, VP: tl.constexpr, T: tl.constexpr,
    EVEN: tl.constexpr, GATE: tl.constexpr, INITIAL: tl.constexpr, FINAL: tl.constexpr, KEEP: tl.constexpr,
):  # fmt: skip
    """y (B,L,H,V); FINAL: the last state; KEEP: states before chunks (B,H,chunks,VP,BK) and both halves of w.

    With decays of channels q, n and k are q^, n^ and k^. Program: sequence, head, block of BV of the VP values.
    """
    BLOCKS: tl.constexpr = VP // BV
    sequence = tl.program_id(0) // BLOCKS
    t, keys = tl.arange(0, T), tl.arange(0, BK)
    values = tl.program_id(0) % BLOCKS * BV + tl.arange(0, BV)
    q_pointer += head_offset(sequence, heads, q_batch, q_head)
    n_pointer += head_offset(sequence, heads, n_batch, n_head)
    k_pointer += head_offset(sequence, heads, k_batch, k_head)
    v_pointer += head_offset(sequence, heads, v_batch, v_head)
    y_offset = head_offset(sequence, heads, heads.to(tl.int64) * length * V, V)
    chunks = tl.cdiv(length, T)
    first_chunk = sequence.to(tl.int64) * chunks
    state = load_state(initial, sequence, values, keys, K, V, INITIAL)
    into, weight, end = load_factors(factors, ends, first_chunk, t, keys, T, BK, GATE)
    v = load_columns(v_pointer, v_row, values, t, length, V, VP, EVEN)
    for index in tl.range(chunks):
        chunk, start = first_chunk + index, index * T
        left, first = length - start, tl.cast(start, tl.int64)
        after = tl.minimum(index + 1, chunks - 1)
        next_into, next_weight, next_end = load_factors(factors, ends, first_chunk + after, t, keys, T, BK, GATE)
        next_v = load_columns(
            v_pointer + tl.cast(after * T, tl.int64) * v_row, v_row, values, t, length - after * T, V, VP, EVEN
        )
        own = scores + chunk * (2 * T * T)
        place = y_offset + first * (heads * V) + t[None, :] * (heads * V) + values[:, None]
        inside = (t < left)[None, :] & (values < V)[:, None]
        high, low = two_halves(state)
        if KEEP:
            tl.store(kept + chunk * (VP * BK) + values[:, None] * BK + keys[None, :], high)
        n = load_tile(n_pointer + first * n_row, n_row, t, keys, left, K, BK, EVEN)
        known = tl.dot(high, tl.trans(n), tl.dot(low, tl.trans(n)))
        q = load_tile(q_pointer + first * q_row, q_row, t, keys, left, K, BK, EVEN)
        y = tl.dot(high, tl.trans(q))
        if GATE == "head":
            known, y = known * into, y * into
        if GATE != "none":
            state *= end
        w = v.to(tl.float32) - known
        w = fine(w, load_scores(own, 1, t[None, :], t[:, None], T), w)
        high, low = two_halves(w)
        if KEEP:
            tl.store(new + place, high, mask=inside)
            tl.store(new_low + place, low, mask=inside)
        P = load_scores(own, 0, t[None, :], t[:, None], T)
        y = tl.dot(high, P, tl.dot(low, P, y))
        if GATE == "channel":
            k = load_tile(k_pointer + first * k_row, k_row, t, keys, left, K, BK, EVEN)
            state = tl.dot(high, k, tl.dot(low, k, state))
        else:
            state = fine(w * weight, n, state)
        tl.store(y_pointer + place, y.to(y_pointer.dtype.element_ty), mask=inside)
        into, weight, end, v = next_into, next_weight, next_end, next_v
    if FINAL:
        place, inside = state_tile(final, sequence, values, keys, K, V)
        tl.store(place, state, mask=inside)


@triton.jit(do_not_specialize=["length", "heads"])
def reverse_kernel(
    q_pointer, n_pointer, k_pointer, dy_pointer, scores, factors, ends, dv_pointer, dv_low, grad_final, grad_initial,
    kept,
    q_batch, q_row, q_head, n_batch, n_row, n_head, k_batch, k_row, k_head, length, heads,
    K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, VP: tl.constexpr, T: tl.constexpr,
    EVEN: tl.constexpr, GATE: tl.constexpr, GRAD_INITIAL: tl.constexpr, GRAD_FINAL: tl.constexpr,
):  # fmt: skip
    """dv (B,L,H,V) and what it was rounded by, R behind each chunk, and the gradient of the initial state."""
    BLOCKS: tl.constexpr = VP // BV
    sequence = tl.program_id(0) // BLOCKS
    t, keys = tl.arange(0, T), tl.arange(0, BK)
    values = tl.program_id(0) % BLOCKS * BV + tl.arange(0, BV)
    q_pointer += head_offset(sequence, heads, q_batch, q_head)
    n_pointer += head_offset(sequence, heads, n_batch, n_head)
    k_pointer += head_offset(sequence, heads, k_batch, k_head)
    offset = head_offset(sequence, heads, heads.to(tl.int64) * length * V, V)
    chunks = tl.cdiv(length, T)
    first_chunk = sequence.to(tl.int64) * chunks
    R = load_state(grad_final, sequence, values, keys, K, V, GRAD_FINAL)
    into, weight, end = load_factors(factors, ends, first_chunk + chunks - 1, t, keys, T, BK, GATE)
    for index in tl.range(chunks):
        chunk = first_chunk + chunks - 1 - index
        start = (chunks - 1 - index) * T
        left, first = length - start, tl.cast(start, tl.int64)
        after = first_chunk + tl.maximum(chunks - 2 - index, 0)
        next_into, next_weight, next_end = load_factors(factors, ends, after, t, keys, T, BK, GATE)
        own = scores + chunk * (2 * T * T)
        place = offset + first * (heads * V)
        inside = (t < left)[None, :] & (values < V)[:, None]
        high, low = two_halves(R)
        tl.store(kept + chunk * (VP * BK) + values[:, None] * BK + keys[None, :], high)
        n = load_tile(n_pointer + first * n_row, n_row, t, keys, left, K, BK, EVEN)
        if GATE == "channel":
            k = load_tile(k_pointer + first * k_row, k_row, t, keys, left, K, BK, EVEN)
            dw = tl.dot(high, tl.trans(k), tl.dot(low, tl.trans(k)))
        else:
            dw = tl.dot(high, tl.trans(n), tl.dot(low, tl.trans(n))) * weight
        if GATE != "none":
            R *= end
        dy = load_columns(dy_pointer + place, heads * V, values, t, left, V, VP, EVEN)
        dw = tl.dot(dy, load_scores(own, 0, t[:, None], t[None, :], T), dw)
        q = load_tile(q_pointer + first * q_row, q_row, t, keys, left, K, BK, EVEN)
        R = fine(dy.to(tl.float32) * into, q, R) if GATE == "head" else tl.dot(dy, q, R)
        dv = fine(dw, load_scores(own, 1, t[:, None], t[None, :], T), dw)
        place += t[None, :] * (heads * V) + values[:, None]
        high, low = two_halves(dv)
        tl.store(dv_pointer + place, high, mask=inside)
        tl.store(dv_low + place, low, mask=inside)
        R = fine(-dv * into, n, R)
        into, weight, end = next_into, next_weight, next_end
    if GRAD_INITIAL:
        place, inside = state_tile(grad_initial, sequence, values, keys, K, V)
        tl.store(place, R.to(grad_initial.dtype.element_ty), mask=inside)
