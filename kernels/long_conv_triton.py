"""`long_conv` and `gated_long_conv` in Triton: sums in registers, without matrix units.

A thread owns one sequence of one channel, or of one head, and a tile of tokens. It walks over the tokens before them, a
block of sources at a time: each is loaded once and multiplied with the taps to all of the tile, which slide through
registers, so that 32 loads feed 256 multiply-adds. Neighbouring lanes are neighbouring channels. The correlation of the
backward is the same sum over reversed time: rows are addressed from the last one on, with a negative step. The filter's
gradient has a tile of lags instead of tokens; programs leave partial sums over their sequences, which are added in a
fixed order.

Every operand is float32 in registers, so that the only rounding is that of what is stored.
"""

# mypy: allow-untyped-defs, disable-error-code="assignment"
# ruff: noqa: RUF005 (Triton's tuples cannot be unpacked)

import torch
import triton
import triton.language as tl
from torch import Tensor

# Tokens of a tile and sources of a block by the channels of a head. Larger ones load less for each multiply-add, but
# Triton's time to compile grows with the third power of a loop's length.
TILES = {1: (16, 16), 2: (16, 8)}
LAGS, LAG_SOURCES = 32, 8  # the same of the filter's gradient
LANES = 128  # threads of a program
CHANNELS = 32  # of a program, at most
PROGRAMS = 2048  # of the filter's gradient, about; fixed, so that the order of its sums is the same on every device


@triton.jit
def _load(pointer, inside, MASKED: tl.constexpr):
    x = tl.load(pointer, mask=inside, other=0.0) if MASKED else tl.load(pointer)
    return x.to(tl.float32)


@triton.jit
def _loads(pointer, inside, STEP: tl.constexpr, COUNT: tl.constexpr, MASKED: tl.constexpr):
    """So many numbers, STEP apart: a head's in one row, or a filter's taps."""
    found = (_load(pointer, inside, MASKED),)
    for i in tl.static_range(1, COUNT):
        found = found + (_load(pointer + i * STEP, inside, MASKED),)
    return found


