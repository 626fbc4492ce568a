"""The throughput figure: time per token against length, one line per contender, one panel per operator and mode."""

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from basedbench.analysis.timings import Panel, Series, panels_of
from basedbench.errors import UserError
from basedbench.plots.panels import panel_grid
from basedbench.plots.scales import column_title, count_text, log_axis, set_ticks
from basedbench.plots.style import (
    INK,
    MUTED,
    SMALL,
    TINY,
    Look,
    Mark,
    add_note,
    as_written,
    freeze,
    legend_above,
    marks,
    style_axes,
)

MOST_PANELS = 24
_COLUMNS = {"single": 1, "double": 3}
_HEIGHT = {1: 2.4, 2: 2.2, 3: 1.9}  # inches, by the number of columns
_FAILURE_LINE = 0.105  # inches; a row of panels is higher by as many of them as it needs
_MARKER = 3.6  # points
_TICKS = 5
_DASHES = ("-", "--", ":", "-.")
_FAILED: Look = {"marker": "x", "markersize": 3.6, "markeredgewidth": 1.0, "linestyle": "none"}


def throughput(rows: pd.DataFrame, measure: str = "time_per_token", *, note: str = "", width: str = "double") -> Figure:
    """The figure for rows as `analysis.timings` returns them for `measure`.

    Bars are the rows' intervals; failures stand as crosses above the axis, with their status. `note` stands beneath;
    `width` is "single" or "double". Raises UserError for no rows, or more panels than a figure can hold.
    """
    panels = panels_of(rows)
    if not 1 <= len(panels) <= MOST_PANELS:
        raise UserError(
            f"these rows make {len(panels)} panels and a figure holds 1 to {MOST_PANELS}; "
            "choose some with --suite, --operator, --mode or --filter."
        )
    style = marks(series.name for panel in panels for series in panel.series)
    dashes = _dashes({series.variant for panel in panels for series in panel.series})
    return draw_panels(panels, measure, style, dashes, note=note, width=width)


@as_written
def draw_panels(
    panels: Sequence[Panel],
    measure: str,
    style: dict[str, Mark],
    dashes: dict[str, str],
    *,
    note: str = "",
    width: str = "double",
    columns: int = 3,
) -> Figure:
    """Panels side by side, at most `columns` in a row: lines with intervals, failures above them, one legend.

    `style` has a mark for every series' name, `dashes` a kind of line for every variant; the mark has the others'.
    """
    columns = min(_COLUMNS[width], len(panels), columns)
    lines = [len(_failing(panel)) for panel in panels]
    bands = [_FAILURE_LINE * max(lines[first : first + columns]) for first in range(0, len(lines), columns)]
    figure, axes = panel_grid(len(panels), columns, _HEIGHT[columns], width, share=False, more=bands)
    for place, panel in zip(axes, panels, strict=True):
        _set_axes(place, panel, measure)
        _draw_series(place, panel, style, dashes)
    figure.supylabel(column_title(measure), size=SMALL, color=INK)
    _draw_legend(figure, style, dashes)
    add_note(figure, note)
    freeze(figure)
    for place, panel in zip(axes, panels, strict=True):
        _draw_failures(place, panel, style)
    return figure


def _dashes(variants: set[str]) -> dict[str, str]:
    """A kind of line for every shape, `B 2` before `B 16`; a line that stands for no special shape is solid."""
    ordered = sorted(variants - {""}, key=lambda text: [(len(word), word) for word in text.split()])
    return {"": "-"} | {variant: _DASHES[index % len(_DASHES)] for index, variant in enumerate(ordered)}


def _failing(panel: Panel) -> list[tuple[str, str, list[float]]]:
    """Name, status and places of every contender's failures, one entry for each status (`oom`, `oom (B 128)`)."""
    found: dict[tuple[str, str], list[Series]] = {}
    for series in panel.series:
        for status in series.rows["status"].unique():
            if status != "ok":
                found.setdefault((series.name, status), []).append(series)
    entries = []
    for (name, status), failing in found.items():
        alone = len(failing) == 1 and sum(series.name == name for series in panel.series) > 1
        places = {at for one in failing for at in one.rows.loc[one.rows["status"] == status, panel.x]}
        entries.append((name, f"{status} ({failing[0].variant})" if alone else status, sorted(places)))
    return entries


