"""Numbers by name: a numeric column of a frame of recall rows, or the accuracy of one test slice.

`accuracy@256` is the slice with 256 key-value pairs (the longest, if several have as many), `accuracy@1024x256` the
slice of length 1024 with 256 pairs. Whether larger or smaller is better follows from the name.
"""

import re

import pandas as pd

from basedbench.errors import UserError, nearest

_SLICE = re.compile(r"accuracy@(?:(?P<length>\d+)x)?(?P<pairs>\d+)")
_ACCURACY = re.compile(r"(validation_)?accuracy.*")
_RATE = re.compile(r".*_per_s|.*_fraction")
_FROM_THROUGHPUT = re.compile(r"(?P<mode>prefill|decode|generation)_.*|.*tokens_per_s|median_ms")


def larger_is_better(name: str) -> bool:
    """True for accuracies, rates (`_per_s`) and fractions of a ceiling; False for costs: bytes, seconds, parameters."""
    return bool(_ACCURACY.fullmatch(name) or _RATE.fullmatch(name))


def slices(frame: pd.DataFrame) -> list[tuple[int, int]]:
    """The test slices in the rows as (length, pairs), ordered by pairs, then length."""
    names = {name for row in _slice_maps(frame) for name in row}
    pairs_of = [tuple(int(part) for part in name.split("x")) for name in names]
    return sorted(((length, pairs) for length, pairs in pairs_of), key=lambda slice_: slice_[::-1])


def numbers(frame: pd.DataFrame, name: str) -> pd.Series:
    """One number per row (float64, NaN where a row has none), on the frame's index.

    Raises UserError for a name that is neither a numeric column nor a slice of the rows.
    """
    match = _SLICE.fullmatch(name)
    if match and name not in frame.columns:
        return _slice_accuracy(frame, name, match["length"], int(match["pairs"]))
    if name not in frame.columns:
        raise UserError(_unknown(frame, name))
    if not _is_numeric(frame[name]):
        raise UserError(f"column {name!r} does not hold numbers: {nearest(name, numeric_columns(frame))}")
    return pd.to_numeric(frame[name], errors="coerce").astype("float64")


def slice_of(frame: pd.DataFrame, name: str) -> str | None:
    """`256x64` for `accuracy@64`, the longest slice of the rows with as many pairs; None for another kind of name.

    Raises UserError if no row was tested on such a slice.
    """
    match = _SLICE.fullmatch(name)
    return _slice(frame, name, match["length"], int(match["pairs"])) if match else None


def check_accuracy(frame: pd.DataFrame, name: str) -> None:
    """Raise UserError unless `name` is an accuracy of these rows."""
    numbers(frame, name)
    if not _ACCURACY.fullmatch(name):
        known = [column for column in numeric_columns(frame) if _ACCURACY.fullmatch(column)]
        raise UserError(f"{name!r} is no accuracy: {nearest(name, [*known, 'accuracy@K', 'accuracy@LxK'])}")


def numeric_columns(frame: pd.DataFrame) -> list[str]:
    """The columns that can be an axis."""
    return [name for name in frame.columns if _is_numeric(frame[name])]


def _is_numeric(column: pd.Series) -> bool:
    return pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column)


def _slice_maps(frame: pd.DataFrame) -> list[dict[str, float]]:
    if "accuracy_by_slice" not in frame.columns:
        return []
    return [row if isinstance(row, dict) else {} for row in frame["accuracy_by_slice"]]


def _slice_accuracy(frame: pd.DataFrame, name: str, length: str | None, pairs: int) -> pd.Series:
    key = _slice(frame, name, length, pairs)
    return pd.Series([row.get(key) for row in _slice_maps(frame)], index=frame.index, dtype="float64")


def _slice(frame: pd.DataFrame, name: str, length: str | None, pairs: int) -> str:
    lengths = [lk[0] for lk in slices(frame) if lk[1] == pairs and length in (None, str(lk[0]))]
    if not lengths:
        known = ", ".join(f"accuracy@{length}x{pairs}" for length, pairs in slices(frame))
        raise UserError(f"no row was tested on {name!r}: there are {known or 'no slices at all'}.")
    return f"{max(lengths)}x{pairs}"


def _unknown(frame: pd.DataFrame, name: str) -> str:
    match = _FROM_THROUGHPUT.fullmatch(name)
    if match:
        mode = f"mode {match['mode']}, " if match["mode"] else ""
        return (
            f"the recall rows have no column {name!r}. It needs throughput rows of the same mixers ({mode}one per "
            f"mixer, d_model and config; see `basedbench throughput`), joined to the recall rows under that name."
        )
    return f"no column {name!r} in these rows: {nearest(name, [*numeric_columns(frame), 'accuracy@K', 'accuracy@LxK'])}"
