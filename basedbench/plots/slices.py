"""The slices figure: accuracy against the number of key-value pairs, one line per model, one panel per family."""

import math
from collections.abc import Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from basedbench.analysis.columns import slices as slices_of
from basedbench.analysis.naming import point_labels
from basedbench.errors import UserError
from basedbench.plots.ends import name_ends, shades
from basedbench.plots.families import family_panels
from basedbench.plots.scales import set_ticks
from basedbench.plots.style import (
    TINY,
    Look,
    Mark,
    add_note,
    as_written,
    freeze,
)


def slice_metrics(frame: pd.DataFrame) -> list[str]:
    """What to select for the figure: `accuracy@LxK` by number of pairs, the longest slice where several have as many.

    Raises UserError if the rows have no slices.
    """
    longest = {pairs: length for length, pairs in slices_of(frame)}  # ordered by pairs, then length: the last stays
    if not longest:
        raise UserError("these rows have no accuracy_by_slice, so there is nothing to draw; run their suite again.")
    return [f"accuracy@{length}x{pairs}" for pairs, length in longest.items()]


@as_written
def slices(points: pd.DataFrame, metrics: Sequence[str], *, note: str = "", width: str = "double") -> Figure:
    """The figure for points as `analysis.select` returns them with metrics (state_bytes, *metrics).

    `metrics` are those of `slice_metrics`. In a panel the models of a family go from pale (least state) to full colour,
    their names beside the ends of their lines. `note` stands beneath; `width` is "single" or "double".
    """
    figure, panels = family_panels(points, width, "key-value pairs\nin sequences of length", "Recall accuracy")
    sizes = [name.removeprefix("accuracy@").split("x") for name in metrics]
    for axes, models, mark in panels:
        _set_axes(axes, sizes)
        _draw_models(axes, models, metrics, mark)
    add_note(figure, note)
    freeze(figure)
    for axes, models, mark in panels:
        _name_models(axes, models, metrics, mark)
    return figure


def _set_axes(axes: Axes, sizes: Sequence[Sequence[str]]) -> None:
    pairs = [int(pairs) for _, pairs in sizes]
    axes.set_xscale("log", base=2)
    # A third of the width is for the names at the right.
    span = max(pairs[-1] / pairs[0], 4)
    axes.set(xlim=(pairs[0] / span**0.05, pairs[-1] * span**0.45), ylim=(-0.03, 1.03))
    set_ticks(axes.xaxis, pairs, [f"{pairs}\n{length}" for length, pairs in sizes])
    axes.tick_params(axis="x", labelsize=TINY - 0.5)
    axes.spines["bottom"].set_bounds(axes.get_xlim()[0], pairs[-1])


def _draw_models(axes: Axes, family: pd.DataFrame, metrics: Sequence[str], mark: Mark) -> None:
    pairs = axes.get_xticks()
    for (_, point), colour in zip(family.iterrows(), shades(mark, len(family)), strict=True):
        look: Look = {"color": colour, "linewidth": 1.1, "zorder": 3}
        axes.plot(pairs, [point[name] for name in metrics], **look, **mark.shape(2.8) | {"markerfacecolor": colour})
        for at, name in zip(pairs, metrics, strict=True):
            if math.isfinite(point[f"{name}_low"]):
                ends = max(point[f"{name}_low"], 0), min(point[f"{name}_high"], 1)
                axes.plot([at, at], ends, color=colour, linewidth=0.7, zorder=2, label="interval")


def _name_models(axes: Axes, family: pd.DataFrame, metrics: Sequence[str], mark: Mark) -> None:
    end, right = axes.get_xticks()[-1], axes.get_xlim()[1]
    start = end * (right / end) ** 0.22
    last, names = family[metrics[-1]].to_numpy(), list(point_labels(family))
    name_ends(axes, (end, start), last, names, shades(mark, len(family)), mark.ink)
