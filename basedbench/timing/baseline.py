"""A row's baseline: the row of another contender at the same place."""

from collections.abc import Mapping, Sequence
from typing import Any

_PLACE = ("suite", "mode", "dtype", "batch", "length", "heads", "cache", "device")
_SHAPE = ("key_dim", "value_dim", "config")


def speed_up(row: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> float | None:
    """How many times as fast as its baseline a row is; None where one of the two has no time.

    A baseline of the same operator has the same widths and options; one of another operator only the same value width.
    """
    operator, _, contender = row["baseline"].partition("/")
    same = _SHAPE if operator == row["operator"] else ("value_dim",)
    for other in rows:
        named = (other["operator"], other["contender"]) == (operator, contender)
        if named and all(other[name] == row[name] for name in (*_PLACE, *same)):
            return other["median_ms"] / row["median_ms"] if other["median_ms"] and row["median_ms"] else None
    return None
