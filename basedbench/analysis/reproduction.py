"""The published recall points beside ours, as Markdown: our best learning rate and the difference, and all rates."""

import math

import pandas as pd

from basedbench.analysis.columns import slices
from basedbench.analysis.markdown import signed, table
from basedbench.analysis.naming import family_title, point_labels
from basedbench.analysis.published import AXES, ONLY_PUBLISHED_INIT, SLICES, against_published, published
from basedbench.analysis.selection import MODEL, select
from basedbench.analysis.suites import devices_note

NOTHING = "No runs of the suite `figure2` or its kin are in these results yet; `basedbench recall --sweep` makes them."
COLUMNS = (
    "model",
    "state in zoology's count",
    "published",
    "measured",
    "difference",
    "each seed's best",
    "rates",
    "seeds",
)
VISIBLE = 0.05  # models whose learning rates differ by less are not in the table of rates


def published_table(frame: pd.DataFrame | None) -> str:
    """Every measured model that has a published point, by family and size; then what has not been run yet.

    Only rows that were tested on the published slices count. A model trained with the other initialisation than the
    published one stands there too, without a published value, and so does one beside a better one of its size.
    """
    rows = _rows(frame)
    points = _points(rows, "best-lr")
    if points.empty:
        return NOTHING
    known, labels = published(), point_labels(points, always_width=True)
    points = against_published(points, AXES[0])
    lines = [_line(point, label) for (_, point), label in zip(points.iterrows(), labels, strict=True)]
    return "\n\n".join(filter(None, [table(COLUMNS, lines), _missing(points, known), devices_note(rows)]))


def rates_table(frame: pd.DataFrame | None) -> str:
    """Accuracy at each learning rate of the models of `published_table` for which it matters."""
    rows = _rows(frame)
    points = _points(rows, "all")
    if points.empty:
        return NOTHING
    keys = [name for name in MODEL if name in points.columns]
    models = [model.set_index("learning_rate") for _, model in points.groupby(keys, dropna=False, sort=False)]
    labels = point_labels(pd.DataFrame([model.iloc[0] for model in models]).reset_index(drop=True), always_width=True)
    rates = sorted(points["learning_rate"].unique())
    lines = []
    for model, label in zip(models, labels, strict=True):
        if model["accuracy"].max() - model["accuracy"].min() > VISIBLE:
            cells = [_measured(model.loc[rate]) if rate in model.index else "-" for rate in rates]
            lines.append([f"{family_title(model['family'].iloc[0])}, {label}", *cells])
    written = table(["model", *(f"{rate:.3g}" for rate in rates)], lines)
    return "\n\n".join(filter(None, [written, devices_note(rows)]))


def _rows(frame: pd.DataFrame | None) -> pd.DataFrame:
    """The runs of the published families, tested as published.

    At one precision, that of the most runs; `parity` compares it with others.
    """
    if frame is None:
        return pd.DataFrame()
    rows = frame[[sorted(slices(frame.loc[[i]])) == sorted(SLICES) for i in frame.index]]
    if "precision" in rows.columns and rows["precision"].notna().any():
        rows = rows[rows["precision"] == rows["precision"].mode()[0]]
    return rows[rows["family"].isin(published()["family"])]


def _points(rows: pd.DataFrame, how: str) -> pd.DataFrame:
    """The selected points of runs as `_rows` gives them, by family and size."""
    if rows.empty:
        return pd.DataFrame()
    points = _once(select(rows, [AXES[0], "accuracy"], how)).drop(columns="suite", errors="ignore")
    return points.sort_values(["family", AXES[0]], kind="stable")


def _once(points: pd.DataFrame) -> pd.DataFrame:
    """Without models that were also trained with the published initialisation, where it changes nothing."""
    if "init" not in points.columns:
        return points
    names = [name for name in MODEL if name in points.columns and name not in ("suite", "recipe", "init")]
    as_published = points["init"] == "published"
    there = as_published.groupby([points[name] for name in names], dropna=False).transform("any")
    alike = ~as_published & ~points["family"].isin(ONLY_PUBLISHED_INIT)
    return points[~(there & alike)]


def _line(point: pd.Series, label: str) -> list[str]:
    theirs = ["-", "-"]
    if math.isfinite(point["published"]):
        theirs = [f"{point['published']:.3f}", signed(point["difference"])]
    seeds = f"{point['seeds']}" + (f" of {point['seeds'] + point['diverged']}" if point["diverged"] else "")
    size = f"{point[AXES[0]]:,.0f}"
    name = f"{family_title(point['family'])}, {label}"
    by_seed = f"{point['by_seed']:.3f}" if math.isfinite(point["by_seed"]) else "-"
    return [name, size, theirs[0], _measured(point), theirs[1], by_seed, f"{point['learning_rates']}", seeds]


def _measured(point: pd.Series) -> str:
    """The accuracy, with its interval where there are several seeds."""
    half = (point["accuracy_high"] - point["accuracy_low"]) / 2
    return f"{point['accuracy']:.3f}" + (f" ± {half:.3f}" if math.isfinite(half) else "")


def _missing(points: pd.DataFrame, known: pd.DataFrame) -> str:
    """Which published points have no model of ours with as many bytes."""
    measured = set(zip(points["family"], points[AXES[0]], strict=True))
    left = known[[(family, size) not in measured for family, size in zip(known["family"], known[AXES[0]], strict=True)]]
    if left.empty:
        return ""
    counts = left.groupby("family", sort=False).size()
    told = ", ".join(f"{family_title(str(family))} ({count})" for family, count in counts.items())
    return f"Published and not run yet: {told}."
