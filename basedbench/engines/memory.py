"""How much memory is free right now, asked of the system or the driver: nothing is allocated, no context is made."""

import os
from pathlib import Path
from typing import Any

from basedbench.timing.waking import index_of

# Limits of a container or a batch job, by the version of control groups: what it may use, what it uses, and the key of
# what of that is only cached files.
_GROUPS = (
    ("sys/fs/cgroup/memory.max", "sys/fs/cgroup/memory.current", "inactive_file"),
    ("sys/fs/cgroup/memory/memory.limit_in_bytes", "sys/fs/cgroup/memory/memory.usage_in_bytes", "total_inactive_file"),
)


def free_memory(device: str, root: Path = Path("/")) -> int | None:
    """Bytes that a device has free, the CPU's without swapping; None where nothing answers."""
    if device != "cpu":
        return _of_gpu(device)
    known = [size for size in (_of_system(root), *(_of_group(root, *group) for group in _GROUPS)) if size is not None]
    return min(known, default=None)


def _of_gpu(device: str) -> int | None:
    """As the driver says: PyTorch would make a CUDA context in this process."""
    import pynvml

    index = index_of(device)
    shown = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    name = shown[index] if index < len(shown) else str(index)  # NVML counts the cards that are hidden from us, too
    by_name = pynvml.nvmlDeviceGetHandleByUUID
    try:
        pynvml.nvmlInit()
        handle: Any = pynvml.nvmlDeviceGetHandleByIndex(int(name)) if name.isdigit() else by_name(name)
        return int(pynvml.nvmlDeviceGetMemoryInfo(handle).free)
    except pynvml.NVMLError:
        return None


def _of_system(root: Path) -> int | None:
    """What Linux says programs could still take; elsewhere all there is, so that at least no more than that is."""
    for line in _read(root / "proc/meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None


def _of_group(root: Path, limit: str, usage: str, cached: str) -> int | None:
    """What a control group leaves of its limit, if it has one."""
    allowed, used = _read(root / limit).strip(), _read(root / usage).strip()
    if not (allowed.isdigit() and used.isdigit()):
        return None
    words = _read((root / usage).with_name("memory.stat")).split()
    files = dict(zip(words[::2], words[1::2], strict=False)).get(cached, "0")
    return max(0, int(allowed) - int(used) + int(files))


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
