"""Tables and values as the commands print them: 100 columns wide at most, where that breaks no name and no number."""

import json
import math
import re
import sys
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import typer

from basedbench.errors import printable, visible
from basedbench.plain_json import plain

WIDTH = 100
_LONG = 8
_NAME = 12  # letters
_NUMBER = re.compile(r"[-+~<]?[\d.]")


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]], whole: Sequence[str] = ()) -> None:
    """Print rows under their headings, numbers to the right; nothing is ever cut off, and no number broken.

    Where a table is too wide, other columns than numbers and those in `whole` are folded between words, then those in
    `whole`, too. A terminal that is still too narrow gets long names in parts; elsewhere, as in a pipe, the table is as
    wide as its words.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    terminal = sys.stdout is not None and sys.stdout.isatty()
    room = (min(console.width, WIDTH) if terminal else WIDTH) - len(columns) - 1
    lines = [list(row) for row in rows]
    texts = [[cell(value) for value in line] for line in lines]
    shown = [[visible(name), *(line[index] for line in texts)] for index, name in enumerate(columns)]
    numbers = [_all_numbers([line[index] for line in lines]) for index in range(len(columns))]
    widths = [max(map(_longest_line, column)) for column in shown]
    words = [max(map(_longest_word, column)) for column in shown]
    loose = [width if name in whole else word for name, width, word in zip(columns, widths, words, strict=True)]
    widths = _narrowed(_narrowed(widths, loose, room), words, room)
    if terminal:
        widths = _narrowed(widths, [max(map(_longest_number, column)) for column in shown], room)
    table = Table(title=Text(visible(title)), title_justify="left", box=box.SIMPLE_HEAD, padding=0, pad_edge=False)
    for name, width, number in zip(columns, widths, numbers, strict=True):
        table.add_column(Text(visible(name)), justify="right" if number else "left", overflow="fold", width=width)
    for line in texts:
        table.add_row(*map(Text, line))
    console.width = sum(widths) + len(columns) + 1
    console.print(table)


def _narrowed(widths: Sequence[int], least: Sequence[int], room: int) -> list[int]:
    """The widths, the widest cut until all fit into the room or have come down to their least."""
    narrow = list(widths)
    while sum(narrow) > room and (left := [index for index, width in enumerate(narrow) if width > least[index]]):
        narrow[max(left, key=lambda index: narrow[index])] -= 1
    return narrow


def _all_numbers(values: Sequence[Any]) -> bool:
    return any(isinstance(value, int | float) for value in values) and not any(
        isinstance(value, str | bool) for value in values
    )


def _longest_line(text: str) -> int:
    return max(map(_cells, text.split("\n")), default=0)


def _longest_word(text: str) -> int:
    return max(map(_cells, text.split()), default=0)


def _longest_number(text: str) -> int:
    """The longest word that is a number, or as much of another as is left together when names are folded."""
    return max((_cells(word) if _NUMBER.match(word) else min(_cells(word), _NAME) for word in text.split()), default=0)


def _cells(text: str) -> int:
    from rich.cells import cell_len

    return cell_len(text)


def flat(values: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """The entries of nested mappings, one line each: `peers: flash-attn`."""
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{above}{name}: ")
        else:
            yield f"{above}{name}", value


def print_json(value: Any) -> None:
    """Print strict JSON for other programs: NaN and infinities are null."""
    typer.echo(json.dumps(plain(value), indent=2, allow_nan=False))


def cell(value: Any) -> str:
    """A value as short text: `-` for null, thousands apart, four significant digits, long lists only described."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.0f}" if 1e3 <= abs(value) < 1e15 else f"{value:.4g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{cell(key)}={cell(item)}" for key, item in value.items()) or "-"
    if isinstance(value, list) and len(value) > _LONG:
        return f"{cell(value[0])} ... {cell(value[-1])} ({len(value)} values)"
    return ", ".join(map(cell, value)) or "-" if isinstance(value, list) else visible(str(value))


def print_note(text: str, err: bool = False) -> None:
    """A sentence, in lines as wide as a table at most."""
    text = printable(text)
    wrapped = textwrap.fill(text, WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
    typer.echo(wrapped, err=err)
