"""Tables and values as the commands print them: at most 100 columns wide, whatever reads them."""

import json
import math
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import typer

WIDTH = 100
_LONG = 8


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]], whole: Sequence[str] = ()) -> None:
    """Print rows under their headings. Numbers stand to the right; they and the columns in `whole` are never broken.

    Unless the table would be too wide: then those of several words may be, between them; where that is not enough, all
    that are wider than their share. Nothing is ever cut off.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    # A pipe has no width: a narrow terminal is obeyed, everything else gets the 100 columns.
    console.width = min(console.width, WIDTH) if console.is_terminal else WIDTH
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=0, pad_edge=False)
    lines = [list(row) for row in rows]
    texts = [[Text(cell(value)) for value in line] for line in lines]
    widths = [max([len(name), *(line[index].cell_len for line in texts)]) for index, name in enumerate(columns)]
    words = [
        max(map(_longest_word, [name, *(line[index].plain for line in texts)])) for index, name in enumerate(columns)
    ]
    room = console.width - len(widths) - 1
    too_wide, between_words = sum(widths) > room, sum(words) <= room
    for index, name in enumerate(columns):
        number = any(isinstance(line[index], int | float) for line in lines)
        number &= not any(isinstance(line[index], str | bool) for line in lines)
        broken = not number and name not in whole
        broken |= too_wide and (
            words[index] < widths[index] if between_words else widths[index] * len(widths) > console.width
        )
        table.add_column(name, justify="right" if number else "left", overflow="fold", no_wrap=not broken)
    for line in texts:
        table.add_row(*line)
    console.print(table)


def _longest_word(text: str) -> int:
    return max(map(len, text.split()), default=0)


def flat(values: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """The entries of nested mappings, one line each: `peers: flash-attn`."""
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{above}{name}: ")
        else:
            yield f"{above}{name}", value


def print_json(value: Any) -> None:
    """Print plain JSON for other programs."""
    typer.echo(json.dumps(value, indent=2))


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
        return ", ".join(f"{key}={cell(item)}" for key, item in value.items()) or "-"
    if isinstance(value, list) and len(value) > _LONG:
        return f"{cell(value[0])} ... {cell(value[-1])} ({len(value)} values)"
    return ", ".join(map(cell, value)) or "-" if isinstance(value, list) else str(value)


def print_note(text: str, err: bool = False) -> None:
    """A sentence, in lines as wide as a table at most."""
    wrapped = textwrap.fill(text, WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
    typer.echo(wrapped, err=err)
