"""Short sequences of linear_attention, and widths whose state no program can hold: quadratic by tiles.

Any of the four forms of `linear_attention_tiles_triton`. A program makes T rows of a block of z's columns from all
tokens that they meet in their segment, and from the state that `linear_attention_states_triton` has left for the
segment. Up to a length a sequence is one segment, and this is the whole operator. x and y may be of any width: they are
read in blocks.
"""

# mypy: allow-untyped-defs

import triton
import triton.language as tl

from .delta_rule_tiles_triton import product
from .linear_attention_tiles_triton import (
    EPSILON,
    add_weighted,
    load_features,
    load_rate,
    met,
    read_state,
    scores,
    slope,
    store_rows,
    weights,
    without_mean,
)
from .taylor_tiles import head_offset, load_tile, load_vector, operand


@triton.jit
def _row_deltas(
    x_pointer, x_row, output_pointer, output_row, rows, length, inverse,
    X: tl.constexpr, BX: tl.constexpr, XB: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """delta = dy . y / z of each row."""
    delta = tl.zeros([rows.shape[0]], tl.float32)
    for x_block in tl.range(0, BX, XB):
        ix = x_block + tl.arange(0, XB)
        dy = load_tile(x_pointer, x_row, rows, ix, length, X, BX, EVEN).to(tl.float32)
        output = load_tile(output_pointer, output_row, rows, ix, length, X, BX, EVEN).to(tl.float32)
        delta += tl.sum(dy * output, 1)
    return delta * inverse


@triton.jit(do_not_specialize=["length", "heads", "segment", "segments"])
def block_kernel(
    x_pointer, y_pointer, z_pointer, raw_pointer, output_pointer, out_pointer, inverse_pointer, delta_pointer, rates,
    states,
    x_batch, x_row, x_head, y_batch, y_row, y_head, z_batch, z_row, z_head, raw_batch, raw_row, raw_head,
    length, heads, segment, segments, scale,
    X: tl.constexpr, Z: tl.constexpr, BX: tl.constexpr, XB: tl.constexpr, BZ: tl.constexpr, ZB: tl.constexpr,
    T: tl.constexpr, KIND: tl.constexpr, REVERSE: tl.constexpr, XY_MAP: tl.constexpr, Z_MAP: tl.constexpr,
    NORMALISE: tl.constexpr, DECAY: tl.constexpr, STATE: tl.constexpr, EVEN: tl.constexpr,
    PRECISION: tl.constexpr, SCORES: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """Outputs as of `walk_kernel`; `segment` is a multiple of T, STATE: `states` (B,H,segments,K,W).

    Without WHOLE delta is from the forward's y, `output_pointer`; with it one block has all of Z.
    """
    KEYS_FIRST: tl.constexpr = KIND == "output" or KIND == "value"
    KEYS: tl.constexpr = X if KEYS_FIRST else Z
    VALUES: tl.constexpr = Z if KEYS_FIRST else X
    W: tl.constexpr = VALUES + 1 if NORMALISE else VALUES
    block = tl.program_id(0) % (BZ // ZB)
    blocks = tl.cdiv(length, T)
    sequence, start = tl.program_id(0) // (BZ // ZB) // blocks, tl.program_id(0) // (BZ // ZB) % blocks * T
    t, columns_x, iz = tl.arange(0, T), tl.arange(0, XB), block * ZB + tl.arange(0, ZB)
    rows = start + t
    x_pointer += head_offset(sequence, heads, x_batch, x_head)
    y_pointer += head_offset(sequence, heads, y_batch, y_head)
    z_pointer += head_offset(sequence, heads, z_batch, z_head)
    token = sequence.to(tl.int64) * length
    rate = load_rate(rates, sequence % heads, DECAY)
    number = start // segment
    begin = number * segment
    end = tl.minimum(begin + segment, length)
    inverse, delta = tl.zeros([T], tl.float32), tl.zeros([T], tl.float32)
    if NORMALISE and KIND == "query":
        inverse = load_vector(inverse_pointer + token, rows, length, EVEN)
        if not WHOLE:
            output_pointer += head_offset(sequence, heads, heads.to(tl.int64) * length * X, X)
            delta = _row_deltas(x_pointer, x_row, output_pointer, heads * X, rows, length, inverse, X, BX, XB, EVEN)
    found, total = tl.zeros([T, ZB], tl.float32), tl.zeros([T], tl.float32)
    passed = tl.zeros([T, ZB], tl.float32)
    if STATE:
        states += (sequence.to(tl.int64) * segments + number) * (KEYS * W)
        vector = tl.zeros([ZB], tl.float32)
        if NORMALISE and not KEYS_FIRST:
            vector = tl.load(states + iz * W + VALUES, mask=iz < Z, other=0.0)
            if KIND == "query" and WHOLE:
                passed += vector[None, :]
        for x_block in tl.range(0, BX, XB):
            ix = x_block + columns_x
            x = load_features(x_pointer, x_row, rows, ix, length, X, BX, EVEN, XY_MAP)
            place = ix[:, None] * W + iz[None, :] if KEYS_FIRST else ix[:, None] + iz[None, :] * W
            state = tl.load(states + place, mask=(ix < X)[:, None] & (iz < Z)[None, :], other=0.0)
            found = product(operand(x, PRECISION), operand(state, PRECISION), found, PRECISION)
            if NORMALISE and KIND == "output":
                sums = tl.load(states + ix * W + VALUES, mask=ix < X, other=0.0)
                total += tl.sum(x.to(tl.float32) * sums[None, :], 1)
        found = read_state(
            found, inverse, delta, vector, rows, begin, end, rate, scale, KIND, REVERSE, NORMALISE, DECAY, WHOLE
        )  # fmt: skip
    if BX == XB:
        x = load_features(x_pointer, x_row, rows, columns_x, length, X, BX, EVEN, XY_MAP)
    for first in tl.range(start if REVERSE else begin, end if REVERSE else start + T, T):
        columns = first + t
        s = tl.zeros([T, T], tl.float32)
        if BX == XB:
            y = load_features(y_pointer, y_row, columns, columns_x, length, X, BX, EVEN, XY_MAP)
            s = scores(x, y, s, SCORES)
        else:
            for x_block in tl.range(0, BX, XB):
                ix = x_block + columns_x
                x = load_features(x_pointer, x_row, rows, ix, length, X, BX, EVEN, XY_MAP)
                y = load_features(y_pointer, y_row, columns, ix, length, X, BX, EVEN, XY_MAP)
                s = scores(x, y, s, SCORES)
        if NORMALISE and REVERSE:
            inverse = load_vector(inverse_pointer + token, columns, length, EVEN)
            if KIND == "key":
                delta = load_vector(delta_pointer + token, columns, length, EVEN)
        w = weights(s, rows, columns, inverse, delta, rate, scale, KIND, REVERSE, NORMALISE, DECAY, WHOLE)
        total += tl.sum(w, 1)
        z = load_features(z_pointer, z_row, columns, iz, length, Z, BZ, EVEN, Z_MAP)
        found = add_weighted(found, w, z, KIND, NORMALISE, PRECISION)
        if NORMALISE and KIND == "query" and WHOLE:
            passed = met(rows, columns, z, passed, PRECISION)
    if NORMALISE and KIND == "output":
        total = 1.0 / (total + EPSILON)
        found *= total[:, None]
        if block == 0:
            tl.store(inverse_pointer + token + rows, total, mask=rows < length)
    raw_pointer += head_offset(sequence, heads, raw_batch, raw_head)
    if NORMALISE and KIND == "query":
        if WHOLE:
            features = load_features(raw_pointer, raw_row, rows, iz, length, Z, BZ, EVEN, Z_MAP)
            found, delta = without_mean(found, passed, features)
        if block == 0:
            tl.store(delta_pointer + token + rows, delta, mask=rows < length)
    if Z_MAP != "none":
        found *= slope(load_tile(raw_pointer, raw_row, rows, iz, length, Z, BZ, EVEN), Z_MAP)
    out_offset = head_offset(sequence, heads, heads.to(tl.int64) * length * Z, Z)
    store_rows(out_pointer, found, out_offset, heads, rows, iz, length, Z)
