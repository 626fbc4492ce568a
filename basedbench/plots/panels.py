"""Small multiples: as many panels as asked for in rows of equal width, no empty frames."""

import math

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from basedbench.plots.style import new_figure

_AROUND = 0.55  # inches for ticks and the note


def panel_grid(count: int, columns: int, height: float, width: str, share: bool) -> tuple[Figure, list[Axes]]:
    """A figure and its panels, row by row, each `height` inches; with `share` they have one scale, written once."""
    rows = math.ceil(count / columns)
    figure = new_figure(width, rows * height + _AROUND)
    grid = figure.subplots(rows, columns, sharex=share, sharey=share, squeeze=False)
    panels = list(grid.flat)
    for empty in panels[count:]:
        empty.remove()
    for panel in lowest(panels[:count], columns):
        panel.tick_params(axis="x", labelbottom=True)
    return figure, panels[:count]


def lowest(panels: list[Axes], columns: int) -> list[Axes]:
    """The lowest panel of each column."""
    return panels[-columns:]
