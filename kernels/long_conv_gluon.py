"""Kernels of `long_conv` and `gated_long_conv`: sums in registers, without matrix units.

A thread owns one sequence of one channel, or of one head, and a tile of tokens. It walks over the tokens before them, a
block of sources at a time: each is loaded once and multiplied with the taps to all of the tile, which slide through
registers, so that 32 loads feed 256 multiply-adds. Neighbouring lanes are neighbouring channels. The correlation of the
backward is the same sum over reversed time: rows are addressed from the last one on, with a negative step. The filter's
gradient has a tile of lags instead of tokens; programs leave partial sums over their sequences, which are added in a
fixed order.

Every operand is float32 in registers, so that the only rounding is that of what is stored. In Gluon, for the layout is
plain, and Triton's search for one takes time with the third power of an unrolled loop's length: seconds a kernel.
"""

# mypy: allow-untyped-defs, disable-error-code="assignment,misc"
# ruff: noqa: RUF005 (Triton's tuples cannot be unpacked)

from triton.experimental import gluon
from triton.experimental.gluon import language as gl


@gluon.jit
def _load(pointer, inside, MASKED: gl.constexpr):
    x = gl.load(pointer, mask=inside, other=0.0) if MASKED else gl.load(pointer)
    return x.to(gl.float32)


@gluon.jit
def _loads(pointer, inside, STEP: gl.constexpr, COUNT: gl.constexpr, MASKED: gl.constexpr):
    """So many numbers, STEP apart: a head's in one row, or a filter's taps."""
    found = (_load(pointer, inside, MASKED),)
    for i in gl.static_range(1, COUNT):
        found = found + (_load(pointer + i * STEP, inside, MASKED),)
    return found


