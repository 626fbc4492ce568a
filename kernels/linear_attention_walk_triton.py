"""Long sequences of linear_attention: one program walks over the chunks of a sequence and head, state in registers.

Any of the four forms of `linear_attention_tiles_triton`; those in reverse walk from the end. Per chunk of T tokens four
products: x y^T, w z, x state, y^T z; x, y, z and the result pass through memory once and no state does. Wide z is cut
into blocks, each with a program of its own. Where sequences and heads do not fill the device, the sequence is cut into
segments, and each program begins with the state that `linear_attention_states_triton` has left for it.
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
    state_decay,
    store_rows,
    weighted,
    weights,
    without_mean,
)
from .taylor_tiles import head_offset, load_tile, load_vector, operand


@triton.jit
def _advance(
    state, vector, y, z, inverse, delta, rows, begin, end, rate, scale, KIND: tl.constexpr, REVERSE: tl.constexpr,
    NORMALISE: tl.constexpr, DECAY: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """State and vector after a chunk. phi(k), in reverse phi(q), is y or z and takes the weights."""
    if NORMALISE:
        if KIND == "output":
            vector += tl.sum(y.to(tl.float32), 0)
        elif KIND == "query":
            vector += tl.sum(z.to(tl.float32), 0)
        elif KIND == "key":
            vector -= tl.sum(z.to(tl.float32) * delta[:, None], 0)
    if KIND == "output" or KIND == "value":
        y = weighted(y, inverse, rows, begin, end, rate, scale, REVERSE, NORMALISE, DECAY)
    else:
        z = weighted(z, inverse, rows, begin, end, rate, scale, REVERSE, NORMALISE, DECAY)
    state = state * state_decay(begin, end, rate, DECAY)
    return product(tl.trans(operand(y, PRECISION)), operand(z, PRECISION), state, PRECISION), vector


@triton.jit(do_not_specialize=["length", "heads", "segment", "segments"])
def walk_kernel(
    x_pointer, y_pointer, z_pointer, raw_pointer, out_pointer, inverse_pointer, delta_pointer, rates,
    states, last,
    x_batch, x_row, x_head, y_batch, y_row, y_head, z_batch, z_row, z_head, raw_batch, raw_row, raw_head,
    length, heads, segment, segments, scale,
    X: tl.constexpr, Z: tl.constexpr, BX: tl.constexpr, BZ: tl.constexpr, ZB: tl.constexpr, T: tl.constexpr,
    KIND: tl.constexpr, REVERSE: tl.constexpr, XY_MAP: tl.constexpr, Z_MAP: tl.constexpr,
    NORMALISE: tl.constexpr, DECAY: tl.constexpr, STATE: tl.constexpr, LAST: tl.constexpr, EVEN: tl.constexpr,
    PRECISION: tl.constexpr, SCORES: tl.constexpr,
):  # fmt: skip
    """out (B,L,H,Z); KIND output: 1 / z (B,H,L) too, query: delta (B,H,L), all of Z in one block.

    STATE: `states` (B,H,segments,K,W) holds what each segment begins with. LAST: `last` is what one segment ends with.
    """
    KEYS_FIRST: tl.constexpr = KIND == "output" or KIND == "value"
    KEYS: tl.constexpr = X if KEYS_FIRST else Z
    VALUES: tl.constexpr = Z if KEYS_FIRST else X
    W: tl.constexpr = VALUES + 1 if NORMALISE else VALUES
    BLOCKS: tl.constexpr = BZ // ZB
    program = tl.program_id(0)
    sequence, number, block = program // BLOCKS // segments, program // BLOCKS % segments, program % BLOCKS
    t, ix, iz = tl.arange(0, T), tl.arange(0, BX), block * ZB + tl.arange(0, ZB)
    x_pointer += head_offset(sequence, heads, x_batch, x_head)
    y_pointer += head_offset(sequence, heads, y_batch, y_head)
    z_pointer += head_offset(sequence, heads, z_batch, z_head)
    raw_pointer += head_offset(sequence, heads, raw_batch, raw_head)
    token = sequence.to(tl.int64) * length
    out_offset = head_offset(sequence, heads, heads.to(tl.int64) * length * Z, Z)
    rate = load_rate(rates, sequence % heads, DECAY)
    place = ix[:, None] * W + iz[None, :] if KEYS_FIRST else ix[:, None] + iz[None, :] * W
    inside = (ix < X)[:, None] & (iz < Z)[None, :]
    states += program.to(tl.int64) // BLOCKS * (KEYS * W)
    last += sequence.to(tl.int64) * (KEYS * W)
    along = ix if KIND == "output" else iz  # the entries of the vector
    along_end = X if KIND == "output" else Z
    state = tl.load(states + place, mask=inside, other=0.0) if STATE else tl.zeros([BX, ZB], tl.float32)
    vector = tl.zeros([BX if KIND == "output" else ZB], tl.float32)
    if STATE and NORMALISE and KIND != "value":
        vector = tl.load(states + along * W + VALUES, mask=along < along_end, other=0.0)
    first = number * segment
    stop = tl.minimum(first + segment, length)
    inverse, delta = tl.zeros([T], tl.float32), tl.zeros([T], tl.float32)
    chunks = tl.cdiv(stop - first, T)
    for index in tl.range(0, chunks):
        begin = first + (chunks - 1 - index if REVERSE else index) * T
        end = tl.minimum(begin + T, length)
        rows = begin + t
        x = load_features(x_pointer, x_row, rows, ix, length, X, BX, EVEN, XY_MAP)
        y = load_features(y_pointer, y_row, rows, ix, length, X, BX, EVEN, XY_MAP)
        z = load_features(z_pointer, z_row, rows, iz, length, Z, BZ, EVEN, Z_MAP)
        if NORMALISE and KIND != "output":
            inverse = load_vector(inverse_pointer + token, rows, length, EVEN)
            if KIND == "key":
                delta = load_vector(delta_pointer + token, rows, length, EVEN)
        s = scores(x, y, tl.zeros([T, T], tl.float32), SCORES)
        w = weights(s, rows, rows, inverse, delta, rate, scale, KIND, REVERSE, NORMALISE, DECAY, True)
        found = product(operand(x, PRECISION), operand(state, PRECISION), tl.zeros([T, ZB], tl.float32), PRECISION)
        found = read_state(
            found, inverse, delta, vector, rows, begin, end, rate, scale, KIND, REVERSE, NORMALISE, DECAY, True
        )  # fmt: skip
        found = add_weighted(found, w, z, KIND, NORMALISE, PRECISION)
        if KIND == "output" and NORMALISE:
            own = 1.0 / (tl.sum(w, 1) + tl.sum(x.to(tl.float32) * vector[None, :], 1) + EPSILON)
            found *= own[:, None]
            if block == 0:
                tl.store(inverse_pointer + token + rows, own, mask=rows < length)
        if KIND == "query" and NORMALISE:
            passed = met(rows, rows, z, tl.zeros([T, ZB], tl.float32) + vector[None, :], PRECISION)
            features = load_features(raw_pointer, raw_row, rows, iz, length, Z, BZ, EVEN, Z_MAP)
            found, own = without_mean(found, passed, features)
            tl.store(delta_pointer + token + rows, own, mask=rows < length)
        state, vector = _advance(
            state, vector, y, z, inverse, delta, rows, begin, end, rate, scale,
            KIND, REVERSE, NORMALISE, DECAY, PRECISION,
        )  # fmt: skip
        if Z_MAP != "none":
            raw = load_tile(raw_pointer, raw_row, rows, iz, length, Z, BZ, EVEN)
            found *= slope(raw, Z_MAP)
        store_rows(out_pointer, found, out_offset, heads, rows, iz, length, Z)
    if LAST:
        # In reverse one launch has the state and another one the vector.
        if KEYS_FIRST:
            tl.store(last + place, state, mask=inside)
        if NORMALISE and KIND != "value" and (KIND == "key" or block == 0):
            tl.store(last + along * W + VALUES, vector, mask=along < along_end)
