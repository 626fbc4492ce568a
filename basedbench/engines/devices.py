"""Which devices a sweep runs on."""

import os
from collections.abc import Sequence

from basedbench.errors import UserError


def resolve_devices(name: str) -> list[str]:
    """The devices that `--device` means: "auto" (every GPU, else the CPU), "cpu", "cuda" (every GPU), "cuda:1".

    UserError for a name that means nothing here.
    """
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    gpus = [f"cuda:{index}" for index in range(count)]
    if name == "auto":
        return gpus or ["cpu"]
    if name == "cpu":
        return ["cpu"]
    if name != "cuda" and not (name.startswith("cuda:") and name[5:].isdigit()):
        raise UserError(f"unknown device {name!r}; valid: auto, cpu, cuda, cuda:0, cuda:1, ...")
    if not gpus:
        raise UserError(f"device {name!r} was asked for, but PyTorch sees no CUDA GPU here; try --device cpu.")
    if name == "cuda":
        return gpus
    if name not in gpus:
        raise UserError(f"there is no device {name!r} here; valid: {', '.join(gpus)}.")
    return [name]


def default_precision(devices: Sequence[str]) -> str:
    """What `precision: auto` means: bf16 if all devices are GPUs with bfloat16 products, else fp32."""
    import torch

    able = all(device != "cpu" and torch.cuda.get_device_capability(device) >= (8, 0) for device in devices)
    return "bf16" if able else "fp32"


def cores() -> int:
    """The CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def check_threads(count: int | None) -> None:
    """UserError for more CPU threads than cores: they would wait for each other, or not be had at all."""
    if count is not None and count > cores():
        raise UserError(
            f"threads: {count} were asked for, and this process may use {cores()} cores; give at most that."
        )
