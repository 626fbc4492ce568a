"""States in bfloat16 as the decode steps' kernels keep them: the same bits as `rounding` has."""

import pytest
import torch
import triton
import triton.language as tl

from basedbench.kernels.rounding import store
from basedbench.kernels.rounding_triton import counted, stored
from basedbench.kernels.selective_scan import step_reference as scan_reference
from basedbench.kernels.selective_scan_step_triton import step as scan_step
from basedbench.kernels.ssd import step_reference as ssd_reference
from basedbench.kernels.ssd_step_triton import step as ssd_step
from basedbench.kernels.taylor_attention import step_reference as taylor_reference
from basedbench.kernels.taylor_features import feature_count
from basedbench.kernels.taylor_step_triton import step as taylor_step


@triton.jit
def stored_kernel(x, y, count, ROWS: tl.constexpr, COLUMNS: tl.constexpr, BLOCK: tl.constexpr):
    """A sequence for each program, in tiles of BLOCK columns."""
    row = tl.arange(0, ROWS)
    for first in tl.static_range(0, COLUMNS, BLOCK):
        column = first + tl.arange(0, BLOCK)
        place = (tl.program_id(0) * ROWS + row)[:, None] * COLUMNS + column[None, :]
        inside = (column < COLUMNS)[None, :]
        given = tl.load(x + place, mask=inside, other=0.0)
        tokens = counted(count, tl.program_id(0), True)
        kept = stored(given, row, first // 2, tokens, COLUMNS, y.dtype.element_ty)
        tl.store(y + place, kept, mask=inside)


@pytest.mark.parametrize("columns", [64, 45])
def test_the_same_bits(device, columns):
    """Of numbers of any size, and of NaN as sums have it."""
    bits = torch.randint(-(2**31), 2**31, (16, 16, columns), generator=torch.Generator().manual_seed(0))
    x, count_B = bits.to(torch.int32).view(torch.float32), torch.arange(16, dtype=torch.int32) * 1000
    x[x.isnan()] = 1.5
    x[0, 0, :4] = torch.tensor([float("inf"), float("nan"), 0.0, -1.0])
    x.view(torch.int32)[0, 1, :2] = 0x7FFFFFFF  # a GPU's
    found, expected = torch.empty(x.shape, dtype=torch.bfloat16, device=device), torch.empty(x.shape).bfloat16()
    stored_kernel[(16,)](x.to(device), found, count_B.to(device), ROWS=16, COLUMNS=columns, BLOCK=32)
    store(expected, x, count_B)
    torch.testing.assert_close(found.cpu(), expected, rtol=0, atol=0, equal_nan=True)


def compare(found, expected):
    """No number further off than a neighbour: a last bit of a kernel's sum may differ, and so the chance it takes."""
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), expected.float(), rtol=2**-7, atol=1e-30)


def test_taylor_attention(randn, device):
    q, k, v = (randn(2, 3, width).to(device, torch.float32) for width in (8, 8, 48))
    state = randn(2, 3, feature_count(8), 48).to(device, torch.bfloat16)
    sums = 1 + randn(2, 3, feature_count(8)).abs().to(device, torch.float32)
    expected, expected_sums = state.clone(), sums.clone()
    count_B = torch.tensor([7, 1000], dtype=torch.int32, device=device)
    y = taylor_step(q, k, v, state, sums, count_B)
    expected_y = taylor_reference(q, k, v, expected, expected_sums, count_B=count_B)
    torch.testing.assert_close(y, expected_y, rtol=1e-4, atol=1e-4)
    compare(state, expected)


def test_selective_scan(randn, device):
    u, delta, z = (randn(3, 40).to(device, torch.float32) for _ in range(3))
    A, B, C = -randn(40, 16).abs().to(device), randn(3, 16).to(device), randn(3, 16).to(device)
    A, B, C = A.float(), B.float(), C.float()
    state = randn(3, 40, 16).to(device, torch.bfloat16)
    expected = state.clone()
    y = scan_step(u, delta, A, B, C, state, None, z, None, True)
    expected_y = scan_reference(u, delta, A, B, C, expected, None, z, None, True)
    torch.testing.assert_close(y, expected_y, rtol=1e-4, atol=1e-4)
    compare(state, expected)


def test_ssd(randn, device):
    x, dt = randn(3, 4, 32).to(device, torch.float32), randn(3, 4).to(device, torch.float32)
    A, B, C = -randn(4).abs().to(device), randn(3, 2, 16).to(device), randn(3, 2, 16).to(device)
    A, B, C = A.float(), B.float(), C.float()
    state = randn(3, 4, 32, 16).to(device, torch.bfloat16)
    expected = state.clone()
    y = ssd_step(x, dt, A, B, C, state, None, None, None, True)
    expected_y = ssd_reference(x, dt, A, B, C, expected, dt_softplus=True)
    torch.testing.assert_close(y, expected_y, rtol=1e-4, atol=1e-4)
    compare(state, expected)
