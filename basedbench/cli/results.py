"""`basedbench results`: a stored row, rows as CSV, the state of a sweep, small files merged, a table of the docs."""

from pathlib import Path
from shlex import quote
from typing import Annotated, Any

import typer

from basedbench.cli.documents import TABLES

_RESULTS = Annotated[Path, typer.Option(help="The results folder.")]

group = typer.Typer(
    help="A stored row, rows as CSV, a sweep's state, a folder's files merged, a table.", no_args_is_help=True
)


@group.command()
def compact(
    results: _RESULTS = Path("results"),
    set_aside_corrupt: Annotated[
        bool, typer.Option("--set-aside-corrupt", help="First move files that cannot be read into a folder corrupt/.")
    ] = False,
) -> None:
    """Merge the small files of each kind of result into one. Safe at any time, while others write and read too."""
    from basedbench.errors import UserError
    from basedbench.store import dataset

    kinds = dataset.kinds_in(results)
    if not kinds:
        raise UserError(_no_results(results))
    for kind in kinds:
        for path in dataset.set_aside_corrupt(results, kind) if set_aside_corrupt else []:
            typer.echo(f"{kind}: moved a file that cannot be read to {path}")
        count = dataset.compact(results, kind)
        typer.echo(f"{kind}: merged {count} files into one" if count > 1 else f"{kind}: nothing to merge")


@group.command()
def show(
    case: Annotated[str, typer.Argument(help="The case's id, or as much of its beginning as is needed.")],
    results: _RESULTS = Path("results"),
    suite: Annotated[str | None, typer.Option(help="The suite, if several have this case.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, with every number of long lists.")] = False,
) -> None:
    """Print one row whole."""
    from basedbench.cli.tables import flat, print_json, print_table
    from basedbench.store.schema import decode_json

    kind, row = _find(results, case, suite)
    printable = decode_json(row)
    if as_json:
        print_json(printable)
        return
    print_table(f"{kind} row {row['case_id']} (suite {row['suite']})", ("column", "value"), flat(printable))
    typer.echo("Long lists: --json prints them whole.")


@group.command()
def export(
    results: _RESULTS = Path("results"),
    kind: Annotated[str, typer.Option(help="recall, throughput or calibration.")] = "recall",
    suite: Annotated[
        list[str] | None, typer.Option("--suite", help="Only rows of this suite; may be repeated.")
    ] = None,
    filter: Annotated[str | None, typer.Option(help="Only rows whose label this regular expression finds.")] = None,
    format: Annotated[str | None, typer.Option(help="csv or jsonl. Default: by the ending of --out, else csv.")] = None,
    out: Annotated[Path | None, typer.Option(help="The file to write. Default: standard output.")] = None,
) -> None:
    """Write rows, the newest of each case, as CSV or as one JSON object a line; lists and objects are JSON in CSV."""
    from basedbench import atomic
    from basedbench.cli.export import format_of, lines
    from basedbench.cli.stored import stored_rows

    how = format_of(format, out)
    rows = stored_rows(results, kind, suite or (), understood=filter is not None)
    rows = rows if filter is None else _labelled_like(kind, rows, filter)
    if out is None:
        for line in lines(kind, rows, how):
            typer.echo(line, nl=False)
        return
    atomic.write_out(out, "".join(lines(kind, rows, how)).encode())
    typer.echo(f"Wrote {len(rows)} {kind} {'row' if len(rows) == 1 else 'rows'} to {out}.")


