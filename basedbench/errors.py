"""Errors that a user can cause and mend: one plain sentence, shown without a traceback, exit code 2."""

import json
import os
import re
import sys
import traceback
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any

_LIBRARIES = sys.stdlib_module_names | {"basedbench", "torch", "pydantic", "pydantic_core", "triton", "numpy"}

# pydantic says these in words of Python; whoever wrote a suite wrote YAML.
_PLAIN = {
    "missing": "is missing",
    "list_type": "takes a list",
    "tuple_type": "takes a list",
    "too_short": "needs at least one entry",
    "dict_type": "takes a mapping",
    "model_type": "takes a mapping",
    "int_type": "takes a whole number",
    "int_parsing": "takes a whole number",
    "int_from_float": "takes a whole number",
    "float_type": "takes a number",
    "float_parsing": "takes a number",
    "string_type": "takes text",
    "string_too_short": "takes text that is not empty",
    "bool_type": "takes true or false",
    "bool_parsing": "takes true or false",
}
OWN = "One of your own comes with --plugin FILE.py."
UNREAD = ": rename it"  # of a path
_LONGEST = 100  # of a value in a message
_CUDA = "CUDA error: "
_RECORDED = "steps are recorded as CUDA graphs: they may not wait for the device, as .item() and torch.tensor() do"


class UserError(Exception):
    """Bad input. The message says what was wrong, where, and what to do next."""


@cache
def warn(text: str) -> None:
    """One line on stderr, once, about what is left out or taken otherwise than a user may think."""
    print(f"Warning: {visible(text)}", file=sys.stderr)


def nearest(name: str, choices: Iterable[str]) -> str:
    """The end of an error sentence: `did you mean 'x'?`, or the list of valid names if nothing is close."""
    valid = sorted(choices)
    close = get_close_matches(name, valid, n=1, cutoff=0.6)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"valid: {', '.join(valid) or 'none'}."


def check_name(what: str, name: str) -> None:
    """UserError unless `name` can stand in labels, filters and OPERATOR/NAME as one word."""
    if not re.fullmatch(r"[\w.+-]+", name):
        raise UserError(f"{what} {name!r}: a name is made of letters, digits, _, -, + and a dot.")


def check_text(what: str, text: str, then: str = "") -> None:
    """UserError unless a text from the command line is UTF-8, as all texts of rows are; `then` is what to do."""
    if any("\ud800" <= letter <= "\udfff" for letter in text):  # how Python keeps other bytes
        try:
            os.fsencode(text).decode()
        except ValueError:
            raise UserError(f"{what} {text!r}: it is not UTF-8 text{then}.") from None
        raise UserError(f"{what} {text!r}: this locale has no such letters; set LC_ALL=C.UTF-8.")


def filter_of(pattern: str) -> re.Pattern[str]:
    """What `--filter` searches labels for; UserError if it is no regular expression."""
    try:
        with warnings.catch_warnings(action="ignore"):  # of what the pattern may mean to a later Python
            return re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise UserError(f"--filter {pattern!r} is not a regular expression: {error}.") from None


def place_of(error: BaseException) -> str | None:
    """`mine.py line 12`: the last line that ran of a file that is neither ours nor a library's, if there is one."""
    place = None
    for frame, line in traceback.walk_tb(error.__traceback__):
        if frame.f_globals.get("__name__", "").partition(".")[0] not in _LIBRARIES:
            place = f"{Path(frame.f_code.co_filename).name} line {line}"
    return place


def visible(text: str) -> str:
    """A text with `?` for what cannot be stored or would steer a terminal: halves of characters, control codes."""
    return "".join(letter if letter.isprintable() or letter == "\n" else "?" for letter in text)


def printable(text: str) -> str:
    """The same on one line."""
    return visible(" ".join(text.split()))


def said_by(error: BaseException) -> str:
    """Its text; nothing where a class of the user's own fails at that too."""
    try:
        return str(error)
    except KeyboardInterrupt:
        raise
    except BaseException:  # whatever the user's code raises
        return ""


@contextmanager
def passed_over() -> Iterator[None]:
    """Whatever the user's code raises in the block is no matter, but that the user stops the command."""
    try:
        yield
    except KeyboardInterrupt:
        raise
    except BaseException:
        pass


def text_of(error: BaseException) -> str:
    """`ValueError: no such width`, on one line; a UserError says it all."""
    if isinstance(error, UserError):
        return printable(str(error))
    said = said_by(error)
    if said.startswith(_CUDA):
        said = said.split("\n")[0]  # what follows is about looking for the cause, by means that a row's reader has not
        if "captur" in said:
            said = f"{said}: {_RECORDED}"
    return printable(f"{type(error).__name__}: {said}").removesuffix(":")


def sentence(error: BaseException) -> str:
    """`ValueError: no such width (mine.py line 12)`, on one line."""
    place, text = place_of(error), text_of(error)
    if place and _CUDA in text and _RECORDED not in text:
        place = f"{place} or before"  # the device says what went wrong at a later call
    return f"{text} ({place})" if place else text


def written(value: Any) -> str:
    """A value from a suite as it may be written there, not as Python writes it; the beginning of a long one."""
    if value is None or isinstance(value, bool | list | dict):
        try:
            text = json.dumps(value, default=str)
        except (TypeError, ValueError):  # bytes as a key, a list that holds itself
            text = repr(value)
    else:
        text = repr(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def plain(problem: Mapping[str, Any]) -> str:
    """What a problem that pydantic found is, in a few words; without where it is and what was given."""
    message = str(problem["msg"]).removeprefix("Value error, ")
    return _PLAIN.get(problem["type"], message[0].lower() + message[1:])
