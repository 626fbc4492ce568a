"""`--filter`: the cases whose label a regular expression finds."""

from collections.abc import Sequence
from typing import Protocol, TypeVar

from basedbench.errors import UserError, filter_of


class Labelled(Protocol):
    """Anything with a label for people."""

    @property
    def label(self) -> str: ...


Item = TypeVar("Item", bound=Labelled)


def matching(items: Sequence[Item], pattern: str, what: str) -> list[Item]:
    """The items whose label the pattern finds; UserError if it is malformed or finds nothing. `what` names them."""
    regex = filter_of(pattern)
    found = [item for item in items if regex.search(item.label)]
    if not found:
        raise UserError(f"--filter {pattern!r} matches none of {len(items)} {what}, such as {items[0].label!r}.")
    return found
