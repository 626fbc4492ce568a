"""How much memory is free, as the system and the driver say."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from basedbench.engines.memory import free_memory

GIB = 2**30
V2 = "sys/fs/cgroup/memory.max", "sys/fs/cgroup/memory.current", "sys/fs/cgroup/memory.stat"
V1 = tuple(f"sys/fs/cgroup/memory/memory.{name}" for name in ("limit_in_bytes", "usage_in_bytes", "stat"))


def _system(root: Path, files: dict[str, str]) -> Path:
    for name, text in ({"proc/meminfo": f"MemTotal: {16 * 2**20} kB\nMemAvailable: {8 * 2**20} kB\n"} | files).items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.mark.parametrize(
    ("files", "gib"),
    [
        ({}, 8),
        (dict(zip(V2, ("max\n", f"{GIB}\n", "inactive_file 5\n"), strict=True)), 8),
        (dict(zip(V2, (f"{4 * GIB}\n", f"{3 * GIB}\n", f"anon {GIB}\ninactive_file {GIB}\n"), strict=True)), 2),
        (dict(zip(V2, (f"{4 * GIB}\n", f"{5 * GIB}\n", ""), strict=True)), 0),
        (dict(zip(V1, (f"{2**63 - 4096}\n", f"{GIB}\n", ""), strict=True)), 8),
        (dict(zip(V1, (f"{6 * GIB}\n", f"{GIB}\n", "total_inactive_file 0\n"), strict=True)), 5),
    ],
)
def test_a_cpu_has_what_linux_and_its_control_group_leave(tmp_path: Path, files: dict[str, str], gib: int) -> None:
    assert free_memory("cpu", _system(tmp_path, files)) == gib * GIB


def test_elsewhere_all_there_is(tmp_path: Path) -> None:
    whole, here = free_memory("cpu", tmp_path), free_memory("cpu")
    assert whole is not None
    assert here is not None
    assert 0 < here <= whole


@pytest.mark.parametrize(
    ("visible", "asked"), [(None, 1), ("", 1), ("2,3", 3), ("GPU-a, GPU-b", "GPU-b"), ("5", 1), ("MIG-x,0", 0)]
)
def test_memory_is_asked_of_the_card_that_cuda_means(
    monkeypatch: pytest.MonkeyPatch, visible: str | None, asked: int | str
) -> None:
    pynvml = pytest.importorskip("pynvml")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr(pynvml, "nvmlInit", lambda: None)
    for ask in ("nvmlDeviceGetHandleByIndex", "nvmlDeviceGetHandleByUUID"):
        monkeypatch.setattr(pynvml, ask, lambda name: name)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetMemoryInfo", lambda handle: SimpleNamespace(free={asked: 42}[handle]))
    assert free_memory("cuda:1") == 42
