"""Tests of the Triton kernels: on a GPU, or interpreted on the CPU (`make interpreted`).

Triton reads TRITON_INTERPRET once, when it is imported; so the rest of the suite, which runs in one process with
other users of Triton, leaves this folder out. Interpreted dots of bfloat16 are wrong: `interpreted_bfloat16` repairs
them where a kernel has no other dtype.
"""

import os
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from tests.kernels import interpreted_gluon, quick_interpreter

interpreted = os.environ.get("TRITON_INTERPRET") == "1"

if interpreted:
    quick_interpreter.hasten()
    interpreted_gluon.know_instructions()
    interpreted_gluon.know_dependents()
    scans = [f"selective_scan_{part}" for part in ("tiles", "copies", "sums", "ends", "forward", "backward")]
    walks = [f"ssd_walk_{part}" for part in ("tiles", "forward", "backward")]
    others = "linear_cross_entropy", "long_conv", "row_linear_ends", "row_linear", "sliding_window_step", "wkv4"
    interpreted_gluon.load([f"basedbench.kernels.{name}_gluon" for name in (*scans, *walks, *others)])

collect_ignore_glob = [] if interpreted or torch.cuda.is_available() else ["test_*.py"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """On a GPU every test of this folder is one of the `gpu` tests."""
    if not interpreted:
        for item in items:
            if item.path.parent == item.config.rootpath / "tests" / "kernels" / "triton":
                item.add_marker("gpu")


def errors(value: Tensor, exact: Tensor, along_length: bool) -> list[float]:
    """Of the whole and of the worst 64 rows or a few more: kernels that go wrong do so after the first chunks."""
    blocks = [(value, exact)]
    if along_length:
        count = max(1, value.shape[1] // 64)
        blocks += zip(value.tensor_split(count, 1), exact.tensor_split(count, 1), strict=True)
    relative = [((a.double() - b).norm() / b.norm().clamp_min(1e-3)).item() for a, b in blocks]
    return [relative[0], max(relative)]


@pytest.fixture(scope="session")
def device() -> torch.device:
    return torch.device("cpu" if interpreted else "cuda")


@pytest.fixture(scope="session")
def dtypes() -> tuple[torch.dtype, ...]:
    """The dtypes the kernels can be tested in here."""
    return (torch.float32, torch.float16) if interpreted else (torch.float32, torch.float16, torch.bfloat16)


@pytest.fixture
def tensor_maps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels find their tensors: interpreted by a stand-in, on a GPU only by Hopper."""
    if interpreted:
        from basedbench.kernels import linear_cross_entropy_pairs, row_linear_launch

        for launches in (linear_cross_entropy_pairs, row_linear_launch):
            monkeypatch.setattr(launches, "tensor_map", lambda x, *more: interpreted_gluon.Map(x, *more))
    elif torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("written for Hopper")


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Floating-point buffers from `new_empty` start as NaN: an element that nobody writes shows."""
    new_empty = torch.Tensor.new_empty

    def filled(self: torch.Tensor, *size: int, **options: object) -> torch.Tensor:
        buffer = new_empty(self, *size, **options)
        return buffer.fill_(torch.nan) if buffer.is_floating_point() else buffer

    monkeypatch.setattr(torch.Tensor, "new_empty", filled)


@pytest.fixture(scope="session", autouse=True)
def memory_is_guarded() -> Iterator[None]:
    """Interpreted, every kernel's memory accesses are checked."""
    if not interpreted:
        yield
        return
    from tests.kernels.guard import guarded

    with guarded():
        yield
