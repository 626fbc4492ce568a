"""Names beside the ends of lines, at the right of a panel, where a legend would have too many shades to tell apart."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from matplotlib.text import Text

from basedbench.plots.style import TINY, Mark

LINE = 0.1  # inches, of a name
_ROOM = (0.03, 0.97)  # of the frame's height
_PALEST = 0.55  # how far towards white the first of several lines is drawn


def shades(mark: Mark, count: int, darkest: float = 0.0) -> list[str]:
    """The mark's colour, from pale to full, or on to this far towards black."""
    paleness = np.linspace(_PALEST, -darkest, count) if count > 1 else [0.0]
    return [_shade(to_rgb(mark.colour), float(pale)) for pale in paleness]


def _shade(colour: tuple[float, float, float], pale: float) -> str:
    """The colour moved by this share towards white, or below 0 towards black."""
    red, green, blue = (part + (1 - part) * pale if pale > 0 else part * (1 + pale) for part in colour)
    return to_hex((red, green, blue))


def name_ends(
    axes: Axes, places: tuple[float, float], values: np.ndarray, names: Sequence[str], colours: Sequence[str], ink: str
) -> None:
    """Write a name for every line, as near to its end as the others allow, tied to it by a hair line.

    Lines end at (places[0], value), names begin at places[1]; a line without a finite value has none. The layout must
    be final: heights are measured in pixels.
    """
    ended = [index for index, value in enumerate(values) if np.isfinite(value)]
    if not ended:
        return
    frame, pixels = axes.get_window_extent(), axes.transData.transform([(places[0], values[index]) for index in ended])
    # Lines of the grid end where the axis does, and run through no name.
    beside = axes.transData.inverted().transform((pixels[0, 0] + axes.figure.dpi / 72, 0))[0]
    axes.axvspan(beside, axes.get_xlim()[1], facecolor="white", edgecolor="none", zorder=0.6)
    gap = LINE * axes.figure.dpi / frame.height
    heights = frame.y0 + spread((pixels[:, 1] - frame.y0) / frame.height, gap, *_ROOM) * frame.height
    written = axes.transData.inverted().transform([(pixels[0, 0], height) for height in heights])[:, 1]
    for index, height in zip(ended, written, strict=True):
        axes.plot(places, [values[index], height], color=colours[index], linewidth=0.5, zorder=1, label="leader")
        text = axes.text(places[1], height, " " + names[index], size=TINY, color=ink, va="center", clip_on=False)
        _shorten(text, frame.x1)


def _shorten(text: Text, edge: float) -> None:
    """Cut a name off, visibly, where the next panel begins; the table has it whole."""
    name = text.get_text()
    while len(name) > 1 and text.get_window_extent().x1 > edge:
        name = name[:-1].rstrip()
        text.set_text(name + "…")


def spread(wanted: np.ndarray, gap: float, low: float, high: float) -> np.ndarray:
    """Places as near to the wanted ones as is possible at least `gap` apart and, if there is room, within low..high."""
    order = np.argsort(wanted, kind="stable")
    steps = np.arange(len(order)) * gap
    # Without the gaps already taken, the places only have to rise: pool neighbours that do not (isotonic regression).
    free = np.clip(_rising(wanted[order] - steps), low, max(low, high - steps[-1]))
    placed = np.empty(len(order))
    placed[order] = free + steps
    return placed


def _rising(values: np.ndarray) -> np.ndarray:
    """The nearest non-decreasing sequence in least squares: pool adjacent violators."""
    pools: list[tuple[float, int]] = []
    for value in values:
        mean, count = float(value), 1
        while pools and pools[-1][0] > mean:
            before, size = pools.pop()
            mean, count = (before * size + mean * count) / (size + count), size + count
        pools.append((mean, count))
    return np.concatenate([np.full(count, mean) for mean, count in pools])
