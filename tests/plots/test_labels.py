"""Labels hide nothing, cannot be read as another's, and are left out where they do not fit."""

import numpy as np
import pytest

from basedbench.plots.ends import spread
from basedbench.plots.labels import Label, place_labels
from basedbench.plots.style import freeze, new_figure

SIZE = 5.0


@pytest.fixture
def axes():
    figure = new_figure("double", 3.0)
    axes = figure.add_subplot(xlim=(0, 1), ylim=(0, 1))
    freeze(figure)
    return axes


def place(axes, places, lines=(), important=()):
    labels = [Label(x, y, f"d{index} f16", "black", index in important) for index, (x, y) in enumerate(places)]
    return place_labels(axes, labels, np.array(places), lines, SIZE)


def boxes(texts):
    return [text.get_window_extent() for text in texts]


@pytest.mark.parametrize("seed", range(5))
def test_labels_overlap_neither_each_other_nor_markers(axes, seed):
    places = np.random.default_rng(seed).uniform(0.02, 0.98, (60, 2))
    texts = place(axes, places)
    assert len(texts) > 10
    extents = boxes(texts)
    for index, one in enumerate(extents):
        assert not any(one.overlaps(other) for other in extents[index + 1 :])
        for x, y in axes.transData.transform(places):
            assert not (one.x0 < x < one.x1 and one.y0 < y < one.y1)
        assert axes.get_window_extent().contains(one.x0, one.y0)
        assert axes.get_window_extent().contains(one.x1, one.y1)


def test_a_label_is_nearest_to_its_own_point(axes):
    places = np.random.default_rng(7).uniform(0.05, 0.95, (40, 2))
    pixels = axes.transData.transform(places)
    for text in place(axes, places):
        box = text.get_window_extent()
        across = np.maximum(np.maximum(box.x0 - pixels[:, 0], pixels[:, 0] - box.x1), 0)
        up = np.maximum(np.maximum(box.y0 - pixels[:, 1], pixels[:, 1] - box.y1), 0)
        own = int(text.get_text().split()[0][1:])
        distance = np.hypot(across, up)
        assert distance[own] <= distance.min() + 1


def test_a_lone_label_stands_at_the_right(axes):
    (text,) = place(axes, [(0.5, 0.5)])
    assert text.get_position()[0] > 0.5
    (text,) = place(axes, [(0.99, 0.5)])
    assert text.get_window_extent().x1 < axes.transData.transform((0.99, 0.5))[0]


def test_lines_are_not_crossed_unless_it_matters(axes):
    # A fence of lines around the point: no label fits without crossing one.
    fence = [np.array([(x, 0.0), (x, 1.0)]) for x in np.linspace(0.3, 0.7, 81)]
    assert place(axes, [(0.5, 0.5)], fence) == []
    assert len(place(axes, [(0.5, 0.5)], fence, important={0})) == 1


def test_a_label_steps_aside_for_a_line(axes):
    (text,) = place(axes, [(0.5, 0.5)], [np.array([(0.5, 0.5), (1.0, 0.5)])])
    box, (_, height) = text.get_window_extent(), axes.transData.transform((0.5, 0.5))
    assert not box.y0 < height < box.y1 or box.x1 < axes.transData.transform((0.5, 0.5))[0]


def test_important_labels_choose_first(axes):
    crowd = [(0.5, 0.5)] * 2
    (text, *_) = place(axes, crowd, important={1})
    assert text.get_text() == "d1 f16"


def test_left_out_labels_leave_nothing_behind(axes):
    texts = place(axes, [(0.5, 0.5)] * 60)
    assert len(axes.texts) == len(texts) < 60


@pytest.mark.parametrize("seed", range(10))
def test_spread_keeps_distance_order_and_bounds(seed):
    wanted = np.random.default_rng(seed).uniform(0, 1, 8)
    placed = spread(wanted, 0.1, 0.0, 1.0)
    order = np.argsort(wanted)
    assert np.all(np.diff(placed[order]) >= 0.1 - 1e-9)
    assert placed.min() >= -1e-9
    assert placed.max() <= 1 + 1e-9


def test_spread_moves_only_what_must_move():
    np.testing.assert_allclose(spread(np.array([0.9, 0.5, 0.1]), 0.1, 0, 1), [0.9, 0.5, 0.1])
    np.testing.assert_allclose(spread(np.array([0.5, 0.5]), 0.1, 0, 1), [0.45, 0.55])
    np.testing.assert_allclose(spread(np.array([0.0, 0.0]), 0.1, 0, 1), [0.0, 0.1])
