"""What every figure shares: sizes of a paper's columns, colours and markers that survive print, saving to a file.

Colours are those of Okabe and Ito ("Color universal design", 2008), told apart by the colour-blind; markers differ too,
so that a figure works in grey. No pyplot: figures are plain objects, and nothing global is left changed.
"""

import io
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D

from basedbench import atomic
from basedbench.errors import UserError

WIDTHS = {"single": 3.4, "double": 7.0}  # inches: one and two columns of a paper
FORMATS = ("png", "svg", "pdf")
TEXT, SMALL, TINY = 8.0, 7.0, 6.0  # points
_LETTERS_PER_INCH = 20  # of TINY text
Look = dict[str, Any]  # keywords of matplotlib's artists
INK, MUTED, HAIR = "#1a1a1a", "#6e6e6e", "#e2e2e2"

_SAVED_AS: Any = {
    "pdf.fonttype": 42,
    "ps.fonttype": 42,
    "svg.fonttype": "path",
    "svg.hashsalt": "basedbench",
}
_UNDATED = {"png": {"Software": None}, "svg": {"Date": None}, "pdf": {"CreationDate": None, "ModDate": None}}
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "h", "*")
_SCALE = {"D": 0.82, "P": 1.12, "X": 1.05, "*": 1.4, "s": 0.95, "p": 1.1, "h": 1.1}  # to look equally large


# Around what draws: a name of the user's own may have dollars in it, and means no formula.
as_written = matplotlib.rc_context({"text.parse_math": False})


@dataclass(frozen=True)
class Mark:
    """How one family or contender is drawn."""

    colour: str
    marker: str
    line: str = "-"

    @property
    def ink(self) -> str:
        """The colour, dark enough for small text on white."""
        red, green, blue = to_rgb(self.colour)
        return to_hex((0.68 * red, 0.68 * green, 0.68 * blue))

    def shape(self, points: float) -> Look:
        """Keywords of `plot` for a filled marker; all shapes look as large."""
        size = points * _SCALE.get(self.marker, 1.0)
        return {"marker": self.marker, "markersize": size, "markerfacecolor": self.colour}


# The reference points look the same in every figure.
_KNOWN = {
    "ours": Mark("#D55E00", "o"),
    "based": Mark("#D55E00", "o"),
    "attention": Mark("#000000", "s"),
    "sliding_window": Mark("#0072B2", "D"),
    "mamba": Mark("#56B4E9", "^"),
    "mamba2": Mark("#009E73", "v"),
    "hyena": Mark("#E69F00", "P"),
    "h3": Mark("#CC79A7", "X"),
    "delta_net": Mark("#0072B2", "<", "--"),
    "gated_delta_net": Mark("#D55E00", ">", "--"),
    "gla": Mark("#009E73", "p", "--"),
    "rwkv7": Mark("#CC79A7", "h", "--"),
    "kda": Mark("#56B4E9", "*", "--"),
    "linear_attention": Mark("#CC79A7", "P"),
    "retnet": Mark("#E69F00", "p", "--"),
    "rwkv4": Mark("#000000", "h", "--"),
}


def marks(names: Iterable[str]) -> dict[str, Mark]:
    """A mark for every name, none twice. Known names get their own, also after a colon: `taylor attention: ours`."""
    places = {name: index for index, name in enumerate(_KNOWN)}
    known = {name: name.rpartition(": ")[2] for name in names}
    chosen: dict[str, Mark] = {}
    for name in sorted(known, key=lambda name: (places.get(known[name], len(places)), name)):
        own = _KNOWN.get(known[name])
        chosen[name] = own if own and own not in chosen.values() else _next_mark(list(chosen.values()))
    return chosen


def _next_mark(taken: list[Mark]) -> Mark:
    """The least used colour with the least used marker; a colour's second use is dashed."""
    colours, shapes = [mark.colour for mark in taken], [mark.marker for mark in taken]
    looks = list(zip(colours, shapes, strict=True))

    def worth(mark: Mark) -> tuple[bool, int, bool, bool, int]:
        alike, line = (mark.colour, mark.marker) in looks, "--" if mark.colour in colours else "-"
        return mark in taken, colours.count(mark.colour), alike, mark.line != line, shapes.count(mark.marker)

    return min((Mark(*each) for each in product(_COLOURS, _MARKERS, ("-", "--"))), key=worth)


def new_figure(width: str, height: float) -> Figure:
    """An empty figure as wide as a column ("single" or "double"), `height` inches high, that lays itself out."""
    layout = ConstrainedLayoutEngine(w_pad=0.03, h_pad=0.03)
    figure = Figure(figsize=(WIDTHS[width], height), dpi=300, layout=layout)
    FigureCanvasAgg(figure)
    return figure


def legend_above(figure: Figure, entries: Sequence[Line2D]) -> None:
    """A legend over the axes, where it hides no data, in as many columns as fit; the figure grows by its height."""
    look: Look = {"fontsize": SMALL, "frameon": False, "borderpad": 0.0, "borderaxespad": 0.3}
    look |= {"handlelength": 2.2, "columnspacing": 1.4}
    for columns in range(min(len(entries), 6), 0, -1):
        legend = figure.legend(handles=entries, loc="outside upper left", ncols=columns, **look)
        box = legend.get_window_extent()
        if columns == 1 or box.width <= figure.bbox.width:
            break
        legend.remove()
    figure.set_figheight(figure.get_figheight() + box.height / figure.dpi)


def add_note(figure: Figure, note: str) -> None:
    """A remark in small grey type beneath everything, broken to the figure's width."""
    lines = textwrap.wrap(note, int(figure.get_figwidth() * _LETTERS_PER_INCH))
    figure.supxlabel("\n".join(lines), x=0.01, ha="left", size=TINY, color=MUTED)


def freeze(figure: Figure) -> None:
    """Lay the figure out once and for all, so that places can be measured in pixels."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")


def style_axes(axes: Axes) -> None:
    """Thin frame at left and bottom, a faint grid behind, small text."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set(color=MUTED, linewidth=0.6)
    axes.tick_params(which="both", labelsize=SMALL, color=MUTED, labelcolor=INK, width=0.6, length=2.5)
    axes.grid(True, which="major", color=HAIR, linewidth=0.5)
    axes.set_axisbelow(True)


def check_path(path: Path) -> None:
    """Raise UserError for a file name that no figure can be saved as."""
    if path.suffix.lstrip(".").lower() not in FORMATS:
        ending = repr(path.suffix) if path.suffix else "no ending"
        raise UserError(f"{str(path)!r} has {ending}: a figure is saved as .{', .'.join(FORMATS)}.")


def save(figure: Figure, path: Path) -> Path:
    """Write the figure, fonts embedded; the same figure gives the same bytes. Raises UserError if it cannot."""
    check_path(path)
    kind = path.suffix.lstrip(".").lower()
    drawn = io.BytesIO()
    with matplotlib.rc_context(_SAVED_AS):
        figure.savefig(drawn, format=kind, metadata=_UNDATED[kind])
    atomic.write_out(path, drawn.getbuffer(), "the figure")
    return path
