"""Tables of the documentation: Markdown made from rows, kept between two markers of a page."""

import math
from collections.abc import Iterable, Sequence

from basedbench.errors import UserError


def signed(value: float) -> str:
    """`+0.012`, never `-0.000`; `-` where there is none."""
    return f"{value:+.3f}".replace("-0.000", "+0.000") if math.isfinite(value) else "-"


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table, a line per row, whatever stands in the cells."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(map(_cell, cells)) + " |" for cells in lines)


def _cell(text: str) -> str:
    """On one line, and ending neither the cell nor the section that the table stands in."""
    return " ".join(text.split()).replace("|", "\\|").replace("<!--", "&lt;!--")


def replace_section(text: str, name: str, content: str) -> str:
    """The text with what stands between `<!-- name:begin -->` and `<!-- name:end -->` replaced; UserError without.

    The content gets the newlines of the line that begins it.
    """
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    before, found, rest = text.partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise UserError(f"there is no section between {begin} and {end}; write these two lines where it belongs.")
    section = f"\n{content}\n".replace("\n", "\r\n" if rest.startswith("\r\n") else "\n")
    return f"{before}{begin}{section}{end}{after}"


def section(text: str, name: str) -> str:
    """What stands between the two markers."""
    return text.partition(f"<!-- {name}:begin -->\n")[2].partition(f"\n<!-- {name}:end -->")[0]
