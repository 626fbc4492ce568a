"""The points of `basedbench plot pareto`, from a results folder."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from basedbench.analysis.columns import check_accuracy
from basedbench.analysis.decoding import COLUMN, with_decode_rate
from basedbench.analysis.frontier import pareto_front
from basedbench.analysis.selection import select
from basedbench.analysis.suites import check_one_test, rows_for_figure
from basedbench.store.dataset import load


def points(
    results: Path | str, x: str = "state_bytes", y: str = "accuracy", *, suites: Sequence[str] = ()
) -> pd.DataFrame:
    """The points that `plot pareto` draws of a results folder, of these suites or of all, one row per model.

    Each is a model at its best learning rate, the mean over its seeds with the ends `_low` and `_high` of a 95 %
    interval: columns as `analysis.select` gives them, and whether it is on the `frontier`. Rows of a suite's earlier
    tasks are left out, which a warning tells, and so is what has no place on the figure (x above 0, and y). Raises
    UserError as that command does.
    """
    frame = rows_for_figure(load(results, "recall", understood=True), suites)
    check_one_test(frame)
    times = load(results, "throughput", understood=True) if x == COLUMN else None
    drawn = drawable(chosen(frame, x, y, times=times), x, y)
    return drawn.assign(frontier=drawn.index.isin(pareto_front(drawn, x, y).index))


def chosen(
    frame: pd.DataFrame,
    x: str,
    y: str,
    how: str = "best-lr",
    times: pd.DataFrame | None = None,
    batch: int | None = None,
) -> pd.DataFrame:
    """`select` of y and of x; where x is the decode rate, from the throughput rows `times`, at this batch."""
    check_accuracy(frame, y)
    if times is None:
        return select(frame, [x, y], how)
    return with_decode_rate(select(frame, [y, "parameters"], how), times, batch)


def drawable(points: pd.DataFrame, x: str, y: str) -> pd.DataFrame:
    """The points that have a place on the figure, whose x is logarithmic."""
    finite = points[y].between(-np.inf, np.inf, inclusive="neither")
    return points[points[x].between(0, np.inf, inclusive="neither") & finite]
