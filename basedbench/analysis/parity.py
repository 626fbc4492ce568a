"""Whether lower precision costs recall: the runs of the suite `parity` at fp32, tf32 and bf16, as Markdown.

Per model and learning rate the mean accuracy over seeds and its standard deviation, and the difference from fp32 with
its 95 % Welch interval. A difference is within the spread of seeds if that interval contains zero, or if the table's
three decimals do not show it.
"""

import json
from collections.abc import Iterator, Sequence
from statistics import fmean, stdev

import pandas as pd

from basedbench.analysis.intervals import Welch
from basedbench.analysis.markdown import signed, table
from basedbench.analysis.naming import family_title, point_labels
from basedbench.analysis.selection import MODEL
from basedbench.analysis.suites import devices_note
from basedbench.config import expand_grid, load_suite
from basedbench.config.recall import RecallSuite

SUITE = "parity"
PRECISIONS = ("fp32", "tf32", "bf16")
COLUMNS = ("model", "learning rate", *PRECISIONS, *(f"{lower} - fp32" for lower in PRECISIONS[1:]))
NOTHING = f"No runs of the suite `{SUITE}` are in these results yet."
# The recipe holds the precision; what else is in it has columns of its own.
_KEYS = [name for name in MODEL if name not in ("suite", "precision", "recipe")]
_VISIBLE = 0.0005


def parity_table(frame: pd.DataFrame | None) -> str:
    """A line per model and learning rate, then a sentence on the runs that are missing."""
    suite = load_suite(SUITE, "recall")
    runs = pd.DataFrame() if frame is None else _runs(frame)
    if runs.empty:
        return f"{NOTHING} {_missing(runs, suite)}"
    return "\n\n".join(filter(None, [table(COLUMNS, _lines(runs)), _missing(runs, suite), devices_note(runs)]))


def _runs(frame: pd.DataFrame) -> pd.DataFrame:
    """The newest results of the suite's runs at any precision: a sweep of another suite may have made some of them."""
    if "recipe" in frame.columns:
        frame = frame.assign(recipe=frame["recipe"].map(_without_precision, na_action="ignore"))
    run = [name for name in (*_KEYS, "recipe", "learning_rate", "seed") if name in frame.columns]
    rows = frame[frame["status"] == "ok"].merge(frame.loc[frame["suite"] == SUITE, run].drop_duplicates(), on=run)
    return rows.drop_duplicates([*run, "precision"], keep="last")


def _without_precision(recipe: str) -> str:
    return json.dumps({name: value for name, value in json.loads(recipe).items() if name != "precision"})


def difference(lower: Sequence[float], full: Sequence[float]) -> str:
    """`-0.004 (-0.021 to +0.013), within`; without an interval where a side has fewer than two seeds."""
    if not lower or not full:
        return "-"
    if min(len(lower), len(full)) < 2:
        return f"{signed(fmean(lower) - fmean(full))}, too few seeds"
    test = Welch(full, lower)
    low, high = test.interval()
    within = low <= 0 <= high or abs(test.difference) < _VISIBLE
    verdict = "within" if within else "outside"
    return f"{signed(test.difference)} ({signed(low)} to {signed(high)}), {verdict}"


def _lines(runs: pd.DataFrame) -> Iterator[list[str]]:
    keys = [name for name in _KEYS if name in runs.columns]
    models = [model for _, model in runs.groupby(keys, dropna=False, sort=False)]
    points = pd.DataFrame([model[keys].iloc[0] for model in models]).reset_index(drop=True)
    labels = point_labels(points, always_width=True)
    names = [f"{family_title(family)}, {label}" for family, label in zip(points["family"], labels, strict=True)]
    for _, name, model in sorted(zip(points["family"], names, models, strict=True), key=lambda one: one[:2]):
        for rate, tried in model.groupby("learning_rate"):
            found = [tried.loc[tried["precision"] == one, "accuracy"].tolist() for one in PRECISIONS]
            differences = [difference(lower, found[0]) for lower in found[1:]]
            yield [name, f"{rate:.3g}", *map(_accuracy, found), *differences]


def _accuracy(values: Sequence[float]) -> str:
    """`0.896 ± 0.010 (3)`: mean, standard deviation and number of seeds."""
    if not values:
        return "-"
    return f"{fmean(values):.3f}" + (f" ± {stdev(values):.3f}" if len(values) > 1 else "") + f" ({len(values)})"


def _missing(runs: pd.DataFrame, suite: RecallSuite) -> str:
    """How many runs of each precision have no result."""
    models = sum(len(expand_grid(section.grid)) for section in suite.models)
    expected = models * len(suite.train.learning_rates) * len(suite.train.seeds)
    done = {one: 0 if runs.empty else int((runs["precision"] == one).sum()) for one in PRECISIONS}
    told = [f"{expected - count} of {expected} at {one}" for one, count in done.items() if count < expected]
    return f"Missing: {', '.join(told)} (without a row, or failed)." if told else ""
