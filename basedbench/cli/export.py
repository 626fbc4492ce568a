"""Rows as text that other programs read: CSV, or JSON lines."""

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from basedbench.errors import UserError, nearest
from basedbench.store.schema import decode_json, schema_of

FORMATS = ("csv", "jsonl")


def format_of(given: str | None, out: Path | None) -> str:
    """The format that was asked for, else that of the file's ending, else CSV. UserError if none can be told."""
    if given is not None:
        if given not in FORMATS:
            raise UserError(f"--format {given!r}: {nearest(given, FORMATS)}")
        return given
    if out is None:
        return "csv"
    ending = out.suffix.lstrip(".").lower()
    if ending not in FORMATS:
        told = repr(out.suffix) if out.suffix else "no ending"
        raise UserError(f"{str(out)!r} has {told}: name it .{' or .'.join(FORMATS)}, or give --format.")
    return ending


def lines(kind: str, rows: Sequence[Mapping[str, Any]], how: str) -> Iterator[str]:
    """The rows of a kind, each a line with its end, in CSV under a heading; columns are the schema's."""
    names = schema_of(kind).names
    if how == "jsonl":
        for row in rows:
            yield json.dumps(decode_json({name: row[name] for name in names}), allow_nan=False) + "\n"
        return
    yield _csv_line(names)
    for row in rows:
        yield _csv_line([_cell(value) for value in decode_json({name: row[name] for name in names}).values()])


def _csv_line(cells: Sequence[str]) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(cells)
    return line.getvalue()


def _cell(value: Any) -> str:
    """Nothing for null, text as it is, JSON for everything else: lists and objects, numbers in all their digits."""
    if value is None or isinstance(value, str):
        return value or ""
    return json.dumps(value, allow_nan=False)
