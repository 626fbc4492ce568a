"""The slices figure: accuracy against the number of key-value pairs, one line per model, one panel per family."""

import math
import textwrap
from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Text

from basedbench.analysis.columns import slices as slices_of
from basedbench.analysis.naming import family_title, point_labels
from basedbench.errors import UserError
from basedbench.plots.panels import lowest, panel_grid
from basedbench.plots.scales import set_ticks
from basedbench.plots.style import (
    INK,
    MUTED,
    SMALL,
    TINY,
    WIDTHS,
    Look,
    Mark,
    add_note,
    as_written,
    freeze,
    marks,
    style_axes,
)

_COLUMNS = {"single": 1, "double": 3}
_HEIGHT, _LINE = 1.55, 0.1  # inches: of a panel, of a label
_LETTERS = 15  # of a title, per inch of a panel's share of the width
_PALEST = 0.55  # how far towards white the model with the least state is drawn


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
    style = marks(points["family"])
    most = int(points["family"].value_counts().max())
    height = max(_HEIGHT, (most + 2) * _LINE)
    columns = min(_COLUMNS[width], len(style))
    figure, panels = panel_grid(len(style), columns, height, width, share=True)
    sizes = [name.removeprefix("accuracy@").split("x") for name in metrics]
    for panel in lowest(panels, columns):
        panel.set_xlabel("key-value pairs\nin sequences of length", size=TINY, color=MUTED, loc="left")
    for panel, (name, mark) in zip(panels, style.items(), strict=True):
        title = textwrap.wrap(family_title(name), int(_LETTERS * WIDTHS[width] / columns))
        _set_axes(panel, sizes, "\n".join(title))
        _draw_models(panel, points[points["family"] == name].sort_values("state_bytes"), metrics, mark)
    figure.supylabel("Recall accuracy", size=SMALL, color=INK)
    add_note(figure, note)
    freeze(figure)
    for panel, (name, mark) in zip(panels, style.items(), strict=True):
        _name_models(panel, points[points["family"] == name].sort_values("state_bytes"), metrics, mark)
    return figure


def _set_axes(axes: Axes, sizes: Sequence[Sequence[str]], title: str) -> None:
    style_axes(axes)
    pairs = [int(pairs) for _, pairs in sizes]
    axes.set_xscale("log", base=2)
    # A third of the width is for the names at the right.
    span = max(pairs[-1] / pairs[0], 4)
    axes.set(xlim=(pairs[0] / span**0.05, pairs[-1] * span**0.45), ylim=(-0.03, 1.03))
    axes.set_title(title, size=SMALL, color=INK, loc="left", pad=3)
    set_ticks(axes.xaxis, pairs, [f"{pairs}\n{length}" for length, pairs in sizes])
    axes.tick_params(axis="x", labelsize=TINY - 0.5)
    axes.spines["bottom"].set_bounds(axes.get_xlim()[0], pairs[-1])


def _draw_models(axes: Axes, family: pd.DataFrame, metrics: Sequence[str], mark: Mark) -> None:
    pairs = axes.get_xticks()
    for (_, point), colour in zip(family.iterrows(), _shades(mark, len(family)), strict=True):
        look: Look = {"color": colour, "linewidth": 1.1, "zorder": 3}
        axes.plot(pairs, [point[name] for name in metrics], **look, **mark.shape(2.8) | {"markerfacecolor": colour})
        for at, name in zip(pairs, metrics, strict=True):
            if math.isfinite(point[f"{name}_low"]):
                ends = max(point[f"{name}_low"], 0), min(point[f"{name}_high"], 1)
                axes.plot([at, at], ends, color=colour, linewidth=0.7, zorder=2, label="interval")


def _name_models(axes: Axes, family: pd.DataFrame, metrics: Sequence[str], mark: Mark) -> None:
    """Names at the right, each as near to the end of its line as the others allow, tied to it by a hair line."""
    last = family[metrics[-1]].to_numpy()
    inches = axes.get_window_extent().height / axes.figure.dpi
    heights = spread(last, _LINE / inches * 1.06, 0.0, 1.0)
    end, right = axes.get_xticks()[-1], axes.get_xlim()[1]
    start = end * (right / end) ** 0.22
    shades = _shades(mark, len(family))
    for value, height, label, colour in zip(last, heights, point_labels(family), shades, strict=True):
        if math.isfinite(value):
            axes.plot([end, start], [value, height], color=colour, linewidth=0.5, zorder=1, label="leader")
            text = axes.text(start, height, " " + label, size=TINY, color=mark.ink, va="center", clip_on=False)
            _shorten(text, axes.get_window_extent().x1)


def _shorten(text: Text, edge: float) -> None:
    """Cut a name off, visibly, where the next panel begins; the table has it whole."""
    name = text.get_text()
    while len(name) > 1 and text.get_window_extent().x1 > edge:
        name = name[:-1].rstrip()
        text.set_text(name + "…")


def spread(wanted: np.ndarray, gap: float, low: float, high: float) -> np.ndarray:
    """Places as near to the wanted ones as is possible at least `gap` apart and, if there is room, within low..high."""
    order = np.argsort(wanted, kind="stable")
    steps = np.arange(len(order)) * gap
    # Without the gaps already taken, the places only have to rise: pool neighbours that do not (isotonic regression).
    free = np.clip(_rising(wanted[order] - steps), low, max(low, high - steps[-1]))
    placed = np.empty(len(order))
    placed[order] = free + steps
    return placed


def _rising(values: np.ndarray) -> np.ndarray:
    """The nearest non-decreasing sequence in least squares: pool adjacent violators."""
    pools: list[tuple[float, int]] = []
    for value in values:
        mean, count = float(value), 1
        while pools and pools[-1][0] > mean:
            before, size = pools.pop()
            mean, count = (before * size + mean * count) / (size + count), size + count
        pools.append((mean, count))
    return np.concatenate([np.full(count, mean) for mean, count in pools])


def _shades(mark: Mark, count: int) -> list[str]:
    """The family's colour, from pale to full."""
    paleness = np.linspace(_PALEST, 0.0, count) if count > 1 else [0.0]
    red, green, blue = to_rgb(mark.colour)
    return [to_hex((red + (1 - red) * p, green + (1 - green) * p, blue + (1 - blue) * p)) for p in paleness]
