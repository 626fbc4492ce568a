"""The generation figure: tokens per second of whole models against batch and against context, a row for each size."""

from collections.abc import Iterator, Sequence
from itertools import chain

import pandas as pd
from matplotlib.figure import Figure

from basedbench.analysis.language import at_place
from basedbench.analysis.timings import Panel, Series
from basedbench.errors import UserError
from basedbench.plots.style import Mark, marks
from basedbench.plots.throughput import draw_panels

MEASURE = "tokens_per_s"
MOST_LINES = 12  # in a panel
_MARKERS = ("o", "s", "D", "P", "X", "<", ">", "p", "h", "*")
_LINES = ("-", "--", ":", "-.")


def generation(rows: pd.DataFrame, batch: int, length: int, *, note: str = "", width: str = "double") -> Figure:
    """The figure for rows as `analysis.language.language_rows` returns them.

    Left against batch at context `length`, right against context at `batch`; a panel with one place only is left out if
    there are others, or if one before it shows the same. Bars are the rows' intervals, crosses along the top what
    failed. Raises UserError if there are more lines than a panel can hold.
    """
    names = zip(rows["name"], rows["size"], strict=True)  # the panel says the size
    rows = rows.assign(name=[name.replace(f"-{size}", "", 1) if size else name for name, size in names])
    panels = [panel for size in dict.fromkeys(rows["size"]) for panel in _panels(rows, size, batch, length)]
    panels = [panel for panel in panels if _places(panel)]  # not every size is timed at this context
    panels = [panel for panel in panels if _places(panel) > 1] or _distinct(panels)
    most = max(len(panel.series) for panel in panels)
    if most > MOST_LINES:
        raise UserError(f"{most} lines in a panel are more than {MOST_LINES}; choose models with --filter.")
    return draw_panels(panels, MEASURE, _style(rows), {}, note=note, width=width, columns=2)


def _panels(rows: pd.DataFrame, size: str, batch: int, length: int) -> Iterator[Panel]:
    """Both panels of one size of models."""
    models = rows[rows["size"] == size]
    title = f"{size.upper()} models" if size else "Models"
    by_batch = pd.concat([at_place(models, one, length) for one in sorted(models["batch"].unique())])
    yield Panel(title, f"at context {length:,}", "", "batch", tuple(_series(by_batch, "batch")))
    by_length = models[models["batch"] == batch]
    if len(by_length):
        yield Panel(title, f"at batch {batch:,}", "", "length", tuple(_series(by_length, "length")))


def _series(rows: pd.DataFrame, x: str) -> Iterator[Series]:
    for name, line in rows.groupby("name", sort=False):
        yield Series(str(name), str(line["contender"].iloc[0]), "", line.sort_values(x))


def _distinct(panels: Sequence[Panel]) -> list[Panel]:
    """The first of those that show the same points."""
    found: dict[object, Panel] = {}
    for panel in panels:
        points = (series.rows[["name", "batch", "length"]].itertuples(index=False) for series in panel.series)
        found.setdefault((panel.title, frozenset(chain.from_iterable(points))), panel)
    return [*found.values()]


def _places(panel: Panel) -> int:
    return len({at for series in panel.series for at in series.rows[panel.x]})


def _style(rows: pd.DataFrame) -> dict[str, Mark]:
    """A colour for each family; its models differ in marker and kind of line."""
    families = marks(dict.fromkeys(rows["family"]))
    style: dict[str, Mark] = {}
    for family, mark in families.items():
        markers = [mark.marker, *(one for one in _MARKERS if one != mark.marker)]
        names = list(dict.fromkeys(rows.loc[rows["family"] == family, "name"]))
        for index, name in enumerate(names):
            style[name] = Mark(mark.colour, markers[index % len(markers)], _LINES[index % len(_LINES)])
    return style
