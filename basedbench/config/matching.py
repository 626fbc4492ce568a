"""`--filter`: the cases whose label a regular expression finds."""

import re
from collections.abc import Sequence
from typing import Protocol, TypeVar

from basedbench.errors import UserError


class Labelled(Protocol):
    """Anything with a label for people."""

    @property
    def label(self) -> str: ...


Item = TypeVar("Item", bound=Labelled)


def matching(items: Sequence[Item], pattern: str, what: str) -> list[Item]:
    """The items whose label the pattern finds; UserError if it is malformed or finds nothing. `what` names them."""
    try:
        regex = re.compile(pattern)
    except re.error as error:
        raise UserError(f"--filter {pattern!r} is not a regular expression: {error}.") from None
    found = [item for item in items if regex.search(item.label)]
    if not found:
        raise UserError(f"--filter {pattern!r} matches none of {len(items)} {what}, such as {items[0].label!r}.")
    return found