@gluon.jit
def _products(left, right, inside, H: gl.constexpr, R: gl.constexpr, GATED: gl.constexpr, MASKED: gl.constexpr):
    """The R R products of a head's numbers in one row of left and right; without gates left alone."""
    if not GATED:
        return (_load(left, inside, MASKED),)
    a, b = _loads(left, inside, H, R, MASKED), _loads(right, inside, H, R, MASKED)
    found = (a[0] * b[0],)
    for n in gl.static_range(1, R * R):
        found = found + (a[n // R] * b[n % R],)
    return found


@gluon.jit
def _edge_taps(taps, own, inside, first, reach, G: gl.constexpr, COUNT: gl.constexpr):
    """Of the taps from number `first` on those that there are, and zeros; `own` is added to the current token's."""
    found = (_load(taps, inside & (first >= 0) & (first < reach), True) + gl.where(first == 0, own, 0.0),)
    for i in gl.static_range(1, COUNT):
        tap = _load(taps + i * G, inside & (first + i >= 0) & (first + i < reach), True)
        found = found + (tap + gl.where(first + i == 0, own, 0.0),)
    return found


@gluon.jit
def _add(total, values, factors, SHIFT: gl.constexpr, COUNT: gl.constexpr, TILE: gl.constexpr):
    """total[n, i] + values[n] factors[i + SHIFT]."""
    found = (total[0] + values[0] * factors[SHIFT],)
    for place in gl.static_range(1, COUNT * TILE):
        found = found + (total[place] + values[place // TILE] * factors[place % TILE + SHIFT],)
    return found


@gluon.constexpr_function
def _layout(block_h):
    """Of (BLOCK_B,BLOCK_H): one number a thread, neighbouring lanes with neighbouring heads."""
    return gl.BlockedLayout([1, 1], [32 // block_h, block_h], [4, 1], [1, 0])


@gluon.jit
def _heads(H: gl.constexpr, BLOCK_H: gl.constexpr):
    """Of a program, (1,BLOCK_H)."""
    groups: gl.constexpr = (H + BLOCK_H - 1) // BLOCK_H
    h = gl.arange(0, BLOCK_H, gl.SliceLayout(0, _layout(BLOCK_H)))
    return gl.expand_dims(gl.program_id(1) % groups * BLOCK_H + h, 0)


@gluon.jit
def _sequences(part, BLOCK_B: gl.constexpr, BLOCK_H: gl.constexpr):
    """Those of a part of so many, (BLOCK_B,1)."""
    return gl.expand_dims(part * BLOCK_B + gl.arange(0, BLOCK_B, gl.SliceLayout(1, _layout(BLOCK_H))), 1)


@gluon.jit
def _lanes(sequences, H: gl.constexpr, BLOCK_B: gl.constexpr, BLOCK_H: gl.constexpr):
    """Of a program: its sequences (BLOCK_B,1), its heads (1,BLOCK_H), and which of them there are."""
    groups: gl.constexpr = (H + BLOCK_H - 1) // BLOCK_H
    b = _sequences(gl.program_id(1) // groups, BLOCK_B, BLOCK_H)
    h = _heads(H, BLOCK_H)
    return b, h, (b < sequences) & (h < H)


@gluon.jit
def _begin(pointer, b, h, length, ROW: gl.constexpr, REVERSED: gl.constexpr):
    """Where the numbers of a head at the first token lie; reversed, at the last one."""
    row = b.to(gl.int64) * length
    if REVERSED:
        row += length - 1
    return pointer + row * ROW + h


@gluon.jit
def _convolved(
    left, right, taps, skip, g, start, length, reach, inside, h,
    LEFT: gl.constexpr, RIGHT: gl.constexpr, H: gl.constexpr, G: gl.constexpr, R: gl.constexpr, GATED: gl.constexpr,
    TILE: gl.constexpr, SOURCES: gl.constexpr, EVEN: gl.constexpr,
):  # fmt: skip
    """The sums for the tokens start ... start + TILE - 1: a tuple over R R products, then tokens.

    left and right point at the first token, rows LEFT and RIGHT apart; g is the filter of a head h.
    """
    masked: gl.constexpr = not EVEN
    taps += g
    own = h * 0.0 if skip is None else _load(skip + g, h < H, True)
    zero = inside * 0.0
    total = (zero,)
    for _ in gl.static_range(1, R * R * TILE):
        total = total + (zero,)
    first = gl.maximum(start - reach + 1, 0) // SOURCES * SOURCES
    # A block of sources from s on needs the taps start - s + (1 - SOURCES ... TILE - 1): the next block's upper ones
    # are this one's lower ones.
    upper = _edge_taps(taps + (start - first + 1) * G, own, h < H, start - first + 1, reach, G, TILE - 1)
    for s in range(first, start + TILE, SOURCES):
        nearest = start - s - SOURCES + 1
        if (nearest > 0) & (start - s < reach):
            lower = _loads(taps + nearest * G, h < H, G, SOURCES, masked)
        else:
            lower = _edge_taps(taps + nearest * G, own, h < H, nearest, reach, G, SOURCES)
        window = lower + upper
        at, gate = left + s * LEFT, right + s * RIGHT
        for j in gl.static_range(SOURCES):
            there = inside & (s + j < length)
            values = _products(at + j * LEFT, gate + j * RIGHT, there, H, R, GATED, masked)
            total = _add(total, values, window, SOURCES - 1 - j, R * R, TILE)
        upper = window[: TILE - 1]
    return total


@gluon.jit(do_not_specialize=["sequences", "length", "reach"])
def convolution_kernel(
    x, taps, skip, y, sequences, length, reach,
    ROW: gl.constexpr, OUT_ROW: gl.constexpr, D: gl.constexpr, G: gl.constexpr, REVERSED: gl.constexpr,
    TILE: gl.constexpr, SOURCES: gl.constexpr, BLOCK_B: gl.constexpr, BLOCK_H: gl.constexpr, EVEN: gl.constexpr,
):  # fmt: skip
    """y from x; reversed: the gradient of x from that of y."""
    step: gl.constexpr = -1 if REVERSED else 1
    start = (gl.num_programs(0) - 1 - gl.program_id(0)) * TILE  # the longest sums first
    b, d, inside = _lanes(sequences, D, BLOCK_B, BLOCK_H)
    x, y = _begin(x, b, d, length, ROW, REVERSED), _begin(y, b, d, length, OUT_ROW, REVERSED)
    total = _convolved(
        x, x, taps, skip, d % G, start, length, reach, inside, d,
        step * ROW, step * ROW, D, G, 1, False, TILE, SOURCES, EVEN,
    )  # fmt: skip
    for i in gl.static_range(TILE):
        place = y + (start + i) * (step * OUT_ROW)
        gl.store(place, total[i].to(y.dtype.element_ty), mask=inside & (start + i < length))


@gluon.jit(do_not_specialize=["sequences", "length", "reach"])
def gated_forward_kernel(
    q, k, v, taps, skip, y, c, sequences, length, reach,
    Q_ROW: gl.constexpr, K_ROW: gl.constexpr, V_ROW: gl.constexpr, H: gl.constexpr, R: gl.constexpr,
    SAVE: gl.constexpr, TILE: gl.constexpr, SOURCES: gl.constexpr, BLOCK_B: gl.constexpr, BLOCK_H: gl.constexpr,
    EVEN: gl.constexpr,
):  # fmt: skip
    start = (gl.num_programs(0) - 1 - gl.program_id(0)) * TILE
    b, h, inside = _lanes(sequences, H, BLOCK_B, BLOCK_H)
    total = _convolved(
        _begin(k, b, h, length, K_ROW, False), _begin(v, b, h, length, V_ROW, False), taps, skip, h, start, length,
        reach, inside, h, K_ROW, V_ROW, H, H, R, True, TILE, SOURCES, EVEN,
    )  # fmt: skip
    q = _begin(q, b, h, length, Q_ROW, False)
    y = _begin(y, b, h, length, R * H, False)
    c = _begin(c, b, h, length, R * R * H, False)
    for t in gl.static_range(TILE):
        there = inside & (start + t < length)
        gates = _loads(q + (start + t) * Q_ROW, there, H, R, True)
        for j in gl.static_range(R):
            out = gates[0] * total[j * TILE + t]
            for i in gl.static_range(1, R):
                out += gates[i] * total[(i * R + j) * TILE + t]
            gl.store(y + (start + t) * (R * H) + j * H, out.to(y.dtype.element_ty), mask=there)
        if SAVE:
            for n in gl.static_range(R * R):
                place = c + (start + t) * (R * R * H) + n * H
                gl.store(place, total[n * TILE + t].to(c.dtype.element_ty), mask=there)


@gluon.jit(do_not_specialize=["sequences", "length", "reach"])
def gated_backward_kernel(
    dy, q, k, v, c, taps, skip, dq, dk, dv, sequences, length, reach,
    Q_ROW: gl.constexpr, K_ROW: gl.constexpr, V_ROW: gl.constexpr, DQ_ROW: gl.constexpr, DK_ROW: gl.constexpr,
    DV_ROW: gl.constexpr, H: gl.constexpr, R: gl.constexpr, TILE: gl.constexpr, SOURCES: gl.constexpr,
    BLOCK_B: gl.constexpr, BLOCK_H: gl.constexpr, EVEN: gl.constexpr,
):  # fmt: skip
    """Gradients of q, k and v. The correlation of q dy makes those of k v."""
    start = (gl.num_programs(0) - 1 - gl.program_id(0)) * TILE  # counted from the end of the sequences
    b, h, inside = _lanes(sequences, H, BLOCK_B, BLOCK_H)
    dy, q = _begin(dy, b, h, length, R * H, True), _begin(q, b, h, length, Q_ROW, True)
    total = _convolved(
        q, dy, taps, skip, h, start, length, reach, inside, h,
        -Q_ROW, -R * H, H, H, R, True, TILE, SOURCES, EVEN,
    )  # fmt: skip
    k, v = _begin(k, b, h, length, K_ROW, True), _begin(v, b, h, length, V_ROW, True)
    c, dq = _begin(c, b, h, length, R * R * H, True), _begin(dq, b, h, length, DQ_ROW, True)
    dk, dv = _begin(dk, b, h, length, DK_ROW, True), _begin(dv, b, h, length, DV_ROW, True)
    for s in gl.static_range(TILE):
        row = start + s
        there = inside & (row < length)
        keys, values = _loads(k - row * K_ROW, there, H, R, True), _loads(v - row * V_ROW, there, H, R, True)
        upper = _loads(dy - row * (R * H), there, H, R, True)
        for i in gl.static_range(R):
            of_q, of_k, of_v = inside * 0.0, inside * 0.0, inside * 0.0
            for j in gl.static_range(R):
                of_q += upper[j] * _load(c - row * (R * R * H) + (i * R + j) * H, there, True)
                of_k += values[j] * total[(i * R + j) * TILE + s]
                of_v += keys[j] * total[(j * R + i) * TILE + s]
            gl.store(dq - row * DQ_ROW + i * H, of_q.to(dq.dtype.element_ty), mask=there)
            gl.store(dk - row * DK_ROW + i * H, of_k.to(dk.dtype.element_ty), mask=there)
            gl.store(dv - row * DV_ROW + i * H, of_v.to(dv.dtype.element_ty), mask=there)


@gluon.jit
def _gate(left, right, inside, GATED: gl.constexpr, MASKED: gl.constexpr):
    x = _load(left, inside, MASKED)
    if GATED:
        x *= _load(right, inside, MASKED)
    return x


@gluon.jit(do_not_specialize=["sequences", "length", "reach"])
def filter_gradient_kernel(
    dy, q, x, v, partials, sequences, length, reach, rounds,
    DY_ROW: gl.constexpr, Q_ROW: gl.constexpr, X_ROW: gl.constexpr, V_ROW: gl.constexpr, H: gl.constexpr,
    R: gl.constexpr, GATED: gl.constexpr, TILE: gl.constexpr, SOURCES: gl.constexpr, BLOCK_B: gl.constexpr,
    BLOCK_H: gl.constexpr, EVEN: gl.constexpr,
):  # fmt: skip
    """A tile of lags over some of the sequences: sums over t of q dy at t times x v at t - lag."""
    masked: gl.constexpr = not EVEN
    lag = gl.program_id(0) * TILE  # the longest sums first
    groups: gl.constexpr = (H + BLOCK_H - 1) // BLOCK_H
    part, parts = gl.program_id(1) // groups, gl.num_programs(1) // groups
    h = _heads(H, BLOCK_H)
    zero = gl.zeros((BLOCK_B, BLOCK_H), gl.float32, _layout(BLOCK_H))
    total = (zero,)
    for _ in gl.static_range(1, TILE):
        total = total + (zero,)
    for turn in range(rounds):
        b = _sequences(turn * parts + part, BLOCK_B, BLOCK_H)
        inside = (b < sequences) & (h < H)
        for n in range(R * R):
            at_dy = _begin(dy, b, h, length, DY_ROW, False) + (lag * DY_ROW + n % R * H)
            at_q = _begin(q, b, h, length, Q_ROW, False) + (lag * Q_ROW + n // R * H)
            at_x = _begin(x, b, h, length, X_ROW, False) + n // R * H
            at_v = _begin(v, b, h, length, V_ROW, False) + n % R * H
            # x v of the TILE - 1 tokens before, nothing yet.
            lower = (zero,)
            for _ in gl.static_range(1, TILE - 1):
                lower = lower + (zero,)
            for s in range(0, length - lag, SOURCES):
                upper = ()
                for j in gl.static_range(SOURCES):
                    there = inside & (s + j < length)
                    upper = upper + (_gate(at_x + j * X_ROW, at_v + j * V_ROW, there, GATED, masked),)
                window = lower + upper
                for j in gl.static_range(SOURCES):
                    there = inside & (lag + s + j < length)
                    g = _gate(at_dy + j * DY_ROW, at_q + j * Q_ROW, there, GATED, masked)
                    # The gap to place p of the window is TILE - 1 + j - p: the tile has the longest lag first.
                    total = _add(total, (g,), window, j, 1, TILE)
                lower = window[SOURCES:]
                at_dy += SOURCES * DY_ROW
                at_q += SOURCES * Q_ROW
                at_x += SOURCES * X_ROW
                at_v += SOURCES * V_ROW
    for i in gl.static_range(TILE):
        tap = lag + TILE - 1 - i
        place = partials + (part.to(gl.int64) * reach + tap) * H + h
        gl.store(place, gl.expand_dims(gl.sum(total[i], 0), 0), mask=(h < H) & (tap < reach))
