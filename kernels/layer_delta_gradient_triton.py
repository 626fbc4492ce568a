"""Gradients of the delta rule as layers have it, by q, n, beta and g: one program per chunk.

With the names of `layer_delta_walk_triton`, and every tile of 2 T = 64 rows, which are a warpgroup's,

    x = [q; n]      c = [dy; -dv]       z = [0; w]          (z of zeros and of two halves, added up)
    W = c z^T D     dx = 2^G c S^T + W beta x               M = 2^(G_T - G) z R^T + W^T x

where D has the decays of pairs and leaves out what comes later. W has something in its right half alone, and M only
below: dq is above in dx, dn = dx + beta M below, dbeta = n . M. Through G every row gets x . dx, and every column gives
n . beta M back. Both are sums of the same numbers, so that what cancels cancels as float32 does.
"""

# mypy: allow-untyped-defs

import triton
import triton.language as tl

from .delta_rule_stacked_triton import load_lower, load_pair, store_pair
from .delta_rule_tiles_triton import chunk_place, two_halves
from .taylor_tiles import head_offset


@triton.jit
def weighted(w, x, accumulator):
    """accumulator + w x, 16 bits of w."""
    high, low = two_halves(w)
    return tl.dot(low, x, tl.dot(high, x, accumulator))


@triton.jit
def pairs(x, x_low, y, y_low, accumulator):
    """accumulator + x y^T, of two numbers each: sums over values of either sign, of which none is rounded before."""
    accumulator = tl.dot(x, tl.trans(y_low), tl.dot(x_low, tl.trans(y), accumulator))
    return tl.dot(x, tl.trans(y), accumulator)


@triton.jit(do_not_specialize=["length", "heads"])
def gradient_kernel(
    q_pointer, n_pointer, beta_pointer, dy_pointer, dv_pointer, dv_low, new, new_low, factors, kept, asked,
    dq_pointer, dn_pointer, dbeta_pointer, dg_pointer,
    q_batch, q_row, q_head, n_batch, n_row, n_head, length, heads, all_rows,
    K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, KB: tl.constexpr, BV: tl.constexpr, VP: tl.constexpr,
    T: tl.constexpr, EVEN: tl.constexpr, GATE: tl.constexpr,
):  # fmt: skip
    """dq, dn (B,L,H,K), from S (kept) and R (asked) of the chunk, and both halves of dv and w.

    And what each block of keys adds to dbeta and dg (blocks,B,L,H). `all_rows` is B L H. Program: chunk and KB of BK
    keys.
    """
    program = tl.program_id(0) // (BK // KB)
    sequence, left, first, token = chunk_place(program, length, heads, T)
    block_of_keys = tl.program_id(0) % (BK // KB)
    rows, keys = tl.arange(0, 2 * T), block_of_keys * KB + tl.arange(0, KB)
    dbeta_pointer += block_of_keys.to(tl.int64) * all_rows
    dg_pointer += block_of_keys.to(tl.int64) * all_rows
    t, below, exists = rows % T, rows >= T, rows % T < left
    q_pointer += head_offset(sequence, heads, q_batch, q_head) + first * q_row
    n_pointer += head_offset(sequence, heads, n_batch, n_head) + first * n_row
    dy_pointer, dv_pointer, dv_low = dy_pointer + token * V, dv_pointer + token * V, dv_low + token * V
    new, new_low = new + token * V, new_low + token * V
    states = program.to(tl.int64) * (VP * BK)
    w, turned = tl.zeros([2 * T, 2 * T], tl.float32), tl.zeros([2 * T, 2 * T], tl.float32)
    dx, m, end = tl.zeros([2 * T, KB], tl.float32), tl.zeros([2 * T, KB], tl.float32), tl.zeros([KB], tl.float32)
    row = heads * V
    # All loads first: nothing is loaded behind a barrier.
    x = load_pair(q_pointer, q_row, n_pointer, n_row, rows, keys, left, T, K, BK, EVEN)
    beta = tl.load(beta_pointer + token + t * heads, mask=exists, other=0.0).to(tl.float32)
    for block in tl.range(0, VP, BV):
        values = block + tl.arange(0, BV)
        c = load_pair(dy_pointer, row, dv_pointer, row, rows, values, left, T, V, VP, EVEN)
        z = load_lower(new, row, rows, values, left, T, V)
        c_low = load_lower(dv_low, row, rows, values, left, T, V)
        z_low = load_lower(new_low, row, rows, values, left, T, V)
        place = states + values[:, None] * BK + keys[None, :]
        S, R = tl.load(kept + place), tl.load(asked + place)
        w = pairs(c, c_low, z, z_low, w)
        turned = pairs(z, z_low, c, c_low, turned)
        if GATE == "head":
            end += tl.sum(S.to(tl.float32) * R.to(tl.float32), 0)
        dx = tl.dot(c_low, S, tl.dot(c, S, dx))
        m = tl.dot(z_low, R, tl.dot(z, R, m))
    # dv has the other sign than dy. Rows of n have only earlier tokens, those of q their own too.
    sign = tl.where(below, -1.0, 1.0)
    last = t - tl.where(below, 1, 0)
    D = tl.where((last[:, None] >= t[None, :]) & below[None, :], sign[:, None], 0.0)
    D_turned = tl.where((last[None, :] >= t[:, None]) & below[:, None], sign[None, :], 0.0)
    dx *= sign[:, None]
    x_wide = x.to(tl.float32)
    if GATE == "head":
        total = tl.load(factors + program.to(tl.int64) * (3 * T) + 2 * T + t)
        whole = tl.load(factors + program.to(tl.int64) * (3 * T) + 3 * T - 1)
        D *= tl.exp2(tl.minimum(total[:, None] - total[None, :], 0.0))
        D_turned *= tl.exp2(tl.minimum(total[None, :] - total[:, None], 0.0))
        dx *= tl.exp2(total)[:, None]
        m *= tl.exp2(whole - total)[:, None]
        through = tl.sum(end, 0) * tl.exp2(whole) + tl.sum(tl.sum(x_wide * m, 1) * beta, 0)
    dx = weighted(w * D * beta[None, :], x, dx)
    m = weighted(turned * D_turned, x, m)
    of_write = tl.sum(x_wide * m, 1)
    written = below & (t < left)
    tl.store(dbeta_pointer + token + t * heads, of_write, mask=written)
    if GATE == "head":
        of_sum = tl.sum(tl.reshape(tl.sum(x_wide * dx, 1) - of_write * beta, [2, T]), 0)
        dg = through + tl.cumsum(of_sum, 0, reverse=True)
        tokens = tl.arange(0, T)
        tl.store(dg_pointer + token + tokens * heads, dg.to(dg_pointer.dtype.element_ty), mask=tokens < left)
    dx += m * beta[:, None]
    store_pair(dq_pointer + token * K, dn_pointer + token * K, dx, heads * K, rows, keys, left, T, K)
