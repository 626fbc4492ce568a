"""What `basedbench results status` prints: a table for each suite, then the commands that would run what is left."""

from collections.abc import Sequence
from typing import Any

import typer

from basedbench.cli.progress import clock
from basedbench.cli.tables import print_json, print_note, print_table
from basedbench.errors import visible
from basedbench.store.schema import STATUSES
from basedbench.training.tally import Row, SuiteTally, Tally, device_seconds, on_cores

COLUMNS = ("family", "runs", "done", "failed", "left", "time", "a run", "left takes")


def status_table(found: Sequence[SuiteTally], rows: Sequence[Row], more: Sequence[str]) -> None:
    """Print the suites, and how the time of all rows adds up. `more` stands at the end of every command."""
    for one in found:
        lines = [_line(tally, told=one.unknown is None) for tally in (*one.families, one.total)]
        columns = (*COLUMNS[:-1], COLUMNS[-1] + "\non one core" * one.on_cores)
        print_table(_title(one), columns, lines, whole=columns[1:])
        _after(one, more)
    typer.echo(f"{len(rows)} rows, {clock(device_seconds(rows))} of {visible(_devices(rows))}; shared runs count once.")
    if on_cores(rows):
        typer.echo("On a CPU times are of one core: as many runs as it has cores go side by side.")


def status_json(found: Sequence[SuiteTally], rows: Sequence[Row], more: Sequence[str]) -> None:
    """The same for other programs; times in seconds."""
    suites = [
        {"suite": one.suite, "precision": one.precision, "families": [_plain(tally) for tally in one.families]}
        | {"total": _plain(one.total), "other_rows": one.other_rows, "unknown": one.unknown}
        | {"done_elsewhere": one.elsewhere, "other_suites": one.other_suites}
        | {"commands": one.commands(*more), "versions": one.versions or None}
        for one in found
    ]
    print_json({"suites": suites, "rows": len(rows), "train_s": device_seconds(rows), "devices": _names(rows)})


def _title(one: SuiteTally) -> str:
    return f"Suite {one.suite}" + (f" at {one.precision}" if one.precision else "")


def _line(tally: Tally, told: bool) -> tuple[Any, ...]:
    """A line of the table; unless the suite's runs can be `told`, nothing of how many there are."""
    failed = ", ".join(f"{count} {status}" for status, count in tally.failed.items())
    per_run = None if tally.seconds_per_run is None else f"{tally.seconds_per_run:.1f} s"
    ahead = None if tally.left_s is None or not told else clock(tally.left_s)
    runs, left = (tally.runs, tally.left) if told else (None, None)
    return (tally.name, runs, tally.done, failed or None, left, clock(tally.train_s), per_run, ahead)


def _after(one: SuiteTally, more: Sequence[str]) -> None:
    """What is beside the suite, and what to do next."""
    if one.other_rows:
        what = "row of this suite is of another run" if one.other_rows == 1 else "rows of this suite are of other runs"
        typer.echo(f"{one.other_rows} more {what} (other options than the suite's).")
    if one.elsewhere:
        where = f"rows of other suites only ({', '.join(one.other_suites)})"
        print_note(
            f"{one.elsewhere} of the runs done {'has' if one.elsewhere == 1 else 'have'} {where}: figures with --suite "
            f"{one.suite} lack them until a sweep of it has begun, which takes such rows over."
        )
    if one.unknown:
        typer.echo(f"What is left cannot be told: {visible(one.unknown)}")
    if one.versions:
        print_note(one.versions)
    known = [status for status in one.total.failed if status in STATUSES]
    if known:
        typer.echo(f"Failed runs run again with --retry {','.join(known)}.")
    if strange := [status for status in one.total.failed if status not in STATUSES]:
        said = ", ".join(map(repr, strange))
        typer.echo(f"This version knows no status {visible(said)}; --fresh runs what has it again.")
    commands = one.commands(*more)
    if commands:
        typer.echo("What is left, family by family:")
    for command in commands:
        typer.echo(f"  {visible(command)}")
    typer.echo("")


def _plain(tally: Tally) -> dict[str, Any]:
    return vars(tally) | {"left_s": tally.left_s}


def _names(rows: Sequence[Row]) -> list[str]:
    return sorted({row["device_name"] for row in rows if row["device_name"]})


def _devices(rows: Sequence[Row]) -> str:
    names = _names(rows)
    return "several devices (" + ", ".join(names) + ")" if len(names) > 1 else (names or ["the device"])[0]
