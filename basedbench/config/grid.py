"""Grids: a mapping of names to a value, a list of values or a series becomes a list of settings."""

import math
from collections.abc import Mapping
from itertools import product
from typing import Any

SERIES = ("logspace", "powers_of_two")
MOST_VALUES, MOST_EXPONENT, MOST_SETTINGS = 10_000, 300, 100_000
EXACT = 2**53  # whole numbers below it are what they seem


def expand_grid(grid: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every combination of a grid's values; the last key varies fastest.

    A value is a scalar, a list, `{logspace: [low, high, count]}` (exponents of ten) or `{powers_of_two: [low, high]}`.
    ValueError if a series is malformed, a list is empty, or there are too many.
    """
    axes = {name: axis_values(name, value) for name, value in grid.items()}
    count = math.prod(map(len, axes.values()))
    if count > MOST_SETTINGS:
        raise ValueError(f"its lists make {count:,} combinations; at most {MOST_SETTINGS:,} are possible")
    return [dict(zip(axes, values, strict=True)) for values in product(*axes.values())]


def axis_values(name: str, value: Any) -> list[Any]:
    """The values of one axis of a grid, in order."""
    if isinstance(value, Mapping):
        return _series(name, value)
    values = list(value) if isinstance(value, list | tuple) else [value]
    if not values:
        raise ValueError(f"{name}: the list is empty; give at least one value")
    return values


def _series(name: str, series: Mapping[str, Any]) -> list[Any]:
    if len(series) != 1 or next(iter(series)) not in SERIES:
        raise ValueError(f"{name}: a series is one of {', '.join(SERIES)}, such as {{logspace: [-3, -1.5, 4]}}")
    kind, arguments = next(iter(series.items()))
    if isinstance(arguments, list | tuple) and any(isinstance(value, bool) for value in arguments):
        raise ValueError(f"{name}: {kind} takes numbers, got {arguments!r}")
    return _logspace(name, arguments) if kind == "logspace" else _powers_of_two(name, arguments)


def _logspace(name: str, arguments: Any) -> list[float | int]:
    match arguments:
        case [int() | float() as low, int() | float() as high, int() as count] if (
            1 <= count <= MOST_VALUES and max(abs(low), abs(high)) <= MOST_EXPONENT
        ):
            if name.endswith("learning_rates") and max(low, high) > 0:
                raise ValueError(
                    f"{name}: logspace takes exponents of ten, -3 for 0.001; {arguments!r} would begin at {10**low:g}"
                )
            step = (high - low) / max(count - 1, 1)
            # Six digits: the same learning rate whatever the series that it came from.
            values = [float(f"{10 ** (low + step * i):.6g}") for i in range(count)]
            return [int(value) if value.is_integer() and value < EXACT else value for value in values]
    raise ValueError(
        f"{name}: logspace takes [low exponent, high exponent, count up to {MOST_VALUES}], got {arguments!r}"
    )


def _powers_of_two(name: str, arguments: Any) -> list[int]:
    match arguments:
        case [int() as low, int() as high] if 1 <= low <= high and _is_power(low) and _is_power(high):
            return [2**i for i in range(int(math.log2(low)), int(math.log2(high)) + 1)]
    raise ValueError(f"{name}: powers_of_two takes [low, high], both powers of two, got {arguments!r}")


def _is_power(value: int) -> bool:
    return value & (value - 1) == 0
