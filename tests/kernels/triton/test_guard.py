"""The guard itself: what it must refuse, and what it must let pass."""

import pytest
import torch
import triton
import triton.language as tl

from tests.kernels.triton.conftest import interpreted

pytestmark = pytest.mark.skipif(not interpreted, reason="only interpreted kernels are guarded")
BLOCK = 16


@triton.jit
def copy_kernel(x, y, first, count, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y + i, tl.load(x + first + i, mask=i < count), mask=i < count)


@triton.jit
def everyone_writes_kernel(y, BLOCK: tl.constexpr):
    tl.store(y + tl.arange(0, BLOCK), tl.program_id(0) + tl.zeros([BLOCK], tl.float32))


@triton.jit
def everyone_adds_kernel(y, BLOCK: tl.constexpr):
    tl.atomic_add(y + tl.arange(0, BLOCK), tl.full([BLOCK], 1.0, tl.float32))


@triton.jit
def passes_on_kernel(y, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y + BLOCK + i, tl.load(y + i))


def copy(x: torch.Tensor, y: torch.Tensor, first: int, count: int) -> None:
    copy_kernel[(triton.cdiv(count, BLOCK),)](x, y, first, count, BLOCK=BLOCK)


def test_what_lies_within_passes():
    x, y = torch.arange(40.0), torch.zeros(37)
    copy(x, y, 3, 37)
    assert torch.equal(x[3:], y)
    total = torch.zeros(BLOCK)
    everyone_adds_kernel[(3,)](total, BLOCK=BLOCK)
    assert torch.equal(total, torch.full((BLOCK,), 3.0))


@pytest.mark.parametrize(("first", "count", "words"), [(4, 37, "read of 4 bytes"), (-1, 5, "read"), (0, 38, "write")])
def test_one_element_beyond_is_refused(first, count, words):
    with pytest.raises(Exception, match=rf"test_guard.py:\d+ copy_kernel: {words}.* out of bounds"):
        copy(torch.zeros(40), torch.zeros(37), first, count)


def test_a_view_ends_where_it_ends():
    """Behind the view lies memory of the same storage: no illegal access, but not the kernel's."""
    with pytest.raises(Exception, match="out of bounds"):
        copy(torch.zeros(40)[:20], torch.zeros(37), 0, 21)


def test_programs_that_meet_are_refused():
    with pytest.raises(Exception, match="write by program 1 of what program 0 did a write to"):
        everyone_writes_kernel[(2,)](torch.zeros(BLOCK), BLOCK=BLOCK)
    with pytest.raises(Exception, match="read by program 1 of what program 0 did a write to"):
        passes_on_kernel[(2,)](torch.zeros(3 * BLOCK), BLOCK=BLOCK)


def test_new_memory_holds_nan():
    assert torch.empty(3).isnan().all()
    assert torch.zeros(2).new_empty(3, dtype=torch.int64).eq(torch.iinfo(torch.int64).max).all()
