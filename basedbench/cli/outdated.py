"""What is said where rows are there already, but of another version of the user's own file, or of several."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import typer

from basedbench.cli.tables import print_note
from basedbench.sources import versions_in


def say_outdated(labels: Sequence[str], what: str) -> None:
    """One line on stderr for the runs or cases of these labels, if there are any."""
    if not labels:
        return
    count = f"1 {what.removesuffix('s')} has a row" if len(labels) == 1 else f"{len(labels)} {what} have rows"
    some = ", ".join(labels[:2]) + (", ..." if len(labels) > 2 else "")
    verb = "runs" if what == "runs" else "times"
    again = f"--retry outdated {verb} {'it' if len(labels) == 1 else 'them'} again"
    typer.echo(f"{count} of another version of your file ({some}); {again}.", err=True)


def say_versions(rows: Iterable[Mapping[str, Any]], kind: str, *, err: bool) -> None:
    """Under what was printed of these rows, or on stderr: of which files several versions are among them."""
    if told := versions_in(rows, kind):
        print_note(told, err)
