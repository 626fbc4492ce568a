"""What the GPU was doing around a round: clocks, power, temperature, and whether it was held back.

Throttled rounds are marked, never discarded: on a card that always throttles nothing would be left.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import pynvml

# The bits of NVML's clock event reasons that mean less speed than the card could give, by what a reader understands.
THROTTLE_BITS = {
    0x04: "power cap",
    0x08: "hardware slowdown",
    0x20: "temperature",
    0x40: "temperature (hardware)",
    0x80: "power brake",
}


@dataclass(frozen=True)
class Reading:
    """The state of the card at one moment."""

    clock_mhz: float
    memory_clock_mhz: float
    power_w: float
    temperature_c: float
    throttle_bits: int


class Telemetry:
    """Reads one GPU through NVML; readings are None on a CPU or where NVML cannot be asked."""

    def __init__(self, device: str) -> None:
        self.handle: Any = None
        if device == "cpu":
            return
        import torch

        try:
            pynvml.nvmlInit()
            uuid = str(torch.cuda.get_device_properties(device).uuid)
            self.handle = pynvml.nvmlDeviceGetHandleByUUID(uuid if uuid.startswith("GPU-") else f"GPU-{uuid}")
        except (AttributeError, pynvml.NVMLError):  # a torch that does not tell, or a system without NVML
            self.handle = None

    def read(self) -> Reading | None:
        """The card's state now."""
        if self.handle is None:
            return None
        try:
            return Reading(
                pynvml.nvmlDeviceGetClockInfo(self.handle, pynvml.NVML_CLOCK_SM),
                pynvml.nvmlDeviceGetClockInfo(self.handle, pynvml.NVML_CLOCK_MEM),
                pynvml.nvmlDeviceGetPowerUsage(self.handle) / 1e3,
                pynvml.nvmlDeviceGetTemperature(self.handle, pynvml.NVML_TEMPERATURE_GPU),
                pynvml.nvmlDeviceGetCurrentClocksThrottleReasons(self.handle),
            )
        except pynvml.NVMLError:
            return None


def summary(readings: Sequence[Reading | None]) -> dict[str, Any]:
    """The columns of a row: means over the readings, the highest temperature, every reason for throttling seen."""
    seen = [one for one in readings if one is not None]
    if not seen:
        return {}
    bits = 0
    for one in seen:
        bits |= one.throttle_bits
    reasons = [name for bit, name in THROTTLE_BITS.items() if bits & bit]
    return {
        "clock_mhz": fmean(one.clock_mhz for one in seen),
        "memory_clock_mhz": fmean(one.memory_clock_mhz for one in seen),
        "power_w": fmean(one.power_w for one in seen),
        "temperature_c": max(one.temperature_c for one in seen),
        "throttled": bool(reasons),
        "throttle_reason": ", ".join(reasons) or None,
    }
