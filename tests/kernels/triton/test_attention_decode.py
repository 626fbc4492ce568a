"""The decode step of attention and of a sliding window by the kernels, against their references in float64."""

import importlib

import pytest
import torch
from torch import Tensor

from basedbench.kernels import attention_decode_triton as kernels
from basedbench.kernels import rotary_angles

from .conftest import interpreted

decode_reference = importlib.import_module("basedbench.kernels.attention_decode").reference
window_reference = importlib.import_module("basedbench.kernels.sliding_window").reference_step

# Batch, query heads, key heads, width of keys, width of values, slots, lengths.
SIZES = [
    (1, 2, 2, 48, 48, 9, [1]),
    (3, 1, 1, 70, 70, 130, [0, 17, 100]),
    (3, 4, 2, 64, 64, 20, [19, 17, 1]),
    (1, 1, 1, 112, 112, 101, [100]),
    (1, 2, 1, 128, 16, 40, [33]),
]
if not interpreted:
    SIZES += [
        (128, 24, 24, 70, 70, 1024, [1023] * 128),
        (1, 16, 16, 64, 64, 8192, [8000]),
        (2, 8, 2, 128, 128, 99, [98, 0]),
    ]
# Heads, widths of keys and values, slots.
RINGS = [
    (3, (64, 32), 20),
    (2, (80, 80), 64),
    (1, (64, 128), 128),
    (2, (48, 48), 128),
    (1, (112, 112), 64),
    (2, (112, 112), 128),
    (1, (128, 128), 128),
]
# Beyond twice the reference's own error: what is left where that happens to be small.
FLOOR = {torch.float32: 3e-7, torch.float16: 1e-4, torch.bfloat16: 1e-3}


def drawn(randn, device, dtype, batch, heads, groups, key_dim, value_dim, slots, lengths) -> list[Tensor]:
    """q, k, v as slices of one projection, the caches with NaN beyond the lengths, and the lengths."""
    widths = heads * key_dim, groups * key_dim, groups * value_dim
    parts = randn(batch, sum(widths)).to(device, dtype).split(widths, -1)
    q, k, v = (x.unflatten(-1, (n, -1)) for x, n in zip(parts, (heads, groups, groups), strict=True))
    caches = [randn(batch, slots, groups, width).to(device, dtype) for width in (key_dim, value_dim)]
    length = torch.tensor(lengths, dtype=torch.int32, device=device)
    unwritten = torch.arange(slots, device=device) >= length.unsqueeze(-1)
    return [q, k, v, *(x.masked_fill(unwritten[..., None, None], torch.nan) for x in caches), length]


def copies(inputs: list[Tensor], dtype: torch.dtype | None = None) -> list[Tensor]:
    return [x.to(dtype).clone() if dtype and x.is_floating_point() else x.clone() for x in inputs]


def compare(relative_error, inputs, *, ring=False, rotated=0, scale=None):
    """Outputs within twice the reference's error, caches equal to the reference's."""
    reference = window_reference if ring else decode_reference
    angles = rotary_angles(inputs[5], rotated) if rotated else None
    options = {"scale": scale, "angles": angles} | ({"count": False} if ring else {})
    one, two, three = copies(inputs), copies(inputs), copies(inputs, torch.float64)
    wide = None if angles is None else tuple(x.double() for x in angles)
    y = kernels.attention_decode(*one, scale=scale, angles=angles, ring=ring)
    theirs = reference(*two, **options)
    exact = reference(*three, **(options | {"angles": wide}))
    assert y.dtype == theirs.dtype
    assert relative_error(y, exact) <= 2 * relative_error(theirs, exact) + FLOOR[y.dtype]
    for mine, other in zip(one[3:5], two[3:5], strict=True):
        torch.testing.assert_close(
            mine, other, equal_nan=True, rtol=2e-3 if rotated else 0, atol=1e-6 if rotated else 0
        )


