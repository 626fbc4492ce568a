"""What a command prints, where it cannot be printed: to a full disk, in an encoding that lacks a letter."""

import codecs
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from basedbench import atomic
from basedbench.errors import UserError


class OutputError(UserError):
    """What a command prints cannot be written."""


class ReaderGoneError(Exception):
    """Who read standard output has read enough, as `head` does. No OSError, of which typer would make exit code 1."""

    CODE = 128 + 13  # as of a program that SIGPIPE ends


class _Output(io.TextIOWrapper):
    """Standard output whose trouble is an OutputError, unlike that of any other file."""

    before: io.TextIOWrapper

    def write(self, text: str, /) -> int:
        with _told():
            return super().write(text)

    def flush(self) -> None:
        with _told():
            super().flush()


@contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise ReaderGoneError from None
    except OSError as error:
        raise OutputError(f"the output cannot be written: {atomic.cause(error)}.") from error


def guard() -> None:
    """From here on trouble with the output is an OutputError, and letters that its encoding lacks are escaped."""
    out = sys.stdout
    if isinstance(out, io.TextIOWrapper):  # a shell may have closed it
        # typer takes ASCII for a mistake, too.
        encoding = "utf-8" if codecs.lookup(out.encoding).name == "ascii" else out.encoding
        lines, through = out.line_buffering, out.write_through
        sys.stdout = _Output(out.buffer, encoding, "backslashreplace", line_buffering=lines, write_through=through)
        sys.stdout.before = out  # which would close the file if nothing held it


def finish() -> None:
    """Write what is left. Raises OutputError."""
    if isinstance(sys.stdout, _Output):
        sys.stdout.flush()


def give_up() -> None:
    """What could not be written goes nowhere, or it would fail once more when Python ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
