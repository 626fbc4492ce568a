"""Attention at asked tokens by the kernels against float64, beside the reference in the same dtypes."""

import pytest
import torch

from basedbench.kernels.asked_attention import reference
from basedbench.kernels.asked_attention_triton import attention, backward_operator, forward_operator, supported
from basedbench.kernels.packing import packing_of
from basedbench.kernels.slices import cut
from tests.kernels.triton.conftest import interpreted

FLOOR = {torch.float32: 5e-7, torch.float16: 3e-4, torch.bfloat16: 3e-3}
SHAPES = [(64, 4, 1, 16, 64), (100, 16, 2, 8, 48), (128, 64, 1, 24, 64), (70, 30, 1, 128, 128), (17, 1, 3, 16, 16)]


def inputs(randn, device, dtype, shape):
    """q and the projection that k and v are cut from, and positions in any order."""
    length, asked, heads, width, values = shape
    positions = torch.stack([torch.randperm(length, device=device)[:asked] for _ in range(3)])
    q = randn(3, asked, heads, width).to(device, dtype)
    return q, randn(3, length, heads * (width + values)).to(device, dtype), positions


def outputs_and_gradients(function, q, kv, positions, signs, shape, window, packing=None):
    _, _, heads, width, values = shape
    leaves = [x.detach().clone().requires_grad_() for x in (q, kv)]
    k, v = (part.unflatten(-1, (heads, -1)) for part in cut(leaves[1], [heads * width, heads * values]))
    if function is reference:
        y = reference(leaves[0], k, v, positions, window=window, packing=packing)
    else:
        y = attention(leaves[0], k, v, positions, window, None, packing)
    return [y.detach(), *torch.autograd.grad((y.double() * signs).sum(), leaves)]


@pytest.mark.parametrize("window", [None, 1, 8, 1024])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_outputs_and_gradients(randn, relative_error, device, dtypes, shape, window):
    for dtype in dtypes[:1] if interpreted and shape[0] > 64 else dtypes:
        q, kv, positions = inputs(randn, device, dtype, shape)
        signs = randn(*q.shape[:3], shape[-1]).sign().to(device).double()
        rest = positions, signs, shape, window
        exact = outputs_and_gradients(reference, q.double(), kv.double(), *rest)
        theirs = outputs_and_gradients(reference, q, kv, *rest)
        ours = outputs_and_gradients(attention, q, kv, *rest)
        for mine, other, true in zip(ours, theirs, exact, strict=True):
            assert mine.dtype == other.dtype
            assert relative_error(mine, true) <= 2 * relative_error(other, true) + FLOOR[dtype]


@pytest.mark.parametrize("window", [None, 8, 1024])
@pytest.mark.parametrize("shape", [(72, 4, 1, 16, 64), (104, 30, 2, 8, 48)], ids=str)
def test_packed_examples_are_each_alone(randn, relative_error, device, dtypes, poisoned, shape, window):
    """Keys of the next example, and gradients there, are not theirs."""
    lengths = [shape[0], shape[0] - 32, 40]
    packing = packing_of(lengths, device)
    for dtype in dtypes:
        q, kv, _ = inputs(randn, device, dtype, shape)
        positions = torch.stack([torch.randperm(length, device=device)[: shape[1]] for length in lengths])
        signs = randn(*q.shape[:3], shape[-1]).sign().to(device).double()
        rows, rest = packing.gather(kv), (shape, window)
        found = outputs_and_gradients(attention, q, rows, positions, signs, *rest, packing)
        for b, (start, length) in enumerate(zip(packing.starts_B.tolist(), lengths, strict=False)):
            alone = q[b : b + 1], rows[:, start : start + length], positions[b : b + 1]
            exact = outputs_and_gradients(reference, *(x.double() for x in alone[:2]), alone[2], signs[b], *rest)
            theirs = outputs_and_gradients(reference, *alone, signs[b], *rest)
            parts = found[0][b : b + 1], found[1][b : b + 1], found[2][:, start : start + length]
            for mine, other, true in zip(parts, theirs, exact, strict=True):
                assert relative_error(mine, true) <= 2 * relative_error(other, true) + FLOOR[dtype]
        whole = outputs_and_gradients(reference, q, rows, positions, signs, *rest, packing)
        for mine, other in zip(found, whole, strict=True):
            assert relative_error(mine, other) <= 4 * FLOOR[dtype]


@pytest.mark.parametrize("window", [1, 8, 1024])
@pytest.mark.parametrize("packed", [True, False])
def test_the_gradient_of_a_bias_of_all_three(randn, relative_error, device, dtypes, packed, window):
    """Sums over all tokens in float64: of dk they are zero, of dv those of dy."""
    shape = (40, 6, 2, 16, 48)
    _, asked, heads, width, values = shape
    packing = packing_of([40, 40, 40], device) if packed else None
    for dtype in dtypes:
        q, kv, positions = inputs(randn, device, dtype, shape)
        rows = packing.gather(kv) if packed else kv
        bias = randn(heads * (2 * width + values)).to(device, torch.float32).requires_grad_()
        signs = randn(3, asked, heads, values).sign().to(device)
        k, v = (part.unflatten(-1, (heads, -1)) for part in rows.split([heads * width, heads * values], -1))
        y = attention(q, k, v, positions, window, None, packing, bias)
        (mine,) = torch.autograd.grad(y, [bias], signs.to(dtype))
        exact, theirs = (
            outputs_and_gradients(reference, q.to(wide), kv.to(wide), positions, signs.double(), shape, window)[1:]
            for wide in (torch.float64, dtype)
        )
        due, other = (
            torch.cat([x.double().flatten(2).sum((0, 1)) for x in gradients]) for gradients in (exact, theirs)
        )
        assert mine.dtype == torch.float32
        assert not mine[heads * width : 2 * heads * width].any()
        assert relative_error(mine, due) <= 2 * relative_error(other, due) + FLOOR[dtype]