@group.command()
def status(
    suite: Annotated[
        str | None, typer.Option(help="A recall suite's name or file. Default: all that have rows.")
    ] = None,
    results: _RESULTS = Path("results"),
    plugin: Annotated[list[Path] | None, typer.Option(help="A Python file that registers mixers of the suite.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """How far recall sweeps have come: runs done, failed, left, their time, and the commands for what is left."""
    from basedbench.cli import results_status as report
    from basedbench.errors import UserError
    from basedbench.plugins import load_plugins
    from basedbench.store import dataset
    from basedbench.training.tally import tallies

    load_plugins(plugin or [])
    rows = dataset.rows(results, "recall")
    if not rows and suite is None:
        raise UserError(dataset.no_rows(results, "recall"))
    found = tallies(rows, suite)
    more = ["--out", str(results), *(part for file in plugin or [] for part in ("--plugin", str(file)))]
    if as_json:
        report.status_json(found, rows, more)
    else:
        report.status_table(found, rows, more)


@group.command()
def table(
    name: Annotated[str, typer.Argument(help=f"{', '.join(TABLES)}; generation: all of those.")],
    results: _RESULTS = Path("results"),
    write: Annotated[
        Path | None, typer.Option(help="A Markdown file whose sections between the tables' markers are replaced.")
    ] = None,
) -> None:
    """Print a table of the documentation as Markdown, made from rows."""
    from basedbench.errors import UserError, nearest, visible
    from basedbench.store import dataset

    names = [one for one in TABLES if one == name or one.startswith(f"{name}-")]
    if not names:
        raise UserError(f"no table is called {name!r}: {nearest(name, TABLES)}")
    for kind in {TABLES[one].kind for one in names} if write is not None else ():
        if kind is not None and kind not in dataset.kinds_in(results):
            # What the page has is worth more than that there is nothing.
            raise UserError(dataset.no_rows(results, kind))
    sections = {one: TABLES[one](results) for one in names}
    if write is None:
        typer.echo(visible("\n\n".join(sections.values())))
        return
    _write_sections(write, sections)
    what = "section" if len(sections) == 1 else "sections"
    typer.echo(f"Wrote the {what} {', '.join(map(repr, sections))} of {write}.")


def _labelled_like(kind: str, rows: list[dict[str, Any]], pattern: str) -> list[dict[str, Any]]:
    import pandas as pd

    from basedbench.analysis.labels import labelled_like

    return [rows[index] for index in labelled_like(kind, pd.DataFrame(rows), pattern).index]


def _no_results(results: Path) -> str:
    return f"there are no results in {str(results)!r}; choose their folder with --results."


def _write_sections(page: Path, sections: dict[str, str]) -> None:
    """Replace the sections of a page, in its own newlines. UserError, and the page as it was, if that cannot be."""
    from basedbench import atomic
    from basedbench.analysis.markdown import replace_section
    from basedbench.errors import UserError

    try:
        if not page.is_file():
            raise UserError(f"--write {str(page)!r}: there is no such file.")
        text = page.read_bytes().decode()
        for section, content in sections.items():
            text = replace_section(text, section, content)
        atomic.write(page, text.encode())
    except UnicodeDecodeError as error:
        raise UserError(
            f"--write {str(page)!r}: it is not UTF-8 text ({error.reason} at byte {error.start})."
        ) from error
    except OSError as error:
        raise UserError(f"--write {str(page)!r}: {atomic.cause(error)}; the file is as it was.") from error


def _find(results: Path, case: str, suite: str | None) -> tuple[str, dict[str, Any]]:
    """The kind and the row of the one case whose id begins so. UserError for what is no text, none, or several."""
    import pyarrow.compute as pc

    from basedbench.errors import UserError, check_text
    from basedbench.store import dataset

    check_text("case", case)
    begins = pc.starts_with(pc.field("case_id"), case)
    found = [(kind, row) for kind in dataset.kinds_in(results) for row in dataset.rows(results, kind, begins)]
    found = [(kind, row) for kind, row in found if suite in (None, row["suite"])]
    if not found:
        where = f"{str(results)!r}" + (f" in suite {suite!r}" if suite else "")
        command = f"basedbench list runs --results {quote(str(results))}"
        raise UserError(f"no case in {where} begins with {case!r}; `{command}` lists them.")
    if len(found) > 1:
        some = ", ".join(f"{row['case_id']} ({kind}, suite {row['suite']})" for kind, row in found[:5])
        more = f" and {len(found) - 5} more" if len(found) > 5 else ""
        raise UserError(f"{len(found)} cases begin with {case!r}: {some}{more}; give more of the id, or --suite.")
    return found[0]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.add_typer(group, name="results")
