"""`basedbench plot`: figures from stored rows. Nothing here needs a GPU, or torch."""

import os
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    import pandas as pd

group = typer.Typer(help="Draw figures from stored rows.", no_args_is_help=True)


@group.callback()
def _figures() -> None:
    os.environ["MPLBACKEND"] = "agg"  # figures are only written; a notebook's terminal may name what is not here


_Results = Annotated[Path, typer.Option(help="The results folder to read.")]
_Out = Annotated[Path | None, typer.Option(help="The .png, .svg or .pdf to write. Default: RESULTS/<figure>.png.")]
_Suites = Annotated[list[str] | None, typer.Option("--suite", help="Only rows of this suite; may be repeated.")]
_Precisions = Annotated[
    list[str] | None, typer.Option("--precision", help="Only rows of runs in fp32, tf32 or bf16; may be repeated.")
]
_Select = Annotated[str, typer.Option(help="best-lr: each model at its best learning rate; all: each learning rate.")]
_Width = Annotated[str, typer.Option(help="single or double: as wide as one or two columns of a paper.")]
_Json = Annotated[bool, typer.Option("--json", help="Print the numbers as JSON.")]


@group.command()
def pareto(
    results: _Results = Path("results"),
    x: Annotated[str, typer.Option(help="What recall costs: any numeric column, e.g. parameters.")] = "state_bytes",
    y: Annotated[str, typer.Option(help="accuracy, or of one slice: accuracy@K (pairs), accuracy@LxK.")] = "accuracy",
    suite: _Suites = None,
    precision: _Precisions = None,
    out: _Out = None,
    select: _Select = "best-lr",
    published: Annotated[bool, typer.Option("--published", help="Add the published points, hollow.")] = False,
    table: Annotated[bool, typer.Option("--table", help="Set the table of all points under the figure.")] = False,
    width: _Width = "double",
    as_json: _Json = False,
) -> None:
    """Draw recall against state size, or another cost, with the frontier; list all points."""
    from basedbench import analysis
    from basedbench.analysis.decoding import COLUMN
    from basedbench.analysis.points import chosen
    from basedbench.analysis.published import check_comparable
    from basedbench.cli.plot_report import frontier
    from basedbench.errors import UserError
    from basedbench.plots.scales import column_title

    path = _target(out, results, "pareto", width)
    frame = _recall_rows(results, suite, precision)
    times = _decode_rows(results, frame) if x == COLUMN else None
    if x == y:
        raise UserError(f"x and y are both {x!r}; recall is drawn against a cost, such as --x state_bytes.")
    if published:
        check_comparable(frame, x, y)
    points = chosen(frame, x, y, select, times)
    points = analysis.against_published(points, x) if published else points
    known = analysis.published() if published else None
    note = _note(frame, analysis.selection_note(points, select), None if times is None else points)
    title, lacking = column_title(y), f"without {x} above 0 and {y}"
    frontier(
        path, frame, points, x, y, title, note, lacking, published=known, table=table, width=width, as_json=as_json
    )


@group.command()
def tradeoff(
    results: _Results = Path("results"),
    y: Annotated[str, typer.Option(help="accuracy, or of one slice: accuracy@K (pairs), accuracy@LxK.")] = "accuracy",
    suite: _Suites = None,
    precision: _Precisions = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Sequences decoded at once. Default: the most.")] = None,
    out: _Out = None,
    select: _Select = "best-lr",
    table: Annotated[bool, typer.Option("--table", help="Set the table of all points under the figure.")] = False,
    width: _Width = "double",
    as_json: _Json = False,
) -> None:
    """Draw recall against decoded tokens per second, with the frontier; `throughput --models SUITE` times them."""
    from basedbench import analysis
    from basedbench.analysis.decoding import COLUMN
    from basedbench.analysis.points import chosen
    from basedbench.cli.plot_report import frontier

    path = _target(out, results, "tradeoff", width)
    frame = _recall_rows(results, suite, precision)
    times = _decode_rows(results, frame)
    points = chosen(frame, COLUMN, y, select, times, batch)
    note = _note(frame, analysis.selection_note(points, select), points)
    words = ("Recall against decoded tokens per second", note, "that were not decoded")
    frontier(path, frame, points, COLUMN, y, *words, table=table, width=width, as_json=as_json)


