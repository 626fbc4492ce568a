"""What is said at the end of a command that measures, and its exit code."""

from collections.abc import Iterable, Mapping
from typing import Any

import typer

_REFUSED = ("unsupported",)  # by a contender or a device: it is so again
NOTHING = 1  # the exit code where all that was asked for failed


def say_retry(statuses: Iterable[str], what: str, fresh: bool) -> None:
    """How what failed runs again, if anything did: the same command alone leaves it as it is."""
    if names := sorted(set(statuses) - {"ok", *_REFUSED}):
        instead = " instead of --fresh" if fresh else ""
        typer.echo(f"Failed {what} run again with the same command and --retry {','.join(names)}{instead}.")


def end(rows: Iterable[Mapping[str, Any]]) -> None:
    """End with exit code 1 if there are rows of what was asked for, and all of them failed.

    A single failure is a result like any other: what follows in a script can use the rest.
    """
    statuses = {row["status"] for row in rows}
    if statuses and "ok" not in statuses:
        raise typer.Exit(NOTHING)