@triton.jit
def _products(left, right, inside, H: tl.constexpr, R: tl.constexpr, GATED: tl.constexpr, MASKED: tl.constexpr):
    """The R R products of a head's numbers in one row of left and right; without gates left alone."""
    if not GATED:
        return (_load(left, inside, MASKED),)
    a, b = _loads(left, inside, H, R, MASKED), _loads(right, inside, H, R, MASKED)
    found = (a[0] * b[0],)
    for n in tl.static_range(1, R * R):
        found = found + (a[n // R] * b[n % R],)
    return found


@triton.jit
def _edge_taps(taps, own, inside, first, reach, G: tl.constexpr, COUNT: tl.constexpr):
    """Of the taps from number `first` on those that there are, and zeros; `own` is added to the current token's."""
    found = (_load(taps, inside & (first >= 0) & (first < reach), True) + tl.where(first == 0, own, 0.0),)
    for i in tl.static_range(1, COUNT):
        tap = _load(taps + i * G, inside & (first + i >= 0) & (first + i < reach), True)
        found = found + (tap + tl.where(first + i == 0, own, 0.0),)
    return found


@triton.jit
def _add(total, values, factors, SHIFT: tl.constexpr, COUNT: tl.constexpr, TILE: tl.constexpr):
    """total[n, i] + values[n] factors[i + SHIFT]."""
    found = (total[0] + values[0] * factors[SHIFT],)
    for place in tl.static_range(1, COUNT * TILE):
        found = found + (total[place] + values[place // TILE] * factors[place % TILE + SHIFT],)
    return found


@triton.jit
def _lanes(sequences, H: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_H: tl.constexpr):
    """Of a program: its sequences (BLOCK_B,1), its heads (1,BLOCK_H), and which of them there are."""
    groups: tl.constexpr = (H + BLOCK_H - 1) // BLOCK_H
    b = (tl.program_id(1) // groups * BLOCK_B + tl.arange(0, BLOCK_B))[:, None]
    h = (tl.program_id(1) % groups * BLOCK_H + tl.arange(0, BLOCK_H))[None, :]
    return b, h, (b < sequences) & (h < H)


@triton.jit
def _begin(pointer, b, h, length, ROW: tl.constexpr, REVERSED: tl.constexpr):
    """Where the numbers of a head at the first token lie; reversed, at the last one."""
    row = b.to(tl.int64) * length
    if REVERSED:
        row += length - 1
    return pointer + row * ROW + h


@triton.jit
def _convolved(
    left, right, taps, skip, g, start, length, reach, inside, h,
    LEFT: tl.constexpr, RIGHT: tl.constexpr, H: tl.constexpr, G: tl.constexpr, R: tl.constexpr, GATED: tl.constexpr,
    TILE: tl.constexpr, SOURCES: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """The sums for the tokens start ... start + TILE - 1: a tuple over R R products, then tokens.

    left and right point at the first token, rows LEFT and RIGHT apart; g is the filter of a head h.
    """
    masked: tl.constexpr = not EVEN
    taps += g
    own = tl.zeros(h.shape, tl.float32) if skip is None else _load(skip + g, h < H, True)
    zero = tl.zeros(inside.shape, tl.float32)
    total = (zero,)
    for _ in tl.static_range(1, R * R * TILE):
        total = total + (zero,)
    first = tl.maximum(start - reach + 1, 0) // SOURCES * SOURCES
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
        for j in tl.static_range(SOURCES):
            there = inside & (s + j < length)
            values = _products(at + j * LEFT, gate + j * RIGHT, there, H, R, GATED, masked)
            total = _add(total, values, window, SOURCES - 1 - j, R * R, TILE)
        upper = window[: TILE - 1]
    return total


@triton.jit
def convolution_kernel(
    x, taps, skip, y, sequences, length, reach,
    ROW: tl.constexpr, OUT_ROW: tl.constexpr, D: tl.constexpr, G: tl.constexpr, REVERSED: tl.constexpr,
    TILE: tl.constexpr, SOURCES: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_H: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """y from x; reversed: the gradient of x from that of y."""
    step: tl.constexpr = -1 if REVERSED else 1
    start = (tl.num_programs(0) - 1 - tl.program_id(0)) * TILE  # the longest sums first
    b, d, inside = _lanes(sequences, D, BLOCK_B, BLOCK_H)
    x, y = _begin(x, b, d, length, ROW, REVERSED), _begin(y, b, d, length, OUT_ROW, REVERSED)
    total = _convolved(
        x, x, taps, skip, d % G, start, length, reach, inside, d,
        step * ROW, step * ROW, D, G, 1, False, TILE, SOURCES, EVEN,
    )  # fmt: skip
    for i in tl.static_range(TILE):
        place = y + (start + i) * (step * OUT_ROW)
        tl.store(place, total[i].to(y.dtype.element_ty), mask=inside & (start + i < length))


@triton.jit
def gated_forward_kernel(
    q, k, v, taps, skip, y, c, sequences, length, reach,
    Q_ROW: tl.constexpr, K_ROW: tl.constexpr, V_ROW: tl.constexpr, H: tl.constexpr, R: tl.constexpr,
    SAVE: tl.constexpr, TILE: tl.constexpr, SOURCES: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_H: tl.constexpr,
    EVEN: tl.constexpr,
):  # fmt: skip
    start = (tl.num_programs(0) - 1 - tl.program_id(0)) * TILE
    b, h, inside = _lanes(sequences, H, BLOCK_B, BLOCK_H)
    total = _convolved(
        _begin(k, b, h, length, K_ROW, False), _begin(v, b, h, length, V_ROW, False), taps, skip, h, start, length,
        reach, inside, h, K_ROW, V_ROW, H, H, R, True, TILE, SOURCES, EVEN,
    )  # fmt: skip
    q = _begin(q, b, h, length, Q_ROW, False)
    y = _begin(y, b, h, length, R * H, False)
    c = _begin(c, b, h, length, R * R * H, False)
    for t in tl.static_range(TILE):
        there = inside & (start + t < length)
        gates = _loads(q + (start + t) * Q_ROW, there, H, R, True)
        for j in tl.static_range(R):
            out = gates[0] * total[j * TILE + t]
            for i in tl.static_range(1, R):
                out += gates[i] * total[(i * R + j) * TILE + t]
            tl.store(y + (start + t) * (R * H) + j * H, out.to(y.dtype.element_ty), mask=there)
        if SAVE:
            for n in tl.static_range(R * R):
                place = c + (start + t) * (R * R * H) + n * H
                tl.store(place, total[n * TILE + t].to(c.dtype.element_ty), mask=there)


@triton.jit
def gated_backward_kernel(
    dy, q, k, v, c, taps, skip, dq, dk, dv, sequences, length, reach,
    Q_ROW: tl.constexpr, K_ROW: tl.constexpr, V_ROW: tl.constexpr, DQ_ROW: tl.constexpr, DK_ROW: tl.constexpr,
    DV_ROW: tl.constexpr, H: tl.constexpr, R: tl.constexpr, TILE: tl.constexpr, SOURCES: tl.constexpr,
    BLOCK_B: tl.constexpr, BLOCK_H: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """Gradients of q, k and v. The correlation of q dy makes those of k v."""
    start = (tl.num_programs(0) - 1 - tl.program_id(0)) * TILE  # counted from the end of the sequences
    b, h, inside = _lanes(sequences, H, BLOCK_B, BLOCK_H)
    dy, q = _begin(dy, b, h, length, R * H, True), _begin(q, b, h, length, Q_ROW, True)
    total = _convolved(
        q, dy, taps, skip, h, start, length, reach, inside, h,
        -Q_ROW, -R * H, H, H, R, True, TILE, SOURCES, EVEN,
    )  # fmt: skip
    k, v = _begin(k, b, h, length, K_ROW, True), _begin(v, b, h, length, V_ROW, True)
    c, dq = _begin(c, b, h, length, R * R * H, True), _begin(dq, b, h, length, DQ_ROW, True)
    dk, dv = _begin(dk, b, h, length, DK_ROW, True), _begin(dv, b, h, length, DV_ROW, True)
    for s in tl.static_range(TILE):
        row = start + s
        there = inside & (row < length)
        keys, values = _loads(k - row * K_ROW, there, H, R, True), _loads(v - row * V_ROW, there, H, R, True)
        upper = _loads(dy - row * (R * H), there, H, R, True)
        for i in tl.static_range(R):
            of_q, of_k, of_v = inside * 0.0, inside * 0.0, inside * 0.0
            for j in tl.static_range(R):
                of_q += upper[j] * _load(c - row * (R * R * H) + (i * R + j) * H, there, True)
                of_k += values[j] * total[(i * R + j) * TILE + s]
                of_v += keys[j] * total[(j * R + i) * TILE + s]
            tl.store(dq - row * DQ_ROW + i * H, of_q.to(dq.dtype.element_ty), mask=there)
            tl.store(dk - row * DK_ROW + i * H, of_k.to(dk.dtype.element_ty), mask=there)
            tl.store(dv - row * DV_ROW + i * H, of_v.to(dv.dtype.element_ty), mask=there)


@triton.jit
def _gate(left, right, inside, GATED: tl.constexpr, MASKED: tl.constexpr):
    x = _load(left, inside, MASKED)
    if GATED:
        x *= _load(right, inside, MASKED)
    return x


@triton.jit
def filter_gradient_kernel(
    dy, q, x, v, partials, sequences, length, reach, rounds,
    DY_ROW: tl.constexpr, Q_ROW: tl.constexpr, X_ROW: tl.constexpr, V_ROW: tl.constexpr, H: tl.constexpr,
    R: tl.constexpr, GATED: tl.constexpr, TILE: tl.constexpr, SOURCES: tl.constexpr, BLOCK_B: tl.constexpr,
    BLOCK_H: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """A tile of lags over some of the sequences: sums over t of q dy at t times x v at t - lag."""
    masked: tl.constexpr = not EVEN
    lag = tl.program_id(0) * TILE  # the longest sums first
    groups: tl.constexpr = (H + BLOCK_H - 1) // BLOCK_H
    part, parts = tl.program_id(1) // groups, tl.num_programs(1) // groups
    h = (tl.program_id(1) % groups * BLOCK_H + tl.arange(0, BLOCK_H))[None, :]
    zero = tl.zeros((BLOCK_B, BLOCK_H), tl.float32)
    total = (zero,)
    for _ in tl.static_range(1, TILE):
        total = total + (zero,)
    for turn in range(rounds):
        b = ((turn * parts + part) * BLOCK_B + tl.arange(0, BLOCK_B))[:, None]
        inside = (b < sequences) & (h < H)
        for n in range(R * R):
            at_dy = _begin(dy, b, h, length, DY_ROW, False) + (lag * DY_ROW + n % R * H)
            at_q = _begin(q, b, h, length, Q_ROW, False) + (lag * Q_ROW + n // R * H)
            at_x = _begin(x, b, h, length, X_ROW, False) + n // R * H
            at_v = _begin(v, b, h, length, V_ROW, False) + n % R * H
            # x v of the TILE - 1 tokens before, nothing yet.
            lower = (zero,)
            for _ in tl.static_range(1, TILE - 1):
                lower = lower + (zero,)
            for s in range(0, length - lag, SOURCES):
                upper = ()
                for j in tl.static_range(SOURCES):
                    there = inside & (s + j < length)
                    upper = upper + (_gate(at_x + j * X_ROW, at_v + j * V_ROW, there, GATED, masked),)
                window = lower + upper
                for j in tl.static_range(SOURCES):
                    there = inside & (lag + s + j < length)
                    g = _gate(at_dy + j * DY_ROW, at_q + j * Q_ROW, there, GATED, masked)
                    # The gap to place p of the window is TILE - 1 + j - p: the tile has the longest lag first.
                    total = _add(total, (g,), window, j, 1, TILE)
                lower = window[SOURCES:]
                at_dy += SOURCES * DY_ROW
                at_q += SOURCES * Q_ROW
                at_x += SOURCES * X_ROW
                at_v += SOURCES * V_ROW
    columns = tl.program_id(1) % groups * BLOCK_H + tl.arange(0, BLOCK_H)
    for i in tl.static_range(TILE):
        tap = lag + TILE - 1 - i
        place = partials + (part.to(tl.int64) * reach + tap) * H + columns
        tl.store(place, tl.sum(total[i], 0), mask=(columns < H) & (tap < reach))


def _rows(x: Tensor) -> Tensor:
    """x with channels side by side and the rows of (B,L) evenly apart, as a part of a wider tensor has them."""
    even = x.stride(2) == 1 and x.stride(0) == x.shape[1] * x.stride(1)
    return x if even else x.contiguous()


def _blocks(sequences: int, length: int, heads: int, parts: int) -> tuple[tuple[int, int], dict[str, int | bool]]:
    """The grid, and what the tiles of all kernels are; a head has so many channels."""
    channels = min(CHANNELS, triton.next_power_of_2(heads))
    lanes = LANES // channels
    tile, sources = TILES[parts]
    groups = triton.cdiv(heads, channels)
    even = length % tile == 0 and heads % channels == 0 and sequences % lanes == 0
    shape: dict[str, int | bool] = {
        "TILE": tile,
        "SOURCES": sources,
        "BLOCK_B": lanes,
        "BLOCK_H": channels,
        "EVEN": even,
        "num_warps": LANES // 32,
    }
    return (triton.cdiv(length, tile), groups * triton.cdiv(sequences, lanes)), shape


def _convolve(x: Tensor, taps: Tensor, skip: Tensor | None, y: Tensor, *, backwards: bool) -> None:
    """y = taps * x + skip x, or with time reversed; rows of both may be parts of wider ones."""
    sequences, length, width = x.shape
    grid, shape = _blocks(sequences, length, width, 1)
    convolution_kernel[grid](
        x, taps, skip, y, sequences, length, len(taps), ROW=x.stride(1), OUT_ROW=y.stride(1), D=width, G=taps.shape[1],
        REVERSED=backwards, **shape,
    )  # fmt: skip


def _filter_gradient(dy: Tensor, x: Tensor, reach: int, heads: int, gates: tuple[Tensor, Tensor] | None) -> Tensor:
    """(reach, heads) float32: sums of dy (times gates[0]) with the earlier x (times gates[1]) over all sequences."""
    sequences, length, width = dy.shape
    parts_of_head = width // heads if gates else 1
    columns = heads if gates else width
    channels = min(CHANNELS, triton.next_power_of_2(columns))
    lanes, groups = LANES // channels, triton.cdiv(columns, channels)
    lags = triton.cdiv(reach, LAGS)
    batches = triton.cdiv(sequences, lanes)
    rounds = triton.cdiv(batches, max(1, min(batches, PROGRAMS // (lags * groups))))
    parts = triton.cdiv(batches, rounds)
    partials = torch.empty((parts, reach, columns), dtype=torch.float32, device=dy.device)
    q, v = gates or (dy, x)
    even = length % LAGS == 0 and columns % channels == 0 and sequences == lanes * parts * rounds
    filter_gradient_kernel[(lags, groups * parts)](
        dy, q, x, v, partials, sequences, length, reach, rounds,
        DY_ROW=dy.stride(1), Q_ROW=q.stride(1), X_ROW=x.stride(1), V_ROW=v.stride(1), H=columns, R=parts_of_head,
        GATED=gates is not None, TILE=LAGS, SOURCES=LAG_SOURCES, BLOCK_B=lanes, BLOCK_H=channels, EVEN=even,
        num_warps=LANES // 32,
    )  # fmt: skip
    return partials.view(-1, reach, columns // heads, heads).sum((0, 2))


def _within(taps: Tensor, length: int) -> Tensor:
    """The taps that a sequence of this length meets, dense."""
    return taps[:length].contiguous()


def _extended(gradient: Tensor, taps: Tensor) -> Tensor:
    """With zeros for the taps that no sequence met."""
    missing = len(taps) - len(gradient)
    return torch.nn.functional.pad(gradient, (0, 0, 0, missing)) if missing else gradient


@torch.library.custom_op("basedbench::long_conv", mutates_args=())
def _long_conv(x: Tensor, taps: Tensor, skip: Tensor | None) -> Tensor:
    """y (B,L,D) of x (B,L,D), taps (N,G) and skip (G,)."""
    y = x.new_empty(x.shape)
    if y.numel():
        _convolve(_rows(x), _within(taps, x.shape[1]), skip, y, backwards=False)
    return y


@_long_conv.register_fake
def _(x: Tensor, taps: Tensor, skip: Tensor | None) -> Tensor:
    return x.new_empty(x.shape)


@torch.library.custom_op("basedbench::long_conv_backward", mutates_args=())
def _long_conv_backward(dy: Tensor, x: Tensor, taps: Tensor, skip: Tensor | None) -> tuple[Tensor, Tensor]:
    dx = x.new_empty(x.shape)
    if not dx.numel():
        return dx, torch.zeros_like(taps)
    dy, x, near = dy.contiguous(), _rows(x), _within(taps, x.shape[1])
    _convolve(dy, near, skip, dx, backwards=True)
    return dx, _extended(_filter_gradient(dy, x, len(near), near.shape[1], None), taps)


@_long_conv_backward.register_fake
def _(dy: Tensor, x: Tensor, taps: Tensor, skip: Tensor | None) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), taps.new_empty(taps.shape)


def _long_conv_setup(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs)


def _long_conv_gradients(ctx, dy: Tensor):
    x, taps, skip = ctx.saved_tensors
    dx, d_taps = _long_conv_backward(dy, x, taps, skip)
    return dx, d_taps, None if skip is None else d_taps[0]


_long_conv.register_autograd(_long_conv_gradients, setup_context=_long_conv_setup)


def _thirds(x: Tensor, order: str) -> list[Tensor]:
    """q, k and v of x, whose thirds stand in this order."""
    return [x.chunk(3, -1)[order.index(name)] for name in "qkv"]


def _gated_outputs(x: Tensor, taps: Tensor, shift: Tensor | None, save: bool) -> tuple[Tensor, Tensor, Tensor]:
    sequences, length, width = x.shape
    width //= 3
    y = x.new_empty((sequences, length, width))
    c = x.new_empty((sequences, length, width, width // taps.shape[1]) if save else 0)
    return y, c, x.new_empty(0 if shift is None else y.shape)


@torch.library.custom_op("basedbench::gated_long_conv", mutates_args=())
def _gated(
    x: Tensor,
    taps: Tensor,
    skip: Tensor | None,
    shift: Tensor | None,
    shift_skip: Tensor | None,
    order: str,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """y (B,L,D); to save: the convolution of every product (B,L,D,R); the shifted k, empty without a shift."""
    x = _rows(x)
    q, k, v = _thirds(x, order)
    y, c, shifted = _gated_outputs(x, taps, shift, save)
    if not y.numel():
        return y, c, shifted
    sequences, length, width = y.shape
    if shift is not None:
        _convolve(k, _within(shift, length), shift_skip, shifted, backwards=False)
        k = shifted
    near, heads = _within(taps, length), taps.shape[1]
    grid, shape = _blocks(sequences, length, heads, width // heads)
    gated_forward_kernel[grid](
        q, k, v, near, skip, y, c, sequences, length, len(near), Q_ROW=q.stride(1), K_ROW=k.stride(1),
        V_ROW=v.stride(1), H=heads, R=width // heads, SAVE=save, **shape,
    )  # fmt: skip
    return y, c, shifted


@_gated.register_fake
def _(
    x: Tensor,
    taps: Tensor,
    skip: Tensor | None,
    shift: Tensor | None,
    shift_skip: Tensor | None,
    order: str,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    return _gated_outputs(x, taps, shift, save)


@torch.library.custom_op("basedbench::gated_long_conv_backward", mutates_args=())
def _gated_backward(
    dy: Tensor,
    x: Tensor,
    taps: Tensor,
    skip: Tensor | None,
    shift: Tensor | None,
    shift_skip: Tensor | None,
    c: Tensor,
    shifted: Tensor,
    order: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of x, of the taps, and of the shift (empty without one)."""
    x, dy = _rows(x), dy.contiguous()
    dx = x.new_empty(x.shape)
    if not dx.numel():
        return dx, torch.zeros_like(taps), taps.new_zeros(0 if shift is None else shift.shape)
    (q, k, v), (dq, dk, dv) = _thirds(x, order), _thirds(dx, order)
    d_shifted = dk
    if shift is not None:
        k, d_shifted = shifted, x.new_empty(shifted.shape)
    sequences, length, width = dy.shape
    near, heads = _within(taps, length), taps.shape[1]
    grid, shape = _blocks(sequences, length, heads, width // heads)
    gated_backward_kernel[grid](
        dy, q, k, v, c, near, skip, dq, d_shifted, dv, sequences, length, len(near),
        Q_ROW=q.stride(1), K_ROW=k.stride(1), V_ROW=v.stride(1), DQ_ROW=dq.stride(1), DK_ROW=d_shifted.stride(1),
        DV_ROW=dv.stride(1), H=heads, R=width // heads, **shape,
    )  # fmt: skip
    d_taps = _extended(_filter_gradient(dy, k, len(near), heads, (q, v)), taps)
    if shift is None:
        return dx, d_taps, taps.new_empty(0)
    within = _within(shift, length)
    _convolve(d_shifted, within, shift_skip, dk, backwards=True)
    unshifted = _thirds(x, order)[1]
    return dx, d_taps, _extended(_filter_gradient(d_shifted, unshifted, len(within), width, None), shift)


@_gated_backward.register_fake
def _(
    dy: Tensor,
    x: Tensor,
    taps: Tensor,
    skip: Tensor | None,
    shift: Tensor | None,
    shift_skip: Tensor | None,
    c: Tensor,
    shifted: Tensor,
    order: str,
) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape), taps.new_empty(taps.shape), taps.new_empty(0 if shift is None else shift.shape)


def _gated_setup(ctx, inputs, output) -> None:
    *tensors, ctx.order, ctx.saved = inputs
    ctx.save_for_backward(*tensors, *output[1:])
    ctx.mark_non_differentiable(*output[1:])


def _gated_gradients(ctx, dy: Tensor, *_: Tensor | None):
    if not ctx.saved:
        raise RuntimeError("gated_long_conv was called for its output alone.")
    x, taps, skip, shift, shift_skip, c, shifted = ctx.saved_tensors
    dx, d_taps, d_shift = _gated_backward(dy, x, taps, skip, shift, shift_skip, c, shifted, ctx.order)
    d_skip = None if skip is None else d_taps[0]
    d_shift_skip = None if shift_skip is None else d_shift[0]
    return dx, d_taps, d_skip, None if shift is None else d_shift, d_shift_skip, None, None


_gated.register_autograd(_gated_gradients, setup_context=_gated_setup)


def long_conv(x_BLD: Tensor, taps_NG: Tensor, skip_G: Tensor | None) -> Tensor:
    """`long_conv.reference` by the kernels above."""
    return _long_conv(x_BLD, taps_NG, skip_G)


def gated_long_conv(
    x_BLE: Tensor,
    taps_NH: Tensor,
    skip_H: Tensor | None,
    shift_ND: Tensor | None,
    shift_skip_D: Tensor | None,
    *,
    order: str,
) -> Tensor:
    """`long_conv.gated_reference` by the kernels above, for heads of one or two channels."""
    given = (x_BLE, taps_NH, skip_H, shift_ND, shift_skip_D)
    save = torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in given)
    return _gated(*given, order, save)[0]