@group.command()
def slices(
    results: _Results = Path("results"),
    suite: _Suites = None,
    precision: _Precisions = None,
    out: _Out = None,
    select: _Select = "best-lr",
    width: _Width = "double",
    as_json: _Json = False,
) -> None:
    """Draw accuracy against the number of key-value pairs, one line per model."""
    from basedbench import analysis
    from basedbench.analysis.naming import family_title, point_labels
    from basedbench.cli.plot_report import print_points, report
    from basedbench.plots import slices as figures
    from basedbench.plots.style import save

    path = _target(out, results, "slices", width)
    frame = _recall_rows(results, suite, precision)
    metrics = figures.slice_metrics(frame)
    points = analysis.select(frame, ["state_bytes", *metrics], select).sort_values(["family", "state_bytes"])
    note = _note(frame, analysis.selection_note(points, select))
    save(figures.slices(points, metrics, note=note, width=width), path)
    if as_json:
        print_points(path, frame, points, note=note)
        return
    names = zip(points["family"], point_labels(points, always_width=True), strict=True)
    accuracies = points[metrics].itertuples(index=False)
    texts = ([f"{value:.3f}" for value in values] for values in accuracies)
    rows = [[family_title(family), label, *values] for (family, label), values in zip(names, texts, strict=True)]
    heading = ["family", "model", *(name.removeprefix("accuracy@") for name in metrics)]
    report(path, "Recall accuracy by length x pairs", heading, rows, frame, [note])


@group.command()
def curves(
    results: _Results = Path("results"),
    y: Annotated[str, typer.Option(help="accuracy, of one slice accuracy@K or accuracy@LxK, or loss.")] = "accuracy",
    suite: _Suites = None,
    precision: _Precisions = None,
    filter: Annotated[str | None, typer.Option(help="Only runs whose label this regular expression finds.")] = None,
    out: _Out = None,
    select: _Select = "best-lr",
    width: _Width = "double",
    as_json: _Json = False,
) -> None:
    """Draw accuracy or loss by epoch, one line per model, one panel per family."""
    from basedbench import analysis
    from basedbench.analysis.curves import curves as curves_of
    from basedbench.analysis.curves import curves_note
    from basedbench.cli.plot_report import HALFWAY, curve_lines, print_points, report
    from basedbench.plots.curves import curves as draw
    from basedbench.plots.scales import column_title
    from basedbench.plots.style import save

    path = _target(out, results, "curves", width)
    frame = _recall_rows(results, suite, precision, filter)
    points = curves_of(frame, y, select).sort_values(["family", "state_bytes"])
    drawn = points[points["mean"].notna()]
    selection = analysis.selection_note(drawn, select, "bands: smallest to largest")
    note = _note(frame, f"{selection} {curves_note(drawn, frame)}".strip())
    save(draw(drawn, y, note=note, width=width), path)
    if as_json:
        print_points(path, frame, drawn, y=y, note=note)
        return
    undrawn = len(points) - len(drawn)
    notes = [note, HALFWAY, *([f"Not shown: {undrawn} without {y} by epoch."] if undrawn else [])]
    heading = ["family", "model", "lr", "seeds", "epochs", "first", "last", "halfway"]
    report(path, f"{column_title(y)} by epoch", heading, curve_lines(drawn), frame, notes)


@group.command()
def throughput(
    results: _Results = Path("results"),
    y: Annotated[str, typer.Option(help="time_per_token, tokens_per_s or median_ms.")] = "time_per_token",
    suite: _Suites = None,
    operator: Annotated[list[str] | None, typer.Option(help="Only this operator or model; may be repeated.")] = None,
    mode: Annotated[list[str] | None, typer.Option(help="Only this mode, e.g. decode; may be repeated.")] = None,
    filter: Annotated[str | None, typer.Option(help="Only cases whose label this regular expression finds.")] = None,
    out: _Out = None,
    width: _Width = "double",
    as_json: _Json = False,
) -> None:
    """Draw time per token against length, one line per contender, one panel per operator and mode."""
    from basedbench.analysis import timings as times
    from basedbench.analysis.labels import labelled_like
    from basedbench.analysis.suites import of_suites
    from basedbench.cli.plot_report import print_points, report, series_line
    from basedbench.plots.style import save
    from basedbench.plots.throughput import throughput as draw
    from basedbench.sources import versions_note

    path = _target(out, results, "throughput", width)
    rows = times.timings(of_suites(_rows(results, "throughput"), suite or ()), y)
    for column, wanted in (("subject", operator), ("mode", mode)):
        rows = _only(rows, column, wanted)
    rows = labelled_like("throughput", rows, filter) if filter else rows
    note = f"Medians; bars: 95% intervals. {times.shared_conditions(rows)}."
    note = f"{note} {versions_note(rows['contender_version'].dropna())}".strip()
    save(draw(rows, y, note=note, width=width), path)
    if as_json:
        print_points(path, rows, rows, y=y, note=note)
        return
    lines = [series_line(panel, series, y) for panel in times.panels_of(rows) for series in panel.series]
    heading = ["operator", "mode", "contender", "shape", "at", y.replace("_", " "), "failed"]
    report(path, "At the largest length (or batch) that was timed", heading, lines, rows, [note])


