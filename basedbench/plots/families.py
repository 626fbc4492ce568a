"""Small multiples with a panel for each family, its models from the least state to the most, named at their ends."""

import textwrap
from typing import NamedTuple

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from basedbench.analysis.naming import family_title
from basedbench.plots.ends import LINE
from basedbench.plots.panels import lowest, panel_grid
from basedbench.plots.style import INK, MUTED, SMALL, TINY, WIDTHS, Mark, marks, style_axes

_COLUMNS = {"single": 1, "double": 3}
_HEIGHT = 1.55  # inches, of a panel
_LETTERS = 15  # of a title, per inch of a panel's share of the width


class Panel(NamedTuple):
    """A family's panel; `models` are its points, those with the least state first."""

    axes: Axes
    models: pd.DataFrame
    mark: Mark


def family_panels(points: pd.DataFrame, width: str, x: str, y: str) -> tuple[Figure, list[Panel]]:
    """A figure with a titled panel for each family, high enough for the names of its models; x and y name the axes."""
    style = marks(points["family"])
    families = [points[points["family"] == name].sort_values("state_bytes") for name in style]
    columns = min(_COLUMNS[width], len(style))
    height = max(_HEIGHT, (max(map(len, families)) + 2) * LINE)
    figure, panels = panel_grid(len(style), columns, height, width, share=True)
    for axes, name in zip(panels, style, strict=True):
        style_axes(axes)
        title = textwrap.wrap(family_title(name), int(_LETTERS * WIDTHS[width] / columns))
        axes.set_title("\n".join(title), size=SMALL, color=INK, loc="left", pad=3)
    for axes in lowest(panels, columns):
        axes.set_xlabel(x, size=TINY, color=MUTED, loc="left")
    figure.supylabel(y, size=SMALL, color=INK)
    return figure, [Panel(*one) for one in zip(panels, families, style.values(), strict=True)]
