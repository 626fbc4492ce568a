"""`basedbench plot`: figures from stored rows. Nothing here needs a GPU, or torch."""

import textwrap
from collections.abc import Hashable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    import pandas as pd

    from basedbench.analysis.timings import Panel, Series

group = typer.Typer(help="Draw figures from stored rows.", no_args_is_help=True)

_Results = Annotated[Path, typer.Option(help="The results folder to read.")]
_Out = Annotated[Path | None, typer.Option(help="The .png, .svg or .pdf to write.  [default: RESULTS/<figure>.png]")]
_Suites = Annotated[list[str] | None, typer.Option("--suite", help="Only rows of this suite; may be repeated.")]
_Select = Annotated[str, typer.Option(help="best-lr: each model at its best learning rate; all: each learning rate.")]
_Width = Annotated[str, typer.Option(help="single or double: as wide as one or two columns of a paper.")]
_Json = Annotated[bool, typer.Option("--json", help="Print the numbers as JSON.")]

_BULKY = ["task", "recipe", "fingerprint", "samples_ms", "round_medians_ms", "round_sizes"]  # left out of --json


@group.command()
def pareto(
    results: _Results = Path("results"),
    x: Annotated[str, typer.Option(help="What recall costs: any numeric column, e.g. parameters.")] = "state_bytes",
    y: Annotated[str, typer.Option(help="accuracy, or of one slice: accuracy@K (pairs), accuracy@LxK.")] = "accuracy",
    suite: _Suites = None,
    out: _Out = None,
    select: _Select = "best-lr",
    published: Annotated[bool, typer.Option("--published", help="Add the published points, hollow.")] = False,
    table: Annotated[bool, typer.Option("--table", help="Set the table of all points under the figure.")] = False,
    width: _Width = "double",
    as_json: _Json = False,
) -> None:
    """Draw recall against state size, or another cost, with the frontier; list all points."""
    from basedbench import analysis
    from basedbench.analysis.decoding import COLUMN, with_decode_rate
    from basedbench.analysis.published import check_comparable
    from basedbench.errors import UserError
    from basedbench.plots import pareto as figures
    from basedbench.plots.scales import column_title
    from basedbench.plots.style import save
    from basedbench.plots.tables import point_table
    from basedbench.store import load

    path = _target(out, results, "pareto", width)
    frame = _recall_rows(results, suite)
    if x == COLUMN:
        frame = with_decode_rate(frame, load(results, "throughput"))
    analysis.check_accuracy(frame, y)
    if x == y:
        raise UserError(f"x and y are both {x!r}; recall is drawn against a cost, such as --x state_bytes.")
    if published:
        check_comparable(frame, x, y)
    points = analysis.select(frame, [x, y], select)
    points = analysis.against_published(points, x) if published else points
    shown = figures.drawable(points, x, y)
    note = analysis.selection_note(points, select)
    rows = point_table(shown, x, y)
    known = analysis.published() if published else None
    figure = figures.pareto(shown, x, y, note=note, published=known, table=rows if table else None, width=width)
    save(figure, path)
    if as_json:
        front = analysis.pareto_front(shown, x, y).index
        _print_json(path, frame, shown.assign(frontier=shown.index.isin(front)), x=x, y=y, note=note)
        return
    undrawn = len(points) - len(shown)
    notes = [note] + ([f"Not shown: {undrawn} without {x} above 0 and {y}."] if undrawn else [])
    _report(path, f"{column_title(y)}; * = on the frontier", rows[0], rows[1:], frame, notes)


@group.command()
def tradeoff(
    results: _Results = Path("results"),
    y: Annotated[str, typer.Option(help="accuracy, or of one slice: accuracy@K (pairs), accuracy@LxK.")] = "accuracy",
    suite: _Suites = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Sequences decoded at once.  [default: the most]")] = None,
    out: _Out = None,
    select: _Select = "best-lr",
    table: Annotated[bool, typer.Option("--table", help="Set the table of all points under the figure.")] = False,
    width: _Width = "double",
    as_json: _Json = False,
) -> None:
    """Draw recall against decoded tokens per second, with the frontier; `throughput --models SUITE` times them."""
    from basedbench import analysis
    from basedbench.analysis.decoding import COLUMN, decoding_note, with_decode_rate
    from basedbench.plots import pareto as figures
    from basedbench.plots.style import save
    from basedbench.plots.tables import point_table
    from basedbench.store import load

    path = _target(out, results, "tradeoff", width)
    frame, times = _recall_rows(results, suite), load(results, "throughput")
    analysis.check_accuracy(frame, y)
    points = with_decode_rate(analysis.select(frame, [y], select), times, batch)
    shown = figures.drawable(points, COLUMN, y)
    note = f"{analysis.selection_note(points, select)} {decoding_note(points, times)}"
    rows = point_table(shown, COLUMN, y)
    save(figures.pareto(shown, COLUMN, y, note=note, table=rows if table else None, width=width), path)
    if as_json:
        front = analysis.pareto_front(shown, COLUMN, y).index
        _print_json(path, frame, shown.assign(frontier=shown.index.isin(front)), x=COLUMN, y=y, note=note)
        return
    undrawn = len(points) - len(shown)
    notes = [note] + ([f"Not shown: {undrawn} that were not decoded."] if undrawn else [])
    _report(path, "Recall against decoded tokens per second; * = on the frontier", rows[0], rows[1:], frame, notes)


