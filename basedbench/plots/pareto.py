"""The frontier figure: recall against a cost, one line per family, the overall frontier as a grey stair behind."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from basedbench.analysis.columns import larger_is_better
from basedbench.analysis.frontier import pareto_front
from basedbench.analysis.naming import family_title, point_labels
from basedbench.analysis.points import drawable as drawable
from basedbench.analysis.published import LABEL, NOTE
from basedbench.errors import UserError
from basedbench.plots.labels import Label, place_labels
from basedbench.plots.scales import column_title, log_axis
from basedbench.plots.style import (
    INK,
    MUTED,
    TEXT,
    Look,
    Mark,
    add_note,
    as_written,
    freeze,
    legend_above,
    marks,
    new_figure,
    style_axes,
)
from basedbench.plots.tables import draw_table, table_height

FRONTIER = "Frontier"
_HEIGHT = {"single": 2.8, "double": 4.0}  # inches
_MARKER = {"single": 4.0, "double": 5.0}  # points
_TICKS = {"single": 5, "double": 10}
_STAIR: Look = {"color": "#bdbdbd", "linewidth": 2.6, "solid_capstyle": "butt", "solid_joinstyle": "miter"}
_RING: Look = {"markeredgecolor": INK, "markeredgewidth": 0.8}  # on the frontier
_RIM: Look = {"markeredgecolor": "white", "markeredgewidth": 0.4}


@as_written
def pareto(
    points: pd.DataFrame,
    x: str = "state_bytes",
    y: str = "accuracy",
    *,
    note: str = "",
    published: pd.DataFrame | None = None,
    table: Sequence[Sequence[str]] | None = None,
    width: str = "double",
) -> Figure:
    """The figure for points as `analysis.select` returns them with metrics (x, y).

    `note` stands beneath (how the points were selected); `published` are points as `analysis.published` returns them;
    `table` (a header and rows of texts) is set under the figure; `width` is "single" or "double", columns of a paper.
    x is logarithmic: points without a positive, finite x or without y are not drawn. Raises UserError if none is left.
    """
    points = drawable(points, x, y)
    if points.empty:
        raise UserError(
            f"no point has both {x} (finite and above 0, for the logarithmic axis) and {y}; plot other columns."
        )
    known = points[:0] if published is None else drawable(published, x, y)
    places = pd.concat([points[[x, y]], known[[x, y]]])
    style = marks([*points["family"], *known["family"]])
    figure, axes, beneath = _layout(width, table)
    _set_limits(axes, places, x, y, _TICKS[width])
    stair = _draw_frontier(axes, points, x, y)
    lines = _draw_published(axes, known, x, y, style, _MARKER[width])
    lines += _draw_families(axes, points, x, y, style, _MARKER[width])
    _draw_legend(figure, style, set(points["family"]), width, not known.empty)
    add_note(figure, note if known.empty else f"{note} {NOTE}")
    freeze(figure)
    if table:
        draw_table(beneath, table, width)
    place_labels(axes, _labels(points, x, y, style), places.to_numpy(), [stair, *lines], _MARKER[width])
    return figure


def _layout(width: str, table: Sequence[Sequence[str]] | None) -> tuple[Figure, Axes, Axes]:
    """The figure, its axes, and those for the table (the same without one)."""
    height, below = _HEIGHT[width], table_height(table, width) if table else 0.0
    figure = new_figure(width, height + below)
    if not table:
        axes = figure.add_subplot()
        return figure, axes, axes
    axes, beneath = figure.subplots(2, 1, height_ratios=[height, below])
    beneath.set_axis_off()
    return figure, axes, beneath


def _set_limits(axes: Axes, places: pd.DataFrame, x: str, y: str, ticks: int) -> None:
    style_axes(axes)
    low, high = places[x].min(), places[x].max()
    margin = max((high / low) ** 0.05, 1.15)
    log_axis(axes.xaxis, low / margin, high * margin, x, ticks)
    bottom = max(0.0, np.floor((places[y].min() - 0.05) * 10) / 10)
    room = 0.03 * (1 - bottom)
    axes.set_ylim(bottom - (room if bottom == 0 else 0), 1 + room)
    axes.set_xlabel(column_title(x), size=TEXT, color=INK)
    axes.set_ylabel(column_title(y), size=TEXT, color=INK)


def _draw_frontier(axes: Axes, points: pd.DataFrame, x: str, y: str) -> np.ndarray:
    """What can be had at each cost: a stair from point to point, on to the edge of the axes. Returns its corners."""
    front = pareto_front(points, x, y)[[x, y]].to_numpy()
    left, right = axes.get_xlim()
    if larger_is_better(x):
        front = np.concatenate([[(left, front[0, 1])], front])
        corners = np.stack([front[:-1, 0], front[1:, 1]], axis=1)
    else:
        front = np.concatenate([front, [(right, front[-1, 1])]])
        corners = np.stack([front[1:, 0], front[:-1, 1]], axis=1)
    stair = np.insert(front, np.arange(1, len(front)), corners, axis=0)
    axes.plot(*stair.T, label=FRONTIER, zorder=1, **_STAIR)
    return stair


def _draw_families(
    axes: Axes, points: pd.DataFrame, x: str, y: str, style: dict[str, Mark], size: float
) -> list[np.ndarray]:
    """Markers for all points, ringed on the frontier; a line through each family's own frontier; bars for seeds.

    Returns the courses of lines and bars.
    """
    frontier = set(pareto_front(points, x, y).index)
    lines = []
    for name, family in _in_order(points, style):
        mark = style[name]
        front = pareto_front(family, x, y)[[x, y]].to_numpy()
        bars = _bars(family, x, y, axes.get_xlim()[1])
        axes.plot(*front.T, color=mark.colour, linestyle=mark.line, linewidth=1.2, zorder=2, label=name)
        for bar in bars:
            cap = "|" if bar[0, 1] == bar[1, 1] else "_"
            axes.plot(*bar.T, color=mark.colour, linewidth=0.8, zorder=3, marker=cap, markersize=3, label="interval")
        for ringed, part in family.groupby(family.index.isin(frontier)):
            look = mark.shape(size) | (_RING if ringed else _RIM)
            axes.plot(part[x], part[y], linestyle="none", zorder=5 if ringed else 4, **look)
        lines += [front, *bars]
    return lines


def _draw_published(
    axes: Axes, points: pd.DataFrame, x: str, y: str, style: dict[str, Mark], size: float
) -> list[np.ndarray]:
    """Hollow markers and a dotted line per family. Returns the courses of the lines."""
    lines = []
    for name, family in _in_order(points, style):
        mark = style[name]
        front = pareto_front(family, x, y)[[x, y]].to_numpy()
        axes.plot(*front.T, color=mark.colour, linestyle=":", linewidth=0.8, zorder=2)
        hollow = mark.shape(size) | _hollow(mark.colour)
        axes.plot(family[x], family[y], linestyle="none", zorder=3, label=f"{name}, {LABEL}", **hollow)
        lines.append(front)
    return lines


def _in_order(points: pd.DataFrame, style: dict[str, Mark]) -> list[tuple[str, pd.DataFrame]]:
    return [(name, points[points["family"] == name]) for name in style if (points["family"] == name).any()]


def _bars(points: pd.DataFrame, x: str, y: str, edge: float) -> list[np.ndarray]:
    """The intervals as lines: upright ones within what an accuracy can be, level ones where x was measured, too.

    A level one without an upper end reaches the `edge`.
    """
    ends = points[[x, f"{y}_low", f"{y}_high"]].dropna()
    upright = [np.array([(at, max(low, 0.0)), (at, min(high, 1.0))]) for at, low, high in ends.itertuples(index=False)]
    if f"{x}_low" not in points.columns:
        return upright
    ends = points[[f"{x}_low", f"{x}_high", y]].fillna({f"{x}_high": edge}).dropna()
    ends = ends[ends[f"{x}_low"] < ends[f"{x}_high"]]
    return upright + [np.array([(low, at), (high, at)]) for low, high, at in ends.itertuples(index=False)]


def _labels(points: pd.DataFrame, x: str, y: str, style: dict[str, Mark]) -> list[Label]:
    """The best points choose their places first."""
    front = points.index.isin(pareto_front(points, x, y).index).tolist()
    columns = (points[x], points[y], point_labels(points), points["family"], front)
    labels = [
        Label(at, height, text, style[family].ink, on) for at, height, text, family, on in zip(*columns, strict=True)
    ]
    return sorted(labels, key=lambda label: -label.y)


def _draw_legend(figure: Figure, style: dict[str, Mark], ours: set[str], width: str, published: bool) -> None:
    """Above the axes, so that it hides nothing. Families that are only published come hollow."""
    size = _MARKER[width]
    entries = []
    for name, mark in style.items():
        look = mark.shape(size) | (_RIM if name in ours else _hollow(mark.colour))
        line: Look = {"color": mark.colour, "linestyle": mark.line if name in ours else ":", "linewidth": 1.2}
        entries.append(Line2D([], [], label=family_title(name), **line, **look))
    dot: Look = {"marker": "o", "markersize": size}
    if published:
        entries.append(Line2D([], [], color=MUTED, linestyle=":", label=LABEL, **dot | _hollow(MUTED)))
    entries.append(Line2D([], [], label=FRONTIER, **_STAIR, **dot | _hollow(INK) | _RING))
    legend_above(figure, entries)


def _hollow(colour: str) -> Look:
    return {"markerfacecolor": "white", "markeredgecolor": colour, "markeredgewidth": 0.7}
