"""The row of another contender at the same place."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]
_PLACE = ("suite", "mode", "dtype", "batch", "length", "heads", "cache", "device", "device_name", "threads")
_SHAPE = ("key_dim", "value_dim", "config")


def subject(row: Row) -> str:
    """The operator or the whole model that a row is of."""
    return str(row["operator"] or row["model"])


def counterpart(row: Row, name: str, rows: Sequence[Row]) -> Row | None:
    """The row of the contender `name`, or `subject/contender`, at the place of `row`; None if there is none.

    One of the same operator or model has the same widths and options; one of another only the same value width, and
    the same logits.
    """
    own = subject(row)
    wanted, _, contender = name.rpartition("/")
    wanted = wanted or own
    same = (*_PLACE, *(_SHAPE if wanted == own else ("value_dim",)))
    for other in rows:
        named = (subject(other), other["contender"]) == (wanted, contender)
        if named and all(other[column] == row[column] for column in same) and _logits(other) == _logits(row):
            return other
    return None


def _logits(row: Row) -> Any:
    return json.loads(row["config"] or "{}").get("logits")


def speed_up(row: Row, rows: Sequence[Row]) -> float | None:
    """How many times as fast as its baseline a row is; None where one of the two has no time."""
    other = counterpart(row, row["baseline"], rows) if row["baseline"] else None
    if other is None or not other["median_ms"] or not row["median_ms"]:
        return None
    return float(other["median_ms"] / row["median_ms"])