@group.command()
def slices(
    results: _Results = Path("results"),
    suite: _Suites = None,
    out: _Out = None,
    select: _Select = "best-lr",
    width: _Width = "double",
    as_json: _Json = False,
) -> None:
    """Draw accuracy against the number of key-value pairs, one line per model."""
    from basedbench import analysis
    from basedbench.analysis.naming import family_title, point_labels
    from basedbench.plots import slices as figures
    from basedbench.plots.style import save

    path = _target(out, results, "slices", width)
    frame = _recall_rows(results, suite)
    metrics = figures.slice_metrics(frame)
    points = analysis.select(frame, ["state_bytes", *metrics], select).sort_values(["family", "state_bytes"])
    note = analysis.selection_note(points, select)
    save(figures.slices(points, metrics, note=note, width=width), path)
    if as_json:
        _print_json(path, frame, points, note=note)
        return
    names = zip(points["family"], point_labels(points, always_width=True), strict=True)
    accuracies = points[metrics].itertuples(index=False)
    texts = ([f"{value:.3f}" for value in values] for values in accuracies)
    rows = [[family_title(family), label, *values] for (family, label), values in zip(names, texts, strict=True)]
    heading = ["family", "model", *(name.removeprefix("accuracy@") for name in metrics)]
    _report(path, "Recall accuracy by length x pairs", heading, rows, frame, [note])


@group.command()
def throughput(
    results: _Results = Path("results"),
    y: Annotated[str, typer.Option(help="time_per_token, tokens_per_s or median_ms.")] = "time_per_token",
    suite: _Suites = None,
    operator: Annotated[list[str] | None, typer.Option(help="Only this operator or model; may be repeated.")] = None,
    mode: Annotated[list[str] | None, typer.Option(help="Only this mode, e.g. decode; may be repeated.")] = None,
    out: _Out = None,
    width: _Width = "double",
    as_json: _Json = False,
) -> None:
    """Draw time per token against length, one line per contender, one panel per operator and mode."""
    from basedbench.analysis import timings as times
    from basedbench.analysis.suites import of_suites
    from basedbench.plots.style import save
    from basedbench.plots.throughput import throughput as draw
    from basedbench.store import load

    path = _target(out, results, "throughput", width)
    rows = times.timings(of_suites(load(results, "throughput"), suite or ()), y)
    for column, wanted in (("subject", operator), ("mode", mode)):
        rows = _only(rows, column, wanted)
    note = f"Medians; bars: 95% intervals. {times.shared_conditions(rows)}."
    save(draw(rows, y, note=note, width=width), path)
    if as_json:
        _print_json(path, rows, rows, y=y, note=note)
        return
    lines = [_series_line(panel, series, y) for panel in times.panels_of(rows) for series in panel.series]
    heading = ["operator", "mode", "contender", "shape", "at", y.replace("_", " "), "failed"]
    _report(path, "At the largest length (or batch) that was timed", heading, lines, rows, [note])


