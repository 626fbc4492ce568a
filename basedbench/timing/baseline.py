"""The row of another contender at the same place."""

from collections.abc import Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]
_PLACE = ("suite", "mode", "dtype", "batch", "length", "heads", "cache", "device", "device_name")
_SHAPE = ("key_dim", "value_dim", "config")


def counterpart(row: Row, name: str, rows: Sequence[Row]) -> Row | None:
    """The row of the contender `name`, or `operator/contender`, at the place of `row`; None if there is none.

    One of the same operator has the same widths and options; one of another operator only the same value width.
    """
    operator, _, contender = name.rpartition("/")
    operator = operator or row["operator"]
    same = (*_PLACE, *(_SHAPE if operator == row["operator"] else ("value_dim",)))
    for other in rows:
        named = (other["operator"], other["contender"]) == (operator, contender)
        if named and all(other[column] == row[column] for column in same):
            return other
    return None


def speed_up(row: Row, rows: Sequence[Row]) -> float | None:
    """How many times as fast as its baseline a row is; None where one of the two has no time."""
    other = counterpart(row, row["baseline"], rows)
    if other is None or not other["median_ms"] or not row["median_ms"]:
        return None
    return float(other["median_ms"] / row["median_ms"])
