"""What `basedbench plot` prints beside its figures: a table, or JSON."""

import textwrap
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import pandas as pd
import typer

from basedbench import analysis
from basedbench.analysis.naming import family_title, point_labels
from basedbench.analysis.suites import counts_text, doubts_note, failures
from basedbench.analysis.timings import Panel, Series
from basedbench.cli.tables import WIDTH, print_json, print_table
from basedbench.errors import UserError, visible
from basedbench.plots import pareto as figures
from basedbench.plots.scales import count_text, quantity
from basedbench.plots.style import save
from basedbench.plots.tables import point_table, seeds_text
from basedbench.store.schema import decode_json

HALFWAY = "Halfway: the first epoch at least halfway from chance to the value of the last. *: stopped early."
_BULKY = ["task", "recipe", "fingerprint", "samples_ms", "round_medians_ms", "round_sizes"]  # left out of JSON


def frontier(
    path: Path,
    frame: pd.DataFrame,
    points: pd.DataFrame,
    x: str,
    y: str,
    title: str,
    note: str,
    lacking: str,
    *,
    table: bool,
    width: str,
    as_json: bool,
    published: pd.DataFrame | None = None,
) -> None:
    """Draw the points of recall rows with their frontier, and list them; `lacking` says what undrawn ones are."""
    shown = figures.drawable(points, x, y)
    if shown.empty and (doubts := doubts_note(frame)):
        raise UserError(f"no point has both {x} and {y}. {doubts}")
    rows = point_table(shown, x, y)
    drawn = figures.pareto(shown, x, y, note=note, published=published, table=rows if table else None, width=width)
    save(drawn, path)
    if as_json:
        front = analysis.pareto_front(shown, x, y).index
        print_points(path, frame, shown.assign(frontier=shown.index.isin(front)), x=x, y=y, note=note)
        return
    undrawn = len(points) - len(shown)
    notes = [note] + ([f"Not shown: {undrawn} {lacking}."] if undrawn else [])
    report(path, f"{title}; * = on the frontier", rows[0], rows[1:], frame, notes)


def curve_lines(points: pd.DataFrame) -> list[list[str]]:
    """The lines of the curves table: where each model's curve begins and ends, and when it has come halfway."""
    lines = []
    for (_, point), label in zip(points.iterrows(), point_labels(points, always_width=True), strict=True):
        mean, stop = point["mean"], " *" if point["stopped"] else ""
        halfway = "-" if point["halfway"] is None else str(point["halfway"])
        line = [family_title(point["family"]), label, f"{point['learning_rate']:.3g}", seeds_text(point)]
        lines.append([*line, f"{len(mean)}{stop}", f"{mean[0]:.3f}", f"{mean[-1]:.3f}", halfway])
    return lines


def series_line(panel: Panel, series: Series, measure: str) -> list[str]:
    """A line of the throughput table: the number at the largest length or batch, and what failed."""
    first, done = series.rows.iloc[0], series.rows[series.rows["value"].notna()]
    last = [count_text(done[panel.x].iloc[-1]), quantity(done["value"].iloc[-1], measure)] if len(done) else ["-", "-"]
    shape = " ".join(filter(None, [panel.conditions, series.variant]))
    return [first["subject"], first["mode"], series.contender, shape, *last, counts_text(failures(series.rows))]


def generation_line(row: dict[Hashable, Any]) -> list[str]:
    """A line of the generation table: a model at one batch and context."""
    place = [str(row["name"]), f"{row['batch']:,}", f"{row['length']:,}"]
    if row["status"] != "ok":
        return [*place, str(row["status"]), "-", "-", str(row["contender"])]
    rate, low, high = (quantity(row[name], "tokens_per_s") for name in ("value", "low", "high"))
    interval = (
        f"{low} - {high}" if row["high"] == row["high"] else f"over {low}"
    )  # a time's interval reaches below zero
    return [*place, rate, interval, quantity(row["state_bytes"], "bytes"), str(row["contender"])]


def report(
    path: Path, title: str, heading: list[str], rows: list[list[str]], frame: pd.DataFrame, notes: list[str]
) -> None:
    """The table, what it rests on, and where the figure is."""
    print_table(title, heading, rows, whole=heading)
    failed = failures(frame)
    for note in [*notes, *([f"Failed: {counts_text(failed)}."] if failed else [])]:
        typer.echo(textwrap.fill(visible(note), WIDTH))
    typer.echo(f"Figure: {path}")


def print_points(path: Path, frame: pd.DataFrame, points: pd.DataFrame, **more: str) -> None:
    """The points as JSON, with what else there is to say."""
    points = points.drop(columns=_BULKY, errors="ignore")
    values = points.astype("object").where(points.notna(), None)
    rows = [decode_json(dict(zip(points.columns, row, strict=True))) for row in values.itertuples(index=False)]
    print_json({"figure": str(path), **more, "failed": failures(frame), "points": rows})
