"""Labels beside points, only where they hide nothing.

Every label tries the places around its point, nearest first, and takes one that overlaps no marker and no other label,
crosses no line or interval, and is nearer to its own point than to any other. A label that finds none is left out: the
table has it. Important labels choose first and may cross a line if they must.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patheffects import withStroke
from matplotlib.text import Text

from basedbench.plots.style import TINY

_SIDES = np.array(
    [(1, 0), (-1, 0), (0, 1), (0, -1), (1, -1), (-1, 1), (1, 1), (-1, -1), (1, -0.5), (-1, 0.5), (1, 0.5), (-1, -0.5)]
)
_GAPS = (1.2, 3.5, 6.0)  # points of white between marker and label
_HALO = [withStroke(linewidth=1.2, foreground="white")]


@dataclass(frozen=True)
class Label:
    """A text for the point (x, y), in data coordinates."""

    x: float
    y: float
    text: str
    colour: str
    important: bool = False


def place_labels(
    axes: Axes, labels: Sequence[Label], markers: np.ndarray, lines: Sequence[np.ndarray], marker_size: float
) -> list[Text]:
    """Write the labels that fit; returns their texts.

    `markers` (n, 2) are points not to hide, `lines` (m, 2) each courses not to cross, in data coordinates; marker_size
    in points. The layout must be final: places are measured in pixels.
    """
    pixels = axes.figure.dpi / 72
    radius = marker_size / 2 * pixels
    centres = axes.transData.transform(markers)
    taken = np.concatenate([centres - radius, centres + radius], axis=1)
    courses = np.concatenate([_course(axes.transData.transform(line)) for line in [markers[:1], *lines]])
    written = []
    for label in sorted(labels, key=lambda label: not label.important):
        text = axes.text(
            label.x, label.y, label.text, size=TINY, color=label.colour, va="bottom", zorder=6, path_effects=_HALO
        )
        own = axes.transData.transform((label.x, label.y))
        boxes = _boxes_around(own, text, radius + np.array(_GAPS) * pixels)
        free = ~_overlaps(boxes, taken) & _within(boxes, axes) & _nearest_own(boxes, own, centres)
        crossed = np.where(free, _crossings(boxes, courses), np.inf)
        best = int(np.argmin(crossed))
        if crossed[best] > (1e9 if label.important else 0):
            text.remove()
            continue
        text.set_position(tuple(axes.transData.inverted().transform(boxes[best, :2])))
        air = np.array([-1, -1, 1, 1]) * pixels
        taken = np.concatenate([taken, boxes[best][None] + air])
        written.append(text)
    return written


def _boxes_around(own: np.ndarray, text: Text, distances: np.ndarray) -> np.ndarray:
    """Candidate boxes (left, bottom, right, top) for a text at these distances from its point, best first."""
    extent = text.get_window_extent()
    size = np.array([extent.width, extent.height])
    middles = np.concatenate([own + _SIDES * (distance + size / 2) for distance in distances])
    return np.concatenate([middles - size / 2, middles + size / 2], axis=1)


def _overlaps(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """For each box, whether it meets any of the others."""
    apart = np.maximum(boxes[:, None, :2] - others[None, :, 2:], others[None, :, :2] - boxes[:, None, 2:])
    meets: np.ndarray = np.all(apart < 0, axis=2)
    return np.asarray(meets.any(axis=1))


def _within(boxes: np.ndarray, axes: Axes) -> np.ndarray:
    frame = axes.get_window_extent()
    inside = (boxes >= (frame.x0, frame.y0, -np.inf, -np.inf)) & (boxes <= (np.inf, np.inf, frame.x1, frame.y1))
    return np.asarray(inside.all(axis=1))


def _nearest_own(boxes: np.ndarray, own: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """For each box, whether no other point is nearer than the label's own: it cannot be read as another's."""
    return _distances(boxes, own[None])[:, 0] <= _distances(boxes, centres).min(axis=1) + 0.5


def _distances(boxes: np.ndarray, places: np.ndarray) -> np.ndarray:
    """From each box to each place, in pixels."""
    short = boxes[:, None, :2] - places[None]
    beyond = places[None] - boxes[:, None, 2:]
    return np.hypot(*np.maximum(np.maximum(short, beyond), 0).transpose(2, 0, 1))


def _crossings(boxes: np.ndarray, courses: np.ndarray) -> np.ndarray:
    """For each box, how many pixels of the lines run through it."""
    inside = (courses[None] > boxes[:, None, :2]) & (courses[None] < boxes[:, None, 2:])
    return inside.all(axis=2).sum(axis=1)


def _course(line: np.ndarray) -> np.ndarray:
    """A polyline in pixels as points one or two pixels apart."""
    steps = np.hypot(*np.diff(line, axis=0).T)
    along = np.concatenate([[0.0], np.cumsum(steps)])
    places = np.linspace(0, along[-1], int(along[-1] // 1.5) + 1)
    return np.stack([np.interp(places, along, line[:, side]) for side in (0, 1)], axis=1)