def _set_axes(axes: Axes, panel: Panel, measure: str) -> None:
    """Both axes logarithmic, over what was timed."""
    style_axes(axes)
    rows = pd.concat([series.rows for series in panel.series])
    places = sorted(rows[panel.x].dropna().unique())
    margin = max((places[-1] / places[0]) ** 0.06, 1.2)
    axes.set(xscale="log", xlim=(places[0] / margin, places[-1] * margin))
    ticks = places[:: math.ceil(len(places) / _TICKS)]
    set_ticks(axes.xaxis, ticks, [count_text(at) for at in ticks], minor=places)
    context = panel.x == "length" and rows["mode"].isin(["decode", "generation"]).all()
    axes.set_xlabel("context length" if context else panel.x, size=TINY, color=MUTED, labelpad=1)
    low, high = rows[["value", "low"]].min().min(), rows[["value", "high"]].max().max()
    timed = np.isfinite(low)
    low, high = (low, high) if timed else (1.0, 1.0)  # nothing but failures
    low, high = low / max((high / low) ** 0.06, 1.2), high * max((high / low) ** 0.06, 1.2)
    log_axis(axes.yaxis, low, high, measure, 6)
    if not timed:
        set_ticks(axes.yaxis, [], [])
    axes.set_title(panel.title, size=SMALL, color=INK, loc="left", pad=11)
    words = ", ".join(filter(None, [panel.mode, panel.conditions]))
    subtitle = axes.annotate(words, (0, 1), (0, 2), "axes fraction", "offset points", size=TINY, color=MUTED)
    subtitle.set_in_layout(False)
    axes.title.set_in_layout(False)


def _draw_series(axes: Axes, panel: Panel, style: dict[str, Mark], dashes: dict[str, str]) -> None:
    for series in panel.series:
        done = series.rows[series.rows["value"].notna()]
        mark = style[series.name]
        look: Look = {"color": mark.colour, "linewidth": 1.1, "label": series.name}
        look |= {"linestyle": dashes.get(series.variant, mark.line)}
        rim: Look = {"markeredgecolor": "white", "markeredgewidth": 0.3}
        axes.plot(done[panel.x], done["value"], zorder=3, **look, **mark.shape(_MARKER), **rim)
        # An end that is not known, of a few rounds far apart, lies beyond the edge.
        ends = done[[panel.x, "low", "high"]].dropna(how="all", subset=["low", "high"])
        ends = ends.fillna(dict(zip(("low", "high"), axes.get_ylim(), strict=True)))
        for at, low, high in ends.itertuples(index=False):
            bar: Look = {"color": mark.colour, "linewidth": 0.8, "marker": "_", "markersize": 3, "label": "interval"}
            axes.plot([at, at], [low, high], zorder=2, **bar)


def _draw_failures(axes: Axes, panel: Panel, style: dict[str, Mark]) -> None:
    """Crosses in a band above the axis, a line for each contender and status, with that beside or amid them."""
    failing, pixels, frame = _failing(panel), axes.figure.dpi / 72, axes.get_window_extent()
    step = _FAILURE_LINE * axes.figure.dpi / frame.height
    _end_axis(axes, 1 - step * len(failing))
    for line, (name, status, places) in enumerate(failing):
        height = 1 - (line + 0.5) * step
        crosses: Look = {
            "color": style[name].colour,
            "transform": axes.get_xaxis_transform(),
            "label": f"{name}: {status}",
        }
        axes.plot(places, [height] * len(places), **_FAILED, **crosses)
        text = axes.text(0, height, status, size=TINY, color=style[name].ink, va="center", transform=axes.transAxes)
        extent = text.get_window_extent().width + 5 * pixels
        first, last = (axes.transData.transform((at, 1))[0] for at in (places[0], places[-1]))
        if first - extent > frame.x0:
            text.set(x=(first - 5 * pixels - frame.x0) / frame.width, ha="right")
        elif last + extent < frame.x1:
            text.set(x=(last + 5 * pixels - frame.x0) / frame.width, ha="left")
        else:
            text.set(x=((first + last) / 2 - frame.x0) / frame.width, ha="center")
            text.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 1.0})


def _end_axis(axes: Axes, end: float) -> None:
    """Let the vertical axis end at this share of the frame: its scale, ticks and line say nothing of what is above."""
    low, high = axes.get_ylim()
    axes.set_ylim(low, low * (high / low) ** (1 / end))
    axes.spines["left"].set_bounds(low, high)


def _draw_legend(figure: Figure, style: dict[str, Mark], dashes: dict[str, str]) -> None:
    """Contenders by colour and marker, shapes by the kind of line."""
    entries = []
    for name, mark in style.items():
        look: Look = {"color": mark.colour, "linewidth": 1.1, "linestyle": dashes.get("", mark.line)}
        entries.append(Line2D([], [], label=name, **look, **mark.shape(_MARKER)))
    for variant, dash in dashes.items():
        plain: Look = {"color": MUTED, "linewidth": 1.1, "linestyle": dash}
        entries += [Line2D([], [], label=variant, **plain)] if variant else []
    legend_above(figure, entries)
