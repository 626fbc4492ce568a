"""Errors that a user can cause and mend: one plain sentence, shown without a traceback, exit code 2."""

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(Exception):
    """Bad input. The message says what was wrong, where, and what to do next."""


def nearest(name: str, choices: Iterable[str]) -> str:
    """The end of an error sentence: `did you mean 'x'?`, or the list of valid names if nothing is close."""
    valid = sorted(choices)
    close = get_close_matches(name, valid, n=1, cutoff=0.6)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"valid: {', '.join(valid) or 'none'}."