@group.command()
def generation(
    results: _Results = Path("results"),
    suite: _Suites = None,
    filter: Annotated[str | None, typer.Option(help="Only models whose name this regular expression finds.")] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Of the panel against context. Default: 128.")] = None,
    context: Annotated[int | None, typer.Option(min=1, help="Of the panel against batch. Default: 1024.")] = None,
    each: Annotated[
        bool, typer.Option("--each", help="A line for every implementation, not only the fastest.")
    ] = False,
    out: _Out = None,
    width: _Width = "double",
    as_json: _Json = False,
) -> None:
    """Draw tokens per second of whole models against batch and against context, one line per model."""
    from basedbench.analysis import language
    from basedbench.analysis.suites import finished, of_suites
    from basedbench.cli.plot_report import generation_line, print_points, report
    from basedbench.plots.generation import generation as draw
    from basedbench.plots.style import save

    path = _target(out, results, "generation", width)
    timed = language.language_rows(of_suites(_rows(results, "throughput"), suite or ()), "generation")
    finished(timed)
    rows = timed[timed["status"] != "unsupported"]  # nobody's failure: it is told under the table
    rows = rows if each else language.fastest(rows)
    rows = language.named_like(rows, filter) if filter else rows
    at = {"batch": (batch, 128), "length": (context, 1024)}
    place = {name: given or language.usual(rows, name, usual) for name, (given, usual) in at.items()}
    language.check_place(rows, **place)
    note = language.conditions(rows)
    save(draw(rows, **place, note=note, width=width), path)
    if as_json:
        print_points(path, timed, rows, note=note, **{name: str(value) for name, value in place.items()})
        return
    lines = [generation_line(row) for row in rows.to_dict("records")]
    heading = ["model", "batch", "context", "tokens/s", "95 % interval", "state", "by"]
    report(path, "Generation", heading, lines, timed, [note])


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


def _recall_rows(
    results: Path, suites: list[str] | None, precisions: list[str] | None, pattern: str | None = None
) -> "pd.DataFrame":
    from basedbench.analysis.labels import labelled_like
    from basedbench.analysis.suites import check_one_test, rows_for_figure

    frame = _only(rows_for_figure(_rows(results, "recall"), suites or ()), "precision", precisions)
    frame = frame if pattern is None else labelled_like("recall", frame, pattern)
    check_one_test(frame)
    return frame


def _note(frame: "pd.DataFrame", selection: str, decoded: "pd.DataFrame | None" = None) -> str:
    """What a figure of recall runs rests on; `decoded` are its points, with decode rates."""
    from basedbench.analysis.decoding import decoding_note
    from basedbench.analysis.suites import devices_note, doubts_note
    from basedbench.sources import versions_note

    sources = list(frame["mixer_source"].dropna()) if "mixer_source" in frame else []
    decoding = ""
    if decoded is not None:
        sources.extend(decoded["decode_contender_version"].dropna())
        decoding = decoding_note(decoded)
    versions = versions_note(sources)
    return " ".join(filter(None, [selection, devices_note(frame), decoding, doubts_note(frame), versions]))


def _rows(results: Path, kind: str) -> "pd.DataFrame":
    from basedbench.store.dataset import load

    return load(results, kind, understood=True)


def _decode_rows(results: Path, recall: "pd.DataFrame") -> "pd.DataFrame":
    """The throughput rows. UserError that says which command makes those of these models if there are none at all."""
    from basedbench.analysis.decoding import command_for
    from basedbench.errors import UserError
    from basedbench.store.dataset import kinds_in

    if "throughput" not in kinds_in(results):
        command = command_for(recall, f" --out {quote(str(results))}")
        raise UserError(f"no decode times of these models in {str(results)!r}; {command}.")
    return _rows(results, "throughput")


def _only(rows: "pd.DataFrame", column: str, wanted: list[str] | None) -> "pd.DataFrame":
    from basedbench.errors import UserError, nearest

    known = sorted(rows[column].dropna().unique()) if wanted else []
    for name in wanted or ():
        if name not in known:
            what = "operator" if column == "subject" else column
            raise UserError(f"there are no rows of {what} {name!r} here: {nearest(name, known)}")
    return rows[rows[column].isin(wanted)] if wanted else rows