@group.command()
def generation(
    results: _Results = Path("results"),
    suite: _Suites = None,
    filter: Annotated[str | None, typer.Option(help="Only models whose name this regular expression finds.")] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Of the panel against context.  [default: 128]")] = None,
    context: Annotated[int | None, typer.Option(min=1, help="Of the panel against batch.  [default: 1024]")] = None,
    each: Annotated[
        bool, typer.Option("--each", help="A line for every implementation, not only the fastest.")
    ] = False,
    out: _Out = None,
    width: _Width = "double",
    as_json: _Json = False,
) -> None:
    """Draw tokens per second of whole models against batch and against context, one line per model."""
    from basedbench.analysis import language
    from basedbench.analysis.suites import of_suites
    from basedbench.plots.generation import generation as draw
    from basedbench.plots.style import save
    from basedbench.store import load

    path = _target(out, results, "generation", width)
    rows = language.language_rows(of_suites(load(results, "throughput"), suite or ()), "generation")
    rows = rows if each else language.fastest(rows)
    rows = language.named_like(rows, filter) if filter else rows
    at = {"batch": (batch, 128), "length": (context, 1024)}
    place = {name: given or language.usual(rows, name, usual) for name, (given, usual) in at.items()}
    language.check_place(rows, **place)
    note = language.conditions(rows)
    save(draw(rows, **place, note=note, width=width), path)
    if as_json:
        _print_json(path, rows, rows, note=note, **{name: str(value) for name, value in place.items()})
        return
    lines = [_generation_line(row) for row in rows.to_dict("records")]
    heading = ["model", "batch", "context", "tokens/s", "95 % interval", "state", "by"]
    _report(path, "Generation", heading, lines, rows, [note])


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.add_typer(group, name="plot")


def _target(out: Path | None, results: Path, name: str, width: str) -> Path:
    """Where the figure goes, checked before any work is done."""
    from basedbench.errors import UserError, nearest
    from basedbench.plots.style import WIDTHS, check_path

    if width not in WIDTHS:
        raise UserError(f"no width {width!r}: {nearest(width, WIDTHS)}")
    path = out or results / f"{name}.png"
    check_path(path)
    return path


def _recall_rows(results: Path, suites: list[str] | None) -> "pd.DataFrame":
    from basedbench.analysis.suites import check_one_test, of_suites
    from basedbench.store import load

    frame = of_suites(load(results, "recall"), suites or ())
    check_one_test(frame)
    return frame


def _only(rows: "pd.DataFrame", column: str, wanted: list[str] | None) -> "pd.DataFrame":
    from basedbench.errors import UserError, nearest

    known = sorted(rows[column].unique())
    for name in wanted or ():
        if name not in known:
            what = "operator" if column == "subject" else column
            raise UserError(f"there are no rows of {what} {name!r} here: {nearest(name, known)}")
    return rows[rows[column].isin(wanted)] if wanted else rows


def _series_line(panel: "Panel", series: "Series", measure: str) -> list[str]:
    """A line of the throughput table: the number at the largest length or batch, and what failed."""
    from basedbench.analysis.suites import counts_text, failures
    from basedbench.plots.scales import count_text, quantity

    first, done = series.rows.iloc[0], series.rows[series.rows["value"].notna()]
    last = [count_text(done[panel.x].iloc[-1]), quantity(done["value"].iloc[-1], measure)] if len(done) else ["-", "-"]
    shape = " ".join(filter(None, [panel.conditions, series.variant]))
    return [first["subject"], first["mode"], series.contender, shape, *last, counts_text(failures(series.rows))]


def _generation_line(row: dict[Hashable, Any]) -> list[str]:
    """A line of the generation table: a model at one batch and context."""
    from basedbench.plots.scales import quantity

    place = [str(row["name"]), f"{row['batch']:,}", f"{row['length']:,}"]
    if row["status"] != "ok":
        return [*place, str(row["status"]), "-", "-", str(row["contender"])]
    rates = [quantity(row[name], "tokens_per_s") for name in ("value", "low", "high")]
    return [*place, rates[0], f"{rates[1]} - {rates[2]}", quantity(row["state_bytes"], "bytes"), str(row["contender"])]


def _report(
    path: Path, title: str, heading: list[str], rows: list[list[str]], frame: "pd.DataFrame", notes: list[str]
) -> None:
    """The table, what it rests on, and where the figure is."""
    from basedbench.analysis.suites import counts_text, failures
    from basedbench.cli.tables import WIDTH, print_table

    print_table(title, heading, rows, whole=heading)
    failed = failures(frame)
    for note in [*notes, *([f"Failed: {counts_text(failed)}."] if failed else [])]:
        typer.echo(textwrap.fill(note, WIDTH))
    typer.echo(f"Figure: {path}")


def _print_json(path: Path, frame: "pd.DataFrame", points: "pd.DataFrame", **more: str) -> None:
    from basedbench.analysis.suites import failures
    from basedbench.cli.tables import print_json
    from basedbench.store.schema import decode_json

    points = points.drop(columns=_BULKY, errors="ignore")
    values = points.astype("object").where(points.notna(), None)
    rows = [decode_json(dict(zip(points.columns, row, strict=True))) for row in values.itertuples(index=False)]
    print_json({"figure": str(path), **more, "failed": failures(frame), "points": rows})
