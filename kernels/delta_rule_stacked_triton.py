"""Gradients of the delta rule in bfloat16 by products of 64 rows: two where there were eight of 32.

What is read stands in one tile over what is asked: x = [q; b] and z = [k; a], with [dy; p] and [v; u] beside them. With
the names of `delta_rule_backward_triton` all scores are x z^T, all that they get is w = [dy; p] [v; u]^T, and

    dx = [dy; p] S^T + w z            dz = [v; u] R^T + w^T x

(decays left out), each a product of the matrix units' warpgroups, which read operands from shared memory: in products
of single warps each operand is in the registers of all of them. Of two numbers of bfloat16 are w, u and p, and with
decays of channels x and z (`delta_rule_triton`).
"""

# mypy: allow-untyped-defs

import triton
import triton.language as tl

from .delta_rule_tiles_triton import chunk_place, float_halves, is_mild, load_gate, two_halves
from .taylor_tiles import head_offset


@triton.jit
def takes_mild(ends, BK: tl.constexpr, GATE: tl.constexpr):
    """Whether the chunk with these decays over all of it is one for here."""
    if GATE == "channel":
        return is_mild(ends, BK)
    return True


@triton.jit
def load_pair(
    x, x_row, y, y_row, rows, columns, left, T: tl.constexpr, WIDTH: tl.constexpr, PADDED: tl.constexpr,
    EVEN: tl.constexpr,
):  # fmt: skip
    """T rows of x over as many of y, zero beyond `left` and WIDTH."""
    t = rows % T
    place = tl.where((rows < T)[:, None], x + t[:, None] * x_row, y + t[:, None] * y_row) + columns[None, :]
    if EVEN and WIDTH == PADDED:
        return tl.load(place)
    return tl.load(place, mask=(t < left)[:, None] & (columns < WIDTH)[None, :], other=0.0)


@triton.jit
def load_lower(y, y_row, rows, columns, left, T: tl.constexpr, WIDTH: tl.constexpr):
    """As of `load_pair`, with zeros for x."""
    t = rows % T
    inside = (rows >= T)[:, None] & (t < left)[:, None] & (columns < WIDTH)[None, :]
    return tl.load(y + t[:, None] * y_row + columns[None, :], mask=inside, other=0.0)


@triton.jit
def load_upper(x, x_row, rows, columns, left, T: tl.constexpr, WIDTH: tl.constexpr):
    """As of `load_pair`, with zeros for y; float32."""
    inside = (rows < T)[:, None] & (rows < left)[:, None] & (columns < WIDTH)[None, :]
    return tl.load(x + rows[:, None] * x_row + columns[None, :], mask=inside, other=0.0).to(tl.float32)


@triton.jit
def chosen(choice, x):
    """choice x, for a matrix of 0 and 1: sums to 16 bits of what is summed."""
    choice = choice.to(tl.float32).to(tl.bfloat16)
    high, low = two_halves(x)
    return tl.dot(choice, high, tl.dot(choice, low))


@triton.jit
def finely(high, low, x_high, x_low, acc):
    """acc + w x of two numbers each: 16 bits of both."""
    return tl.dot(high, x_low, tl.dot(low, x_high, tl.dot(high, x_high, acc)))


@triton.jit
def sums_until(g, t, T: tl.constexpr):
    """Sums of g (2 T,KB), whose halves are alike, up to each row's token: to float32's accuracy."""
    rows = tl.arange(0, 2 * T)
    choice = ((rows < T)[None, :] & (rows[None, :] <= t[:, None])).to(tl.float32).to(tl.bfloat16)
    high, rest = float_halves(g)
    low, lowest = two_halves(rest)
    return tl.dot(choice, high.to(tl.bfloat16), tl.dot(choice, low, tl.dot(choice, lowest)))


@triton.jit
def store_pair(x, y, value, row, rows, columns, left, T: tl.constexpr, WIDTH: tl.constexpr):
    """The rows of `value` to T of x and as many of y, each dense."""
    t = rows % T
    place = tl.where((rows < T)[:, None], x + t[:, None] * row, y + t[:, None] * row) + columns[None, :]
    tl.store(place, value.to(x.dtype.element_ty), mask=(t < left)[:, None] & (columns < WIDTH)[None, :])