@pytest.mark.parametrize("window", [None, 30])
def test_many_queries_without_gradients(randn, relative_error, device, dtypes, window):
    """Several tiles of queries, the last one not full; with gradients they go to the reference."""
    shape = (150, 100, 2, 16, 32)
    for dtype in dtypes:
        q, kv, positions = inputs(randn, device, dtype, shape)
        k, v = (part.unflatten(-1, (2, -1)) for part in kv.split([32, 64], -1))
        assert supported(q, k, v)
        assert not supported(q.requires_grad_(), k, v)
        with torch.no_grad():
            found = attention(q, k, v, positions, window, None)
            exact = reference(q.double(), k.double(), v.double(), positions, window=window)
            other = reference(q, k, v, positions, window=window)
        assert relative_error(found, exact) <= 2 * relative_error(other, exact) + FLOOR[dtype]


@pytest.mark.parametrize("window", [None, 8, 40])
@pytest.mark.parametrize("shape", [(100, 16, 2, 8, 48), (90, 30, 1, 16, 64)], ids=str)
def test_every_element_is_written_and_the_same_again(randn, device, poisoned, window, shape):
    """All buffers start as NaN; queries are in the middle: keys before their windows and behind them get zeros."""
    _, asked, heads, width, values = shape
    q, kv, _ = inputs(randn, device, torch.float32, shape)
    positions = (50 + torch.randperm(asked, device=device)).expand(3, -1)
    k, v = (part.unflatten(-1, (heads, -1)) for part in kv.split([heads * width, heads * values], -1))
    dy, scale = randn(3, asked, heads, values).to(device, torch.float32), width**-0.5
    results = []
    for _ in range(2):
        y, sums = forward_operator(q, k, v, None, positions, None, window or 0, scale)
        dq, whole = torch.full_like(q, torch.nan), torch.full_like(kv, torch.nan)
        parts = whole.split([heads * width, heads * values], -1)
        dk, dv = (part.unflatten(-1, (heads, -1)) for part in parts)
        bias = torch.zeros(heads * (2 * width + values), device=device) if window else None
        d_bias = backward_operator(q, k, v, bias, y, dy, positions, None, sums, window or 0, scale, dq, dk, dv)
        results.append([y, sums, dq, whole, d_bias])
    first, again = results
    assert all(x.isfinite().all() for x in first)
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))
    earliest, latest = int(positions.min()), int(positions.max())
    seen_from = 0 if window is None else max(0, earliest - window)
    assert not first[3][:, :seen_from].any()
    assert not first[3][:, latest + 1 :].any()
    assert first[3][:, seen_from : latest + 1].any(-1).all()


@pytest.mark.parametrize("window", [None, 8])
@pytest.mark.parametrize("width", [4, 8, 16, 20, 24])
def test_strides_do_not_matter(randn, device, window, width):
    """Rows that are multiples of 16 numbers, of 16 bytes, and of neither, against contiguous keys and values."""
    for dtype in (torch.float32, torch.float16):
        q, kv, positions = inputs(randn, device, dtype, (40, 5, 2, width, 16))
        k, v = (part.unflatten(-1, (2, -1)) for part in kv.split([2 * width, 32], -1))
        found = attention(q, k, v, positions, window, None)
        assert torch.equal(found, attention(q, k.contiguous(), v.contiguous(), positions, window, None))
        turned = k.transpose(1, 3).contiguous().transpose(1, 3)
        assert torch.equal(found, attention(q, turned, v, positions, window, None))


def test_what_the_kernels_take(randn, device):
    """With gradients no more queries than one program has room for; float32's digits take more of it."""
    for dtype, width, asked, expected in (
        (torch.bfloat16, 128, 64, True),
        (torch.bfloat16, 128, 65, False),
        (torch.float32, 128, 32, True),
        (torch.float32, 128, 33, False),
        (torch.float32, 64, 64, True),
        (torch.float64, 16, 4, False),
        (torch.float32, 136, 4, False),
    ):
        q, k = (randn(2, rows, 1, width).to(device, dtype).requires_grad_() for rows in (asked, 70))
        assert supported(q, k, k) == expected


def test_registration(randn, device):
    q, kv, positions = inputs(randn, device, torch.float32, (17, 3, 1, 16, 16))
    k, v = (part.unflatten(-1, (1, -1)).clone().requires_grad_() for part in kv.split([16, 16], -1))
    for bias in (None, torch.zeros(48, device=device, requires_grad=True)):
        torch.library.opcheck(forward_operator, (q.requires_grad_(), k, v, bias, positions, None, 4, 0.25))
    y, sums = forward_operator(q, k, v, None, positions, None, 4, 0.25)
    q, k, v, y, sums = (x.detach() for x in (q, k, v, y, sums))
    room = [torch.empty_like(x) for x in (q, k, v)]
    for bias in (None, torch.zeros(48, device=device)):
        given = q, k, v, bias, y, torch.ones_like(y), positions, None, sums
        torch.library.opcheck(backward_operator, (*given, 4, 0.25, *room))
