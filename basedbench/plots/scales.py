"""Axes that read at a glance: bytes in KiB and MiB, counts in k and M, few ticks, names for columns."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # tables need its texts, too, and no matplotlib
    from matplotlib.axis import Axis

_TITLES = {
    "state_bytes": "State per sequence (measured, fp32)",
    "state_bytes_zoology": "State per sequence (zoology's count)",
    "state_bytes_paper": "State per sequence (the paper's count)",
    "parameters": "Parameters",
    "train_s": "Training time (s)",
    "learning_rate": "Learning rate",
    "accuracy": "Recall accuracy",
    "accuracy_best": "Recall accuracy (best epoch)",
    "loss": "Training loss",
    "validation_accuracy": "Recall accuracy (validation)",
    "time_per_token": "Time per token",
    "tokens_per_s": "Tokens per second",
    "median_ms": "Time per call (ms)",
}
_BYTES = ("B", "KiB", "MiB", "GiB", "TiB")
_TIMES = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"), (1e-9, "ns"), (1e-12, "ps"))
_COUNTS = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def column_title(name: str) -> str:
    """What an axis says of a column."""
    if name.startswith("accuracy@"):
        length, _, pairs = name.removeprefix("accuracy@").rpartition("x")
        return f"Recall accuracy, {pairs} pairs" + (f", length {length}" if length else "")
    plain = name.replace("_per_s", " per second").replace("_", " ")
    return _TITLES.get(name, plain[:1].upper() + plain[1:])


def short_title(name: str) -> str:
    """What a table's heading says of a column: `state_bytes` -> `state`."""
    return name.replace("_bytes", "").replace("_", " ")


def is_bytes(name: str) -> bool:
    """Whether a column counts bytes."""
    return "bytes" in name.split("_")


def quantity(value: float, name: str) -> str:
    """A number of a column as text: `39.6 KiB`, `1.05M`, `0.0316`."""
    if not math.isfinite(value):
        return "-"
    if is_bytes(name):
        power = max(0, min(int(math.log2(value) // 10), len(_BYTES) - 1)) if value > 0 else 0
        return f"{_three_digits(value / 1024**power)} {_BYTES[power]}"
    if name == "time_per_token":
        scale, unit = next(((size, unit) for size, unit in _TIMES if value >= size * (1 - 1e-9)), _TIMES[-1])
        return f"{_three_digits(value / scale)} {unit}"
    scale, unit = next(((size, unit) for size, unit in _COUNTS if abs(value) >= size), (1.0, ""))
    return _three_digits(value / scale) + unit


def count_text(value: float) -> str:
    """A length or batch as text: `512`, `16k` for 16,384."""
    return f"{value / 1024:.0f}k" if value >= 1024 and value % 1024 == 0 else f"{value:.0f}"


def _three_digits(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


_STEPS = {  # within a power of the base, finest first
    10: ([step / 2 for step in range(2, 20)], range(1, 10), (1, 2, 3, 5, 7), (1, 2, 5), (1, 3)),
    2: ((1, 1.25, 1.5, 1.75), (1, 1.5)),
}
_SHORT = {10: 100, 2: 8}  # a range below this factor has fewer powers than one would like
_FINER = {10: (), 2: ([1 + step / 8 for step in range(8)],)}  # where none of these may lie in a range
_NARROW = 2  # a range below this factor, such as that about a single point, looks even: so its ticks are, too


def log_ticks(low: float, high: float, base: int, most: int) -> list[float]:
    """At most `most` (>= 2) ticks between low and high: powers of the base (2 or 10) at even steps.

    In a short range the powers are divided, as finely as it takes to have two; in a narrow one of base 10 ticks are at
    even distances.
    """
    if base == 10 and high / low < _NARROW and (even := _even_ticks(low, high, most)):
        return even
    first, last = math.ceil(math.log(low, base) - 1e-9), math.floor(math.log(high, base) + 1e-9)
    for steps in (*_STEPS[base], *_FINER[base]) if high / low < _SHORT[base] else ():
        fine = [step * float(base) ** power for power in range(first - 1, last + 1) for step in steps]
        fine = [tick for tick in fine if low * (1 - 1e-9) <= tick <= high * (1 + 1e-9)]
        if 2 <= len(fine) <= most:
            return fine
    stride = max(1, math.ceil((last - first + 1) / most))
    return [float(base) ** power for power in range(first, last + 1) if power % stride == 0]


def _even_ticks(low: float, high: float, most: int) -> list[float]:
    """2 to `most` multiples of 1, 2 or 5 times a power of ten, as many as there can be; none if that is not to be."""
    power = 10.0 ** math.floor(math.log10((high - low) / most))
    for step in (power * times for times in (1, 2, 5, 10, 20)):
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        if 2 <= last - first + 1 <= most:
            return [count * step for count in range(first, last + 1)]
    return []


def log_axis(axis: "Axis", low: float, high: float, name: str, most: int = 8) -> None:
    """Make an axis logarithmic from low to high; ticks in the column's unit: powers of two for bytes, else of ten."""
    base = 2 if is_bytes(name) else 10
    ticks = log_ticks(low, high, base, most)
    horizontal = axis is axis.axes.xaxis
    axis.axes.set(**({"xscale": "log", "xlim": (low, high)} if horizontal else {"yscale": "log", "ylim": (low, high)}))
    powers = log_ticks(low, high, 2, most=100) if base == 2 else ()
    set_ticks(axis, ticks, [quantity(tick, name) for tick in ticks], minor=powers)


def set_ticks(axis: "Axis", ticks: Sequence[float], labels: Sequence[str], minor: Sequence[float] = ()) -> None:
    """Exactly these ticks, and unlabelled minor ones."""
    from matplotlib.ticker import FixedFormatter, FixedLocator, NullFormatter

    axis.set_major_locator(FixedLocator(ticks))
    axis.set_major_formatter(FixedFormatter(labels))
    axis.set_minor_locator(FixedLocator([tick for tick in minor if tick not in ticks]))
    axis.set_minor_formatter(NullFormatter())
