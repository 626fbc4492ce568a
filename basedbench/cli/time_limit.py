"""`--time-limit`: what it means, and what is said of what is left when the time is up."""

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from basedbench.engines.deadline import Deadline

TimeLimit = Annotated[
    str | None,
    typer.Option(help="Begin nothing that would end later than 540, 9m or 1h30m after the start, and stop then."),
]


def seconds(text: str | None, option: str = "--time-limit") -> float:
    """The limit that an option gives; UserError if the text says no time."""
    from basedbench.engines.deadline import seconds_of

    return math.inf if text is None else seconds_of(text, option)


def own_rows(rows: Iterable[dict[str, Any]], device: str) -> list[dict[str, Any]]:
    """Those that were measured on devices of this name."""
    return [row for row in rows if row["device_name"] == device]


def goes_on(fresh: bool) -> str:
    """What the same command does if it is given again."""
    return "begins anew; without --fresh it runs what has no row yet" if fresh else "goes on from there"


def say_left(
    limit: "Deadline[Any]",
    todo: Sequence[Any],
    left: Sequence[Any],
    lost: Sequence[Any],
    rest: Sequence[Any],
    *,
    what: str,
    at_once: int = 1,
    fresh: bool = False,
) -> bool:
    """If the limit left some of `todo`, say how much there is to do yet, `rest` included, and how to go on.

    `what` names the items; `lost` are those of `left` that were under way, `at_once` how many go side by side.
    """
    from basedbench.cli.progress import clock

    if not left or limit.limit_s == math.inf:
        return False
    count = len(left) + len(rest)
    ahead = clock(limit.ahead_s([*left, *rest], at_once))
    are = f"1 {what.removesuffix('s')} is" if count == 1 else f"{count} {what} are"
    text = f"Time limit of {clock(limit.limit_s)}: {are} left, about {ahead}"
    text += f"; {len(lost)} of them were under way and begin anew." if lost else "."
    if lost or len(left) < len(todo):
        text += f" The same command {goes_on(fresh)}."
    else:
        shortest = clock(min(map(limit.pace.seconds, left)))
        text += f" None would have ended in time, the shortest takes about {shortest}: give more time."
    typer.echo(text, err=True)
    return True
