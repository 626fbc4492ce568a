"""Several commands in one results folder at the same time: what one has in hand, the others leave to it."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import typer

from basedbench import locks
from basedbench.errors import UserError, visible

Item = TypeVar("Item")
FILE = ".basedbench.lock"
_TIMED = " Two that time on one device disturb each other."


def hold(
    context: typer.Context, out: Path, todo: Sequence[Item], key: Callable[[Item], str], limit: int | None, what: str
) -> tuple[list[Item], list[Item]]:
    """What of `todo` this command runs, at most `limit`, and what is behind that; the former is its own to its end.

    What another command that writes to this folder has in hand is left out, and told; UserError if that is all.
    """
    file = locks.opened(out / FILE)
    if file is not None:
        context.call_on_close(lambda: os.close(file))
    mine: list[Item] = []
    others = 0
    for item in todo:
        if len(mine) == limit:
            break
        try:
            locks.take(file, f"{what} {key(item)}")
            mine.append(item)
        except locks.TakenError:
            others += 1
    if others:
        _tell(others, len(mine), str(out), what)
    return mine, list(todo[len(mine) + others :])


def _tell(others: int, mine: int, out: str, what: str) -> None:
    timed = "" if what == "runs" else _TIMED
    at_work = f"nother command is at work in {out!r} and has"
    if not mine:
        raise UserError(
            f"a{at_work} all {what} in hand that are left to do ({others}). Wait until it has ended, choose others "
            f"with --filter, or another folder with --out.{timed}"
        )
    typer.echo(visible(f"A{at_work} {others} of {others + mine} {what} in hand: left to it.{timed}"), err=True)