@pytest.mark.parametrize("size", SIZES)
def test_errors(randn, relative_error, device, dtypes, size):
    for dtype in dtypes:
        compare(relative_error, drawn(randn, device, dtype, *size))


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("length", [0, 1, 17, 64, 130])
@pytest.mark.parametrize("parts", [1, 3, 5])
def test_parts(randn, relative_error, device, monkeypatch, parts, length):
    """Cut into parts, more of them than there are tiles to read as well; every buffer starts as NaN."""
    monkeypatch.setattr(kernels, "part_count", lambda *_: parts)
    monkeypatch.setattr(kernels, "TILE", 256)
    compare(relative_error, drawn(randn, device, torch.float32, 2, 2, 1, 64, 48, 140, [length, 140 - 1 - length // 2]))


@pytest.mark.parametrize("rotated", [64, 31])
def test_angles(randn, relative_error, device, dtypes, rotated):
    for dtype in dtypes:
        compare(relative_error, drawn(randn, device, dtype, 2, 2, 2, 64, 64, 60, [50, 3]), rotated=rotated, scale=0.2)


@pytest.mark.parametrize(("width", "window"), [(64, 64), (112, 5), (70, 40)])
def test_ring(randn, relative_error, device, dtypes, width, window):
    """Empty, half full, full, and full again: the oldest slot is read, then overwritten."""
    positions = [0, window // 2, window, 5 * window + 3]
    for dtype in dtypes:
        inputs = drawn(randn, device, dtype, 4, 1, 1, width, width, window, positions)
        for cache in inputs[3:5]:
            cache.nan_to_num_()  # the reference reads empty slots with weight zero
        compare(relative_error, inputs, ring=True, rotated=width)


# Interpreted, a program runs alone, whatever its warps.
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("many", [1] if interpreted else [1, 1 << 20], ids="from {} programs".format)
@pytest.mark.parametrize("rotated", [0, 12, pytest.param(32, marks=pytest.mark.slow), "all"])
@pytest.mark.parametrize(("heads", "widths", "slots"), RINGS)
def test_whole_rings(randn, relative_error, device, monkeypatch, heads, widths, slots, rotated, many):
    """By two warps and by four, and by the kernel of rings that do not fit: the same state, to the last bit."""
    monkeypatch.setattr(kernels, "MANY", many)
    rotated = widths[0] if rotated == "all" else rotated
    positions = [0, slots // 3, slots - 1, slots, 7 * slots + 5]
    inputs = drawn(randn, device, torch.float16, 5, heads, heads, *widths, slots, positions)
    for cache in inputs[3:5]:
        cache.nan_to_num_()
    assert kernels._whole(*inputs[:5])
    compare(relative_error, inputs, ring=True, rotated=rotated)
    angles = rotary_angles(inputs[5], rotated) if rotated else None
    found = []
    for largest in (kernels.LARGEST_RING, 0):
        monkeypatch.setattr(kernels, "LARGEST_RING", largest)
        own = copies(inputs)
        y = kernels.attention_decode(*own, scale=None, angles=angles, ring=True)
        found.append([y, *own[3:5]])
    torch.testing.assert_close(found[0][0], found[1][0], rtol=2e-3, atol=1e-4)
    assert all(map(torch.equal, found[0][1:], found[1][1:]))


def test_steps_past_the_end_of_a_ring(randn, relative_error, device, monkeypatch):
    """From an empty ring on, token by token: every slot is taken, read and taken again."""
    monkeypatch.setattr(kernels, "MANY", 4)  # of 2 x 2
    window, rotated = 16, 16
    inputs = drawn(randn, device, torch.float16, 2, 2, 2, 48, 48, window, [0, 0])
    rings, position = [torch.zeros_like(x) for x in inputs[3:5]], inputs[5]
    exact_rings = [x.double() for x in rings]
    for _ in range(2 * window + 3):
        q, k, v = (randn(*x.shape).to(device, x.dtype) for x in inputs[:3])
        angles = rotary_angles(position, rotated)
        wide = tuple(x.double() for x in angles)
        assert kernels._whole(q, k, v, *rings)
        y = kernels.attention_decode(q, k, v, *rings, position, scale=None, angles=angles, ring=True)
        exact = window_reference(q.double(), k.double(), v.double(), *exact_rings, position, angles=wide, count=False)
        assert relative_error(y, exact) < 2e-3
        position += 1
    assert all(relative_error(mine, exact) < 1e-3 for mine, exact in zip(rings, exact_rings, strict=True))


def test_which_rings_are_whole(randn, device):
    def whole(dtype, width, slots):
        return kernels._whole(*drawn(randn, device, dtype, 2, 2, 2, width, width, slots, [3, 4])[:5])

    assert whole(torch.float16, 64, 128)
    assert whole(torch.bfloat16, 112, 128)
    assert whole(torch.bfloat16, 48, 256)
    assert not whole(torch.bfloat16, 112, 400)  # too large
    assert not whole(torch.bfloat16, 128, 129)
    assert not whole(torch.bfloat16, 70, 16)
    assert not whole(torch.float32, 64, 16)


@pytest.mark.parametrize(("capability", "has"), [((7, 5), False), ((8, 0), True), ((8, 6), True), ((12, 0), True)])
def test_which_devices_copy_past_their_registers(monkeypatch, capability, has):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert kernels._has_copies.__wrapped__(torch.device("cuda", 0)) is has


def test_one_length_for_all_sequences(randn, relative_error, device):
    inputs = drawn(randn, device, torch.float32, 3, 1, 1, 16, 16, 20, [7, 7, 7])
    shared = [*copies(inputs[:5]), torch.tensor(7, dtype=torch.int32, device=device).expand(3)]
    y = kernels.attention_decode(*shared, scale=None, angles=None, ring=False)
    assert torch.equal(y, kernels.attention_decode(*copies(inputs), scale=None, angles=None, ring=False))


def test_a_full_cache_is_not_written_beyond(randn, device):
    wide = randn(2, 12, 1, 16).to(device, torch.float32)
    inputs = drawn(randn, device, torch.float32, 2, 1, 1, 16, 16, 8, [8, 8])
    inputs[3], inputs[4] = wide[:, 2:10], wide[:, 2:10].clone()
    before = wide.clone()
    kernels.attention_decode(*inputs, scale=None, angles=None, ring=False)
    assert torch.equal(wide, before)


def test_registration(randn, device):
    inputs = drawn(randn, device, torch.float32, 2, 2, 1, 16, 16, 20, [5, 6])
    torch.library.opcheck(kernels.operator, (*inputs, None, None, 0.3, False))
    torch.library.opcheck(kernels.operator, (*inputs, *rotary_angles(inputs[5], 8), 0.3, True))
