"""From runs to points: the best learning rate of each model, its seeds as a mean with an interval.

A model is everything in a recall row's case but learning rate and seed. Suites that ask for the same task and recipe
are one experiment, whose seeds come together, under the name of the first in the alphabet. Choosing the maximum over
learning rates on the split that is also reported favours models that were tried more often; `selection_note` says what
was done, for the figure.
"""

import math
from collections.abc import Sequence
from typing import Any

import pandas as pd

from basedbench.analysis.columns import numbers
from basedbench.analysis.intervals import t_interval
from basedbench.errors import UserError, nearest

MODEL = (
    *("suite", "family", "mixer", "layer_mixers", "layer_options", "config", "d_model", "layers", "init", "precision"),
    *("task", "recipe", "vocab_size", "epochs", "batch_size", "weight_decay", "select_split"),
)
HOW = ("best-lr", "all")


def select(
    frame: pd.DataFrame, metrics: Sequence[str] = ("state_bytes", "accuracy"), how: str = "best-lr"
) -> pd.DataFrame:
    """One row per model (`best-lr`), or per model and learning rate (`all`), from recall rows with one row per run,
    oldest first.

    The best learning rate has the largest mean over seeds of `accuracy`, or of `validation_accuracy` where
    select_split is "validation" (if no run of the model has one, the point's select_split is "test"); a diverged run
    counts as tried, with accuracy 0. Other failures are left out: they say nothing of the model.
    Columns: those of the model, learning_rate, learning_rates (tried), seeds (finished at this one), diverged
    (likewise), by_seed (the accuracy at each seed's own best rate, mean over the seeds that have all rates; NaN for
    fewer than two), and for every metric m its mean m with the 95 % t-interval m_low, m_high (NaN with one seed).
    Raises UserError for an unknown metric or `how`.
    """
    return select_runs(frame, metrics, how)[0]


def select_runs(
    frame: pd.DataFrame, metrics: Sequence[str] = ("state_bytes", "accuracy"), how: str = "best-lr"
) -> tuple[pd.DataFrame, list[pd.DataFrame]]:
    """What `select` returns, and for each of its points the rows of the runs that it is the mean of."""
    if how not in HOW:
        raise UserError(f"no selection {how!r}: {nearest(how, HOW)}")
    values = {name: numbers(frame, name) for name in metrics}
    runs = frame.assign(**values) if len(frame) else frame
    runs = _of_one_experiment(runs[runs["status"].isin(["ok", "diverged"])])
    keys = [name for name in MODEL if name in frame.columns]
    points, behind = [], []
    for _, same in runs.groupby(keys, dropna=False, sort=False):
        model = _scored(same)
        tried = [rate for _, rate in model.groupby("learning_rate") if (rate["status"] == "ok").any()]
        if tried and how == "best-lr":
            tried = [max(tried, key=_mean_score)]
        tries = model["learning_rate"].nunique()
        more = {"learning_rates": tries, "by_seed": _by_seed(model, tries)}
        points += [_point(rate, keys, metrics) | more for rate in tried]
        behind += [rate[rate["status"] == "ok"] for rate in tried]
    return pd.DataFrame(points, columns=_columns(keys, metrics)), behind


def selection_note(points: pd.DataFrame, how: str = "best-lr", spread: str = "bars: 95% t-intervals") -> str:
    """How the points came about, in one line for the figure; `spread` is how it shows what several seeds differ by."""
    tries, seeds = _span(points["learning_rates"], "learning rate"), _span(points["seeds"], "seed")
    splits = sorted(set(points["select_split"].dropna())) if "select_split" in points.columns else []
    if how == "all":
        chosen = "Every learning rate is a point"
    elif points["learning_rates"].max() == 1:
        chosen = "One learning rate per model"
    else:
        chosen = f"Best of {tries} per model, chosen on the {' or '.join(splits) or 'test'} split"
    if points["seeds"].max() == 1:
        return f"{chosen}; one seed."
    where = "" if points["seeds"].min() > 1 else " where there are several"
    return f"{chosen}; mean of {seeds}, {spread}{where}."


def _of_one_experiment(runs: pd.DataFrame) -> pd.DataFrame:
    """Suites with the same task and recipe under one name, and a run that several share once: its last row."""
    if runs.empty or not {"task", "recipe", "case_id"} <= set(runs.columns):
        return runs
    told = runs["task"].notna() & runs["recipe"].notna()
    first = runs[told].groupby(["task", "recipe"])["suite"].transform("min")
    runs = runs.assign(suite=first.reindex(runs.index).fillna(runs["suite"]))
    return runs[~(told & runs.duplicated(["case_id"], keep="last"))]


def _scored(model: pd.DataFrame) -> pd.DataFrame:
    """A model's runs with what its learning rate is chosen on, and the split that this is of."""
    score, finished = numbers(model, "accuracy"), model["status"] == "ok"
    if "select_split" in model.columns and model["select_split"].iloc[0] == "validation":
        known = "validation_accuracy" in model.columns and model.loc[finished, "validation_accuracy"].notna().any()
        score = numbers(model, "validation_accuracy") if known else score
        model = model.assign(select_split="validation" if known else "test")
    return model.assign(_score=score.where(finished, 0.0))


def _mean_score(rate: pd.DataFrame) -> float:
    """Of the runs that have one; below all others where none has."""
    score = float(rate["_score"].mean())
    return -math.inf if math.isnan(score) else score


def _point(rate: pd.DataFrame, keys: list[str], metrics: Sequence[str]) -> dict[str, Any]:
    """The runs of one model at one learning rate as one row."""
    finished = rate[rate["status"] == "ok"]
    point = {name: finished[name].iloc[0] for name in [*keys, "learning_rate"]}
    point |= {"seeds": len(finished), "diverged": len(rate) - len(finished)}
    for name in metrics:
        low, high = t_interval(finished[name].dropna().tolist())
        point |= {name: finished[name].mean(), f"{name}_low": low, f"{name}_high": high}
    return point


def _by_seed(model: pd.DataFrame, tries: int) -> float:
    """What sweeps of one seed each would find on average: a rate that fails at one seed costs the others nothing."""
    scored = model[model["_score"].notna()]
    whole = [runs for _, runs in scored.groupby("seed") if runs["learning_rate"].nunique() == tries]
    best = pd.Series([runs["accuracy"].iloc[runs["_score"].argmax()] for runs in whole], dtype="float64")
    return float(best.mean()) if len(best) > 1 else float("nan")


def _columns(keys: list[str], metrics: Sequence[str]) -> list[str]:
    columns = [*keys, "learning_rate", "learning_rates", "seeds", "diverged", "by_seed"]
    return list(dict.fromkeys([*columns, *(name + end for name in metrics for end in ("", "_low", "_high"))]))


def _span(counts: pd.Series, noun: str) -> str:
    low, high = counts.min(), counts.max()
    if low == high:
        return f"{high} {noun}s" if high != 1 else f"one {noun}"
    return f"{low} to {high} {noun}s"
