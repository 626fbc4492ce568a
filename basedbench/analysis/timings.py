"""Throughput rows as comparable numbers: per token, with their interval, sorted into panels of what can be compared."""

import json
from dataclasses import dataclass
from typing import Any

import pandas as pd

from basedbench.errors import UserError, nearest

MEASURES = ("time_per_token", "tokens_per_s", "median_ms")
_MOST_SERIES = 10  # in a panel; with more, batch sizes and then value widths get panels of their own
_APART = ["group", "mode", "dtype", "heads", "cache", "device_name", "threads"]  # never in one panel
_SHAPE = ["batch", "key_dim", "value_dim", "vocab_size", "config"]
_MODES = {"fwd": "forward", "fwd_bwd": "forward and backward", "decode": "decode step"}
_LETTERS = {"batch": "B", "heads": "H", "key_dim": "K", "value_dim": "V", "vocab_size": "vocabulary"}


@dataclass(frozen=True)
class Series:
    """One line: a contender (of an operator, where a panel has several) at one shape; rows by x, failures included."""

    name: str
    contender: str
    variant: str
    rows: pd.DataFrame


@dataclass(frozen=True)
class Panel:
    """What is compared in one place; x is "length", or "batch" where only that varies.

    `conditions` are what all its rows, but not all rows, have in common.
    """

    title: str
    mode: str
    conditions: str
    x: str
    series: tuple[Series, ...]


def timings(frame: pd.DataFrame, measure: str = "time_per_token") -> pd.DataFrame:
    """The rows with columns value, low, high (the measure and its interval), subject and group.

    All three are NaN for a failure; an end is NaN where a wide interval reaches below a time of zero.
    `time_per_token` is in seconds; a decode step makes one token per sequence. `subject` is the operator or model;
    `group` the one that it is measured against, if its baseline is another, so that the two are drawn together.
    Of a case that several suites have it is the newest row, of those with a time if there are any.
    Raises UserError for an unknown measure.
    """
    if measure not in MEASURES:
        raise UserError(f"no measure {measure!r}: {nearest(measure, MEASURES)}")
    frame = _with_threads(_once(frame))
    names = ["median_ms", "ci_low_ms", "ci_high_ms"]
    if measure == "tokens_per_s":
        names = ["median_ms", "ci_high_ms", "ci_low_ms"]  # the longest time is the lowest rate
    ends = frame[names].astype("float64")
    ends.loc[frame["status"] != "ok"] = float("nan")
    ends = ends.where(ends > 0)
    tokens_per_call = (frame["tokens_per_s"] * frame["median_ms"] / 1e3).astype("float64")
    if measure != "median_ms":
        ends = ends.div(tokens_per_call * 1e3, axis="index")
    if measure == "tokens_per_s":
        ends = 1 / ends
    value, low, high = (ends[name] for name in names)
    subject = frame["operator"].fillna(frame["model"]) if "model" in frame.columns else frame["operator"]
    return frame.assign(value=value, low=low, high=high, subject=subject, group=_groups(frame, subject))


def panels_of(rows: pd.DataFrame) -> list[Panel]:
    """The panels for rows of `timings`, in the order of the rows."""
    panels: list[Panel] = []
    for also in ([], ["batch"], ["batch", "value_dim"]):
        apart = [name for name in [*_APART, *also] if name in rows.columns]
        panels = [_panel(part, rows) for _, part in rows.groupby(apart, dropna=False, sort=False)]
        if all(len(panel.series) <= _MOST_SERIES for panel in panels):
            break
    return panels


def shared_conditions(rows: pd.DataFrame) -> str:
    """What is the same for every row, in words: `NVIDIA H200, bf16, H 16, cold cache`."""
    names = ["device_name", "dtype", "batch", "heads", "key_dim", "value_dim", "config", "cache"]
    return ", ".join(text for name in names if _fixed(rows, name) and (text := _describe(name, rows[name].iloc[0])))


