"""A rough guess at a run's time, so that nobody starts a day's work by mistake."""

from basedbench.training.cases import RecallCase

# Microseconds per trained position, head and update included, at d_model 64 and a vocabulary of 8192.
CPU_US = {"mamba": 12.0, "mamba2": 6.0, "gla": 6.0, "retnet": 6.0, "rwkv4": 6.0}
CPU_DEFAULT_US = 2.0
GPU_US = {"mamba": 0.2, "mamba2": 0.05}
GPU_DEFAULT_US = 0.02


def estimated_seconds(case: RecallCase, device: str) -> float:
    """Seconds for one run, within a factor of two or three at best."""
    table, default = (CPU_US, CPU_DEFAULT_US) if device == "cpu" else (GPU_US, GPU_DEFAULT_US)
    positions = case.positions_per_epoch * case.train.epochs
    return positions * table.get(case.mixer, default) * case.d_model / 64 * 1e-6