@triton.jit(do_not_specialize=["length", "heads"])
def stacked_gradient_kernel(
    q_pointer, k_pointer, v_pointer, a_pointer, b_pointer, g_pointer, dy_pointer, ends, kept, asked,
    inner, inner_low, outer, outer_low, more_q, more_k,
    dq_pointer, dk_pointer, da_pointer, db_pointer, dg_pointer,
    q_batch, q_row, q_head, k_batch, k_row, k_head, v_batch, v_row, v_head, a_batch, a_row, a_head,
    b_batch, b_row, b_head, g_batch, g_row, g_head, length, heads,
    K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, KB: tl.constexpr, BV: tl.constexpr, VP: tl.constexpr,
    T: tl.constexpr, EVEN: tl.constexpr, GATE: tl.constexpr, MORE: tl.constexpr,
):  # fmt: skip
    """What `gradient_kernel` writes, with decays of channels for mild chunks (`delta_rule_mild_triton`).

    u and p as in `store_parts`. Program: chunk and KB of BK keys; one decay a head gets its gradient from all keys.
    """
    program = tl.program_id(0) // (BK // KB)
    if not takes_mild(ends + program.to(tl.int64) * BK, BK, GATE):
        return
    sequence, left, first, token = chunk_place(program, length, heads, T)
    rows, keys = tl.arange(0, 2 * T), tl.program_id(0) % (BK // KB) * KB + tl.arange(0, KB)
    t = rows % T
    q_pointer += head_offset(sequence, heads, q_batch, q_head) + first * q_row
    k_pointer += head_offset(sequence, heads, k_batch, k_head) + first * k_row
    v_pointer += head_offset(sequence, heads, v_batch, v_head) + first * v_row
    a_pointer += head_offset(sequence, heads, a_batch, a_head) + first * a_row
    b_pointer += head_offset(sequence, heads, b_batch, b_head) + first * b_row
    dy_pointer += token * V
    inner, inner_low = inner + token * V, inner_low + token * V
    outer, outer_low = outer + token * V, outer_low + token * V
    states = program.to(tl.int64) * (VP * BK)
    w = tl.zeros([2 * T, 2 * T], tl.float32)
    dx, dz = tl.zeros([2 * T, KB], tl.float32), tl.zeros([2 * T, KB], tl.float32)
    end = tl.zeros([KB], tl.float32)
    # All loads that there are registers for come first: behind a barrier each would be waited for anew.
    x = load_pair(q_pointer, q_row, b_pointer, b_row, rows, keys, left, T, K, BK, EVEN)
    z = load_pair(k_pointer, k_row, a_pointer, a_row, rows, keys, left, T, K, BK, EVEN)
    for block in tl.range(0, VP, BV):
        values = block + tl.arange(0, BV)
        grads = load_pair(dy_pointer, heads * V, outer, heads * V, rows, values, left, T, V, VP, EVEN)
        read = load_pair(v_pointer, v_row, inner, heads * V, rows, values, left, T, V, VP, EVEN)
        place = states + values[:, None] * BK + keys[None, :]
        S, R = tl.load(kept + place), tl.load(asked + place)
        grads_low = load_lower(outer_low, heads * V, rows, values, left, T, V)
        read_low = load_lower(inner_low, heads * V, rows, values, left, T, V)
        w = tl.dot(grads, tl.trans(read), w)
        if GATE != "none":
            end += tl.sum(S.to(tl.float32) * R.to(tl.float32), 0)
        dx = tl.dot(grads_low, S, tl.dot(grads, S, dx))
        dz = tl.dot(read_low, R, tl.dot(read, R, dz))
    # q reads what its own token writes, b only what earlier ones do: `last` is the last of whose decay each has.
    last = t - tl.where(rows >= T, 1, 0)
    pairs = last[:, None] >= t[None, :]
    g_pointer += head_offset(sequence, heads, g_batch, g_head) + first * g_row
    if GATE == "channel":
        g = load_gate(g_pointer, g_row, t, keys, left, K, BK, EVEN, GATE)
        middle = 0.5 * tl.sum(tl.where((rows < T)[:, None], g, 0.0), 0)
        total = sums_until(g, t, T) - middle[None, :]
        into_x = tl.exp2(total - tl.where((rows < T)[:, None], 0.0, g))
        into_z, to_end = tl.exp2(-total), tl.exp2(middle)[None, :]
        x_high, x_low = two_halves(x.to(tl.float32) * into_x)
        z_high, z_low = two_halves(z.to(tl.float32) * into_z)
        dx, dz = dx * to_end, dz * to_end
        dg = (end[None, :] * (to_end * to_end)) + tl.sum(z.to(tl.float32) * (dz * into_z), 0)[None, :]
        high, low = two_halves(tl.where(t[:, None] > t[None, :], w, 0.0))
        dx = finely(high, low, z_high, z_low, dx) * into_x
        dz = finely(tl.trans(high), tl.trans(low), x_high, x_low, dz) * into_z
        # The sum until t goes up with all g until t: of q; of b without its own; and of what k and a miss of the whole.
        of_x = x.to(tl.float32) * dx
        of_both = of_x - z.to(tl.float32) * dz
        dg += chosen(t[None, :] >= rows[:, None], of_both) - chosen(rows[None, :] == rows[:, None] + T, of_x)
        place = dg_pointer + (token + rows * heads)[:, None] * K + keys[None, :]
        inside = (rows < T)[:, None] & (rows < left)[:, None] & (keys < K)[None, :]
        tl.store(place, dg.to(dg_pointer.dtype.element_ty), mask=inside)
        # A token's own pairs have no decay: apart from the others, for they would cancel out of dg.
        pairs = (rows < T)[:, None] & (t[:, None] == t[None, :])
    w = tl.where(pairs, w, 0.0)
    if GATE == "head":
        tokens = tl.arange(0, T)
        g = load_gate(g_pointer, g_row, tokens, tokens, left, K, BK, EVEN, GATE)
        of_token = tl.reshape(g, [1, T])
        until = tl.sum(tl.where(last[:, None] >= tokens[None, :], of_token, 0.0), 1)
        after = tl.sum(tl.where(t[:, None] < tokens[None, :], of_token, 0.0), 1)
        dx, dz = dx * tl.exp2(until)[:, None], dz * tl.exp2(after)[:, None]
        of_x, of_z = tl.sum(x.to(tl.float32) * dx, 1), tl.sum(z.to(tl.float32) * dz, 1)
        # Sums over just the tokens between, as in `head_decays`.
        exponents = chosen(last[:, None] >= tokens[None, :], tl.where(tokens[:, None] > t[None, :], g, 0.0))
        w *= tl.exp2(exponents)
        reached = last[None, :] >= rows[:, None]
        # Through pairs s < j <= last: first the sum over x, then that over z; rows j >= T are not of the chunk.
        linked = chosen(reached, w * tl.dot(x, tl.trans(z)))
        dg = tl.sum(tl.where(t[None, :] < rows[:, None], linked + of_z[None, :], 0.0), 1)
        dg += tl.sum(tl.where(reached, of_x[None, :], 0.0), 1) + tl.sum(end, 0) * tl.exp2(tl.sum(of_token))
        place = dg_pointer + token + rows * heads
        tl.store(place, dg.to(dg_pointer.dtype.element_ty), mask=(rows < T) & (rows < left))
    high, low = two_halves(w)
    dx = tl.dot(low, z, tl.dot(high, z, dx))
    dz = tl.dot(tl.trans(low), x, tl.dot(tl.trans(high), x, dz))
    if MORE:
        dx += load_upper(more_q + token * K, heads * K, rows, keys, left, T, K)
        dz += load_upper(more_k + token * K, heads * K, rows, keys, left, T, K)
    store_pair(dq_pointer + token * K, db_pointer + token * K, dx, heads * K, rows, keys, left, T, K)
    store_pair(dk_pointer + token * K, da_pointer + token * K, dz, heads * K, rows, keys, left, T, K)
