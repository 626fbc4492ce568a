"""The curves figure: accuracy or loss by epoch, one line per model, one panel per family."""

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from basedbench.analysis.naming import family_title, point_labels
from basedbench.errors import UserError
from basedbench.plots.ends import name_ends, shades
from basedbench.plots.families import family_panels
from basedbench.plots.scales import column_title, log_axis, set_ticks
from basedbench.plots.style import (
    TINY,
    Look,
    Mark,
    add_note,
    as_written,
    freeze,
)

MOST_PANELS, MOST_LINES = 24, 20
_DARKEST = 0.45  # how far towards black the model with the most state is drawn: lines that cross need more contrast
_LEADER = 0.16  # inches, from a line to its name
_MOST_ROOM = 0.5  # of the frame's width, for both
_TICKS = 5


@as_written
def curves(points: pd.DataFrame, y: str = "accuracy", *, note: str = "", width: str = "double") -> Figure:
    """The figure for points as `analysis.curves.curves` returns them for y; those without a curve are not drawn.

    Lines are means over seeds, bands reach from the smallest to the largest of several. In a panel the models of a
    family go from pale (least state) to full colour, their names at the right. A marker ends the line of a model whose
    runs stopped early; its last value is dotted on. `note` stands beneath; `width` is "single" or "double". Raises
    UserError for more panels than a figure can hold, or more lines than a panel.
    """
    points = points[points["mean"].notna()]
    _check_room(points)
    figure, panels = family_panels(points, width, "epoch", column_title(y))
    last = max(map(len, points["mean"]))
    _set_heights(panels[0].axes, points, y)
    for axes, models, mark in panels:
        _set_epochs(axes, last)
        _draw_models(axes, models, mark, last)
    add_note(figure, note)
    freeze(figure)
    names = [list(point_labels(panel.models)) for panel in panels]
    _make_room([panel.axes for panel in panels], [name for some in names for name in some], last)
    for (axes, models, mark), some in zip(panels, names, strict=True):
        _name_models(axes, models, some, mark, last)
    return figure


def _check_room(points: pd.DataFrame) -> None:
    lines = points["family"].value_counts()
    if len(lines) > MOST_PANELS:
        raise UserError(
            f"these runs are of {len(lines)} families and a figure holds {MOST_PANELS} panels; "
            "choose some with --suite or --filter."
        )
    if lines.max() > MOST_LINES:
        name = lines.index[0]
        mixer = points.loc[points["family"] == name, "mixer"].iloc[0]
        raise UserError(
            f"{family_title(name)} would have {lines.max()} lines, more than the {MOST_LINES} that a panel "
            f"holds; choose some with --suite, --precision or --filter, such as --filter '^{mixer} d_model=64 '."
        )


def _set_heights(axes: Axes, points: pd.DataFrame, y: str) -> None:
    """The vertical scale, which all panels share: of a loss logarithmic, for it falls by orders of magnitude."""
    if y != "loss":
        axes.set_ylim(-0.03, 1.03)
        return
    drawn = np.concatenate([*points["mean"], *points["low"].dropna(), *points["high"].dropna()])
    drawn = drawn[np.isfinite(drawn) & (drawn > 0)]
    low, high = (drawn.min(), drawn.max()) if len(drawn) else (0.1, 1.0)
    margin = max((high / low) ** 0.04, 1.1)
    log_axis(axes.yaxis, low / margin, high * margin, y, 6)


def _set_epochs(axes: Axes, last: int) -> None:
    axes.xaxis.labelpad = 1
    ticks = [int(at) for at in MaxNLocator(_TICKS, integer=True).tick_values(1, last) if 1 < at <= last]
    set_ticks(axes.xaxis, [1, *ticks], [str(at) for at in (1, *ticks)])
    axes.tick_params(axis="x", labelsize=TINY)


def _make_room(panels: Sequence[Axes], names: Sequence[str], last: int) -> None:
    """Let the horizontal scale, which all panels share, leave as much at the right as the widest name needs."""
    text = panels[0].text(0, 0, " " + "\n ".join(set(names)), size=TINY)
    frame = min(panel.get_window_extent().width for panel in panels)
    room = min((text.get_window_extent().width + 1.2 * _leader(panels[0])) / frame, _MOST_ROOM)
    text.remove()
    span = max(last - 1, 1)
    left = 1 - 0.04 * span
    panels[0].set_xlim(left, last + (last - left) * room / (1 - room))
    for panel in panels:
        panel.spines["bottom"].set_bounds(left, last)


def _draw_models(axes: Axes, family: pd.DataFrame, mark: Mark, last: int) -> None:
    for (_, point), colour in zip(family.iterrows(), shades(mark, len(family), _DARKEST), strict=True):
        mean, epochs = point["mean"], range(1, len(point["mean"]) + 1)
        axes.plot(epochs, mean, color=colour, linewidth=1.1, zorder=3, label="mean")
        if point["low"] is not None:
            look: Look = {"color": colour, "alpha": 0.18, "linewidth": 0, "zorder": 2, "label": "band"}
            axes.fill_between(epochs, point["low"], point["high"], **look)
        if not _placed(axes, mean[-1]):
            continue
        if point["stopped"]:
            shape = mark.shape(3.6) | {"markerfacecolor": colour, "markeredgecolor": "white", "markeredgewidth": 0.3}
            axes.plot(len(mean), mean[-1], color=colour, zorder=4, label="stopped", clip_on=False, **shape)
        if len(mean) < last:
            dash = ":" if point["stopped"] else "-"
            axes.plot([len(mean), last], [mean[-1]] * 2, color=colour, linewidth=0.7, linestyle=dash, label="held")


def _name_models(axes: Axes, family: pd.DataFrame, names: list[str], mark: Mark, last: int) -> None:
    ends = np.array([point[-1] if _placed(axes, point[-1]) else math.nan for point in family["mean"]])
    edge = axes.transData.transform((last, axes.get_ylim()[0]))[0] + _leader(axes)
    places = last, float(axes.transData.inverted().transform((edge, 0))[0])
    name_ends(axes, places, ends, names, shades(mark, len(family), _DARKEST), mark.ink)


def _leader(axes: Axes) -> float:
    """Pixels from a line to its name."""
    return _LEADER * axes.figure.dpi


def _placed(axes: Axes, value: float) -> bool:
    """Whether it is on the axis; a loss of 0 is on no logarithmic one."""
    low, high = axes.get_ylim()
    return low <= value <= high
