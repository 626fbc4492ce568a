"""The published recall points beside ours, as Markdown: each point, our best learning rate, the difference."""

import math

import pandas as pd

from basedbench.analysis.columns import slices
from basedbench.analysis.markdown import signed, table
from basedbench.analysis.naming import family_title, point_labels
from basedbench.analysis.published import AXES, SLICES, against_published, published
from basedbench.analysis.selection import select

NOTHING = "No runs of the suite `figure2` or its kin are in these results yet; `basedbench recall --sweep` makes them."
COLUMNS = ("model", "state in zoology's count", "published", "measured", "difference", "learning rates", "seeds")


def published_table(frame: pd.DataFrame | None) -> str:
    """Every measured model that has a published point, by family and size; then what has not been run yet.

    Only rows that were tested on the published slices count. A model trained with the other initialisation than the
    published one stands there too, without a published value.
    """
    rows = None if frame is None else frame[[sorted(slices(frame.loc[[i]])) == sorted(SLICES) for i in frame.index]]
    points = None if rows is None or rows.empty else select(rows, [AXES[0], "accuracy"])
    if points is None or points.empty:
        return NOTHING
    known = published()
    points = against_published(points[points["family"].isin(known["family"])], AXES[0])
    points = points.sort_values(["family", AXES[0]], kind="stable")
    labels = point_labels(points, always_width=True)
    lines = [_line(point, label) for (_, point), label in zip(points.iterrows(), labels, strict=True)]
    return "\n\n".join(filter(None, [table(COLUMNS, lines), _missing(points, known)]))


def _line(point: pd.Series, label: str) -> list[str]:
    half = (point["accuracy_high"] - point["accuracy_low"]) / 2
    measured = f"{point['accuracy']:.3f}" + (f" ± {half:.3f}" if math.isfinite(half) else "")
    theirs = ["-", "-"]
    if math.isfinite(point["published"]):
        theirs = [f"{point['published']:.3f}", signed(point["difference"])]
    seeds = f"{point['seeds']}" + (f" of {point['seeds'] + point['diverged']}" if point["diverged"] else "")
    size = f"{point[AXES[0]]:,.0f}"
    name = f"{family_title(point['family'])}, {label}"
    return [name, size, theirs[0], measured, theirs[1], f"{point['learning_rates']}", seeds]


def _missing(points: pd.DataFrame, known: pd.DataFrame) -> str:
    """Which published points have no model of ours with as many bytes."""
    measured = set(zip(points["family"], points[AXES[0]], strict=True))
    left = known[[(family, size) not in measured for family, size in zip(known["family"], known[AXES[0]], strict=True)]]
    if left.empty:
        return ""
    counts = left.groupby("family", sort=False).size()
    told = ", ".join(f"{family_title(str(family))} ({count})" for family, count in counts.items())
    return f"Published and not run yet: {told}."
