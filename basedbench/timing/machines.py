"""Whether two rows come from machines that can be compared, and what else differs between them."""

import json
from collections.abc import Mapping
from typing import Any

# What makes a machine, for results on each kind of device; the rest of a fingerprint is software.
_HARDWARE = {
    "cpu": ("cpu", "cpu_usable"),
    "cuda": ("gpu", "gpu_memory_bytes", "gpu_processors", "compute_capability"),
}
_SOFTWARE = ("python", "torch", "cuda", "cudnn", "triton", "driver", "peers", "environment")


def hardware_difference(a: Mapping[str, Any], b: Mapping[str, Any]) -> str | None:
    """What differs between the machines of two rows, in words; None if nothing does."""
    if a["device"] != b["device"]:
        return f"device: {a['device']} against {b['device']}"
    return _difference(a, b, _HARDWARE.get(a["device"] or "cpu", _HARDWARE["cuda"]))


def software_difference(a: Mapping[str, Any], b: Mapping[str, Any]) -> str | None:
    """What differs between the software of two rows besides basedbench itself."""
    return _difference(a, b, _SOFTWARE)


def _difference(a: Mapping[str, Any], b: Mapping[str, Any], names: tuple[str, ...]) -> str | None:
    one, other = (json.loads(row["fingerprint"] or "{}") for row in (a, b))
    found = [
        f"{name}: {_text(one.get(name))} against {_text(other.get(name))}"
        for name in names
        if one.get(name) != other.get(name)
    ]
    return "; ".join(found) or None


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key}={item}" for key, item in value.items()) or "none"
    return "none" if value is None else str(value)