def _once(frame: pd.DataFrame) -> pd.DataFrame:
    if "case_id" not in frame.columns:
        return frame
    timed_last = frame.assign(timed=frame["status"] == "ok").sort_values("timed", kind="stable")
    return frame.loc[sorted(timed_last.drop_duplicates("case_id", keep="last").index)]


def _with_threads(frame: pd.DataFrame) -> pd.DataFrame:
    """Failures of earlier versions do not say their threads: those of the device's other rows, if all agree."""
    if "threads" not in frame.columns:
        return frame
    counts = frame.groupby("device_name")["threads"].agg(["nunique", "max"])
    agreed = frame["device_name"].map(counts.loc[counts["nunique"] == 1, "max"])
    return frame.assign(threads=frame["threads"].where(frame["status"] == "ok", frame["threads"].fillna(agreed)))


def _groups(frame: pd.DataFrame, subject: pd.Series) -> pd.Series:
    """`attention` for a row whose baseline is `attention/sdpa`, else the row's own subject."""
    if "baseline" not in frame.columns:
        return subject
    names = frame["baseline"].astype("object").where(frame["baseline"].notna(), "")
    other = names.map(lambda name: name.rpartition("/")[0])
    return subject.where(other == "", other)


def _panel(part: pd.DataFrame, rows: pd.DataFrame) -> Panel:
    x = "batch" if part["length"].nunique() < 2 <= part["batch"].nunique() else "length"
    shape = [name for name in _SHAPE if name != x and name in part.columns]
    several = part["subject"].nunique() > 1
    series = []
    for _, line in part.groupby(["subject", "contender", *shape], dropna=False, sort=False):
        subject, contender = str(line["subject"].iloc[0]), str(line["contender"].iloc[0])
        varied = [name for name in shape if not _fixed(part[part["subject"] == subject], name)]
        words = " ".join(filter(None, (_describe(name, line[name].iloc[0]) for name in varied)))
        name = f"{_words(subject)}: {contender}" if several else contender
        series.append(Series(name, contender, words, line.sort_values(x)))
    mode = part["mode"].iloc[0]
    always = rows[rows["mode"] == mode]  # a cache that is a mode's own, say, goes without saying
    special = [name for name in ["dtype", "cache", "threads"] if not _fixed(always, name)]
    special += [name for name in ["batch", "heads", *shape] if name != x and not _fixed(rows, name)]
    conditions = [_describe(name, part[name].iloc[0]) for name in dict.fromkeys(special) if _fixed(part, name)]
    words = " ".join(filter(None, conditions))
    return Panel(_title(sorted(part["subject"].unique())), _MODES.get(mode, _words(mode)), words, x, tuple(series))


def _title(subjects: list[str]) -> str:
    """`Attention and taylor attention`, or `Attention and 2 others`."""
    several = [*subjects[:1], f"{len(subjects) - 1} others"] if len(subjects) > 2 else subjects
    title = " and ".join(map(_words, several))
    return title[:1].upper() + title[1:]


def _fixed(rows: pd.DataFrame, name: str) -> bool:
    return name in rows.columns and rows[name].nunique(dropna=False) == 1


def _describe(name: str, value: Any) -> str:
    """A column's value in words; nothing for a null, an axis that an operator does not have (1), or no options.

    The preset of a whole model is its name already.
    """
    if pd.isna(value) or (name in ("heads", "key_dim", "value_dim") and value == 1):
        return ""
    if name == "config":
        return " ".join(f"{key} {_item(item)}" for key, item in json.loads(value).items() if key != "preset")
    if name in ("dtype", "device_name"):
        return str(value)
    if name == "threads":
        return f"{value:g} thread{'s' if value > 1 else ''}"
    return f"{value} cache" if name == "cache" else f"{_LETTERS[name]} {value:g}"


def _item(value: Any) -> str:
    return "+".join(map(str, value)) if isinstance(value, list) else str(value)


def _words(name: str) -> str:
    subject, space, options = name.partition(" ")  # `base_conv+based d_model=64`: an option keeps its name
    return subject.replace("_", " ") + space + options
