"""Learning curves: accuracy or loss by epoch of each model at its best learning rate, from recall rows."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from basedbench.analysis.columns import slice_of
from basedbench.analysis.selection import select_runs
from basedbench.errors import UserError, nearest

MEASURES = ("accuracy", "loss", "accuracy@K", "accuracy@LxK")


def curves(frame: pd.DataFrame, y: str = "accuracy", how: str = "best-lr") -> pd.DataFrame:
    """The points of `select` with metrics (state_bytes, accuracy), each with its curve of y by epoch.

    y is `accuracy` (the mean over test slices), that of one slice (`accuracy@64`, `accuracy@256x64`) or `loss` (of
    training, the mean of an epoch). A run that stopped early counts with its last value from then on, as it does in
    `accuracy`. Beside the columns of `select`:

    mean, low, high: lists by epoch of the mean, the smallest and the largest of the seeds (low and high None for one
    seed; mean None for a model of which no run says its curve); stopped: whether every seed stopped before its last
    epoch; held: whether one did before the curve ends; halfway: see there; steps_per_epoch.
    Raises UserError for an unknown y, or if no row has such a curve.
    """
    by_epoch = _by_epoch(frame, y)
    points, behind = select_runs(frame.assign(_curve=by_epoch), ["state_bytes", "accuracy"], how)
    sizes = points["vocab_size"] if "vocab_size" in points.columns else [math.nan] * len(points)
    found = [_curve(runs) | {"steps_per_epoch": _steps(runs)} for runs in behind]
    found = [one | {"halfway": halfway(one["mean"], y, size)} for one, size in zip(found, sizes, strict=True)]
    if all(one["mean"] is None for one in found):
        raise UserError(f"these rows have no {y} by epoch, so there is nothing to draw; run their suite again.")
    columns = ("mean", "low", "high", "stopped", "held", "halfway", "steps_per_epoch")
    values = {name: pd.Series([one[name] for one in found], index=points.index, dtype="object") for name in columns}
    return points.assign(**values)


def halfway(curve: Sequence[float] | None, y: str, vocabulary: float) -> int | None:
    """The first epoch, from 1, whose value is at least halfway from chance to the last one.

    By chance an accuracy is as good as 0, and a loss that of guessing among the whole vocabulary. None without a curve,
    or if that ends no better.
    """
    chance, sign = (math.log(vocabulary), -1) if y == "loss" else (0.0, 1)
    gained = [sign * (value - chance) for value in curve or ()]
    if not gained or not gained[-1] > 0:
        return None
    return next(epoch for epoch, gain in enumerate(gained, start=1) if gain >= gained[-1] / 2)


def curves_note(points: pd.DataFrame, frame: pd.DataFrame) -> str:
    """What the curves rest on, in a line for the figure; `frame` has the rows that they are of."""
    finished = frame[frame["status"] == "ok"]
    reasons = sorted(set(finished["stop_reason"].dropna()) - {"epochs"}) if "stop_reason" in finished.columns else []
    early = f"stopped early ({', '.join(reasons)})" if reasons else "stopped early"
    parts = [f"Marker at a line's end: {early}."] if points["stopped"].any() else []
    parts += ["The last value of a seed that stopped early counts on."] if points["held"].any() else []
    return " ".join([*parts, *_steps_note(points)])


def _by_epoch(frame: pd.DataFrame, y: str) -> pd.Series:
    """The curve of each row, or None."""
    key = slice_of(frame, y)
    if key is None and y not in ("accuracy", "loss"):
        raise UserError(f"no curve {y!r}: {nearest(y, MEASURES)}")
    column = "accuracy_by_slice_by_epoch" if key else f"{y}_by_epoch"
    values = list(frame[column]) if column in frame.columns else [None] * len(frame)
    if key:
        values = [value.get(key) if isinstance(value, dict) else None for value in values]
    return pd.Series([_numbers(value) for value in values], index=frame.index, dtype="object")


def _numbers(values: Any) -> np.ndarray | None:
    if not isinstance(values, list | tuple | np.ndarray):
        return None
    numbers = np.array([math.nan if value is None else float(value) for value in values])
    return numbers if np.isfinite(numbers).any() else None


def _curve(runs: pd.DataFrame) -> dict[str, Any]:
    """Mean and ends of the seeds that have a curve."""
    told = runs[runs["_curve"].notna()]
    lengths = [len(one) for one in told["_curve"]]
    if not lengths:
        return {"mean": None, "low": None, "high": None, "stopped": False, "held": False}
    longest = max(lengths)
    seeds = np.stack([np.pad(one, (0, longest - len(one)), mode="edge") for one in told["_curve"]])
    several = len(seeds) > 1
    ended = [epochs > length for epochs, length in zip(told["epochs"], lengths, strict=True)]  # not so for NaN
    return {
        "mean": seeds.mean(axis=0).tolist(),
        "low": seeds.min(axis=0).tolist() if several else None,
        "high": seeds.max(axis=0).tolist() if several else None,
        "stopped": all(ended),
        "held": min(lengths) < longest,
    }


def _steps(runs: pd.DataFrame) -> int | None:
    """Steps of an epoch; None where the rows do not tell."""
    if "steps" not in runs.columns:
        return None
    told = runs[runs["_curve"].notna() & runs["steps"].notna()]
    counts = {steps / len(curve) for steps, curve in zip(told["steps"], told["_curve"], strict=True)}
    return int(counts.pop()) if len(counts) == 1 and all(count.is_integer() for count in counts) else None


def _steps_note(points: pd.DataFrame) -> list[str]:
    """How long an epoch is: by suite, where they differ, for then a place along the axis is not the same everywhere."""
    counts = points.dropna(subset=["steps_per_epoch"]).groupby("suite")["steps_per_epoch"].unique()
    different = {int(one) for values in counts for one in values}
    if len(different) < 2:
        return [f"An epoch has {steps:,} steps." for steps in different]
    told = (f"{'/'.join(f'{int(one):,}' for one in sorted(values))} ({suite})" for suite, values in counts.items())
    return [f"Epochs are of unlike length: steps {', '.join(told)}."]
