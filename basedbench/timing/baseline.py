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
    the same logits. If it was timed with several key widths or options, the nearest key width counts, then the options
    that agree most, then the newest row: `rows` are oldest first.
    """
    own = subject(row)
    wanted, _, contender = name.rpartition("/")
    wanted = wanted or own
    same = (*_PLACE, *(_SHAPE if wanted == own else ("value_dim",)))
    found = [
        other
        for other in reversed(rows)
        if (subject(other), other["contender"]) == (wanted, contender)
        and all(other[column] == row[column] for column in same)
        and _options(other).get("logits") == _options(row).get("logits")
    ]
    return min(found, key=lambda other: _distance(other, row), default=None)


def _distance(one: Row, other: Row) -> tuple[int, int]:
    """By how much two key widths differ, and how many options."""
    options, others = _options(one), _options(other)
    unlike = [name for name in options.keys() | others.keys() if options.get(name) != others.get(name)]
    return abs((one["key_dim"] or 0) - (other["key_dim"] or 0)), len(unlike)


def _options(row: Row) -> dict[str, Any]:
    config: dict[str, Any] = json.loads(row["config"] or "{}")
    return config


def speed_up(row: Row, rows: Sequence[Row]) -> float | None:
    """How many times as fast as its baseline a row is; None where one of the two has no time."""
    other = counterpart(row, row["baseline"], rows) if row["baseline"] else None
    if other is None or not other["median_ms"] or not row["median_ms"]:
        return None
    return float(other["median_ms"] / row["median_ms"])
