"""The points of the frontier figure as a table: texts for the terminal, and the same set beneath the figure."""

import math
from collections.abc import Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.text import Text

from basedbench.analysis.frontier import pareto_front
from basedbench.analysis.markdown import signed
from basedbench.analysis.naming import family_title, point_labels
from basedbench.plots.scales import quantity, short_title
from basedbench.plots.style import INK, MUTED, TINY, Look

ON_FRONTIER = "*"
_LINE = 0.125  # inches
_SIDE_BY_SIDE = 7  # columns of a block of which two fit beside each other


def point_table(points: pd.DataFrame, x: str, y: str) -> list[list[str]]:
    """Header and one row of texts per point, by x; a star marks those on the frontier."""
    front = set(pareto_front(points, x, y).index)
    points = points.sort_values([x, y], kind="stable")
    extras = [name for name in ("published", "difference") if name in points.columns]
    rows = [["", "family", "model", short_title(x), short_title(y), "lr", "seeds", *extras]]
    labels = point_labels(points, always_width=True)
    for (index, point), label in zip(points.iterrows(), labels, strict=True):
        row = [ON_FRONTIER if index in front else "", family_title(point["family"]), label]
        row += [quantity(point[x], x), _with_interval(point, y), f"{point['learning_rate']:.3g}", seeds_text(point)]
        written = {"published": _accuracy, "difference": signed}
        rows.append(row + [written[name](point[name]) for name in extras])
    return rows


def table_height(rows: Sequence[Sequence[str]], width: str) -> float:
    """Inches the table takes under a figure of that width, heading included."""
    return (math.ceil((len(rows) - 1) / _blocks(rows, width)) + 1.5) * _LINE


def draw_table(axes: Axes, rows: Sequence[Sequence[str]], width: str) -> None:
    """Set the rows into axes made for it, on a double width in two blocks if they fit; the frontier in bold.

    The layout must be final: texts are measured to space the columns.
    """
    count = _blocks(rows, width)
    lines = math.ceil((len(rows) - 1) / count)
    blocks = [[rows[0], *rows[1 + block * lines : 1 + (block + 1) * lines]] for block in range(count)]
    texts = [_set_block(axes, block, lines + 1.5) for block in blocks]
    frame = axes.get_window_extent().width
    columns = list(zip(*(row for block in texts for row in block), strict=True))
    widths = [max(text.get_window_extent().width for text in column) / frame for column in columns]
    gap = (1 / count - sum(widths)) / len(widths)
    for number, block in enumerate(texts):
        for row in block:
            for column, text in enumerate(row):
                text.set_x(number / count + sum(widths[:column]) + column * gap)


def _blocks(rows: Sequence[Sequence[str]], width: str) -> int:
    return 2 if width == "double" and len(rows[0]) <= _SIDE_BY_SIDE else 1


def _set_block(axes: Axes, block: Sequence[Sequence[str]], lines: float) -> list[list[Text]]:
    """The texts of one block, line under line, all still at the left edge."""
    texts = []
    for line, row in enumerate(block):
        face: Look = {"color": MUTED} if line == 0 else {"color": INK, "weight": "bold" if row[0] else "normal"}
        place: Look = {"y": 1 - (line + 0.5) / lines, "va": "center", "transform": axes.transAxes}
        texts.append([axes.text(x=0, s=word, size=TINY, **place, **face) for word in row])
    return texts


def _with_interval(point: pd.Series, y: str) -> str:
    half = (point[f"{y}_high"] - point[f"{y}_low"]) / 2
    return _accuracy(point[y]) + (f" ±{half:.3f}" if math.isfinite(half) else "")


def _accuracy(value: float) -> str:
    return f"{value:.3f}" if math.isfinite(value) else "-"


def seeds_text(point: pd.Series) -> str:
    """`3`, or `2 of 3` where one diverged."""
    return f"{point['seeds']}" + (f" of {point['seeds'] + point['diverged']}" if point["diverged"] else "")
