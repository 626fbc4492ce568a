"""Small multiples: as many panels as asked for in rows of equal width, no empty frames."""

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from basedbench.plots.style import new_figure

_AROUND = 0.55  # inches for ticks and the note
_FRAME = 0.7  # of a panel's height, about


def panel_grid(
    count: int, columns: int, height: float, width: str, share: bool, more: Sequence[float] = ()
) -> tuple[Figure, list[Axes]]:
    """A figure and its panels, row by row, each `height` inches; with `share` they have one scale, written once.

    `more` are the inches by which each row's frames are higher than those of others.
    """
    rows = math.ceil(count / columns)
    more = more or [0.0] * rows
    figure = new_figure(width, rows * height + sum(more) + _AROUND)
    ratios = [_FRAME * height + inches for inches in more]
    grid = figure.subplots(rows, columns, sharex=share, sharey=share, squeeze=False, height_ratios=ratios)
    panels = list(grid.flat)
    for empty in panels[count:]:
        empty.remove()
    for panel in lowest(panels[:count], columns):
        panel.tick_params(axis="x", labelbottom=True)
    return figure, panels[:count]


def lowest(panels: list[Axes], columns: int) -> list[Axes]:
    """The lowest panel of each column."""
    return panels[-columns:]
