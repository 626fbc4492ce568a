"""The slices figure: a panel per family, a line per model, the names beside the lines."""

import itertools

import numpy as np
import pandas as pd
import pytest

from basedbench.analysis import select
from basedbench.errors import UserError
from basedbench.plots.pareto import pareto
from basedbench.plots.slices import slice_metrics, slices
from basedbench.plots.style import save


def drawn(frame, **options):
    metrics = slice_metrics(frame)
    points = select(frame, ["state_bytes", *metrics])
    return points, slices(points, metrics, **options)


@pytest.fixture(scope="module")
def figure(recall):
    return drawn(recall)[1]


def panel(figure, title):
    return next(axes for axes in figure.axes if axes.get_title(loc="left") == title)


def test_metrics_are_ordered_by_pairs_and_take_the_longest(make_row):
    tested = {"64x16": 1.0, "64x4": 1.0, "128x4": 1.0, "1024x8": 1.0}
    frame = pd.DataFrame([make_row("based", 64, {}, 0.9, accuracy_by_slice=tested)])
    assert slice_metrics(frame) == ["accuracy@128x4", "accuracy@1024x8", "accuracy@64x16"]
    with pytest.raises(UserError, match="no accuracy_by_slice"):
        slice_metrics(frame.assign(accuracy_by_slice=None))


def test_one_panel_per_family_one_line_per_model(figure, recall):
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["Based", "Attention", "Sliding window"]
    curves = [line for line in panel(figure, "Based").lines if line.get_marker() != "None"]
    assert len(curves) == 9
    assert len({line.get_color() for line in curves}) == 9
    best = recall[
        (recall["d_model"] == 128)
        & recall["config"].str.contains('"feature_dim": 24')
        & (recall["learning_rate"] == 0.01)
    ]
    expected = pd.DataFrame(best["accuracy_by_slice"].tolist()).mean()
    np.testing.assert_allclose(curves[-1].get_ydata(), expected)


def test_pairs_are_on_a_logarithmic_axis_with_their_lengths(figure):
    axes = panel(figure, "Based")
    assert axes.get_xscale() == "log"
    assert list(axes.get_xticks()) == [4, 8, 16, 32, 64, 128, 256]
    texts = [tick.get_text() for tick in axes.get_xticklabels()]
    assert texts[0] == "4\n64"
    assert texts[-1] == "256\n1024"


@pytest.mark.parametrize("width", ["single", "double"])
def test_names_and_ticks_do_not_overlap(recall, width):
    for axes in drawn(recall, width=width)[1].axes:
        names = [text.get_window_extent() for text in axes.texts]
        ticks = [tick.get_window_extent() for tick in axes.get_xticklabels() if tick.get_visible() and tick.get_text()]
        for boxes in (names, ticks):
            assert not any(one.overlaps(other) for index, one in enumerate(boxes) for other in boxes[index + 1 :])
        assert all(box.x1 <= axes.figure.bbox.x1 for box in names)


def test_long_names_stay_in_their_panel(make_row):
    families = [f"a_mixer_with_a_long_name_that_goes_on_and_on_{number}" for number in range(3)]
    rows = [make_row(name, 64, {"an_option_with_a_long_name": at}, 0.5) for name in families for at in (1, 2)]
    axes = drawn(pd.DataFrame(rows))[1].axes
    for one, following in itertools.pairwise(axes):
        for text in (*one.texts, one._left_title):
            assert text.get_window_extent().x1 < following.get_window_extent().x0
        assert one.texts[0].get_text().endswith("…")


def test_names_stand_in_the_order_of_the_lines_ends(figure):
    axes = panel(figure, "Sliding window")
    names = sorted(axes.texts, key=lambda text: text.get_position()[1])
    assert [text.get_text().strip() for text in names] == [f"w{2**power}" for power in range(3, 11)]


def test_intervals_are_drawn_only_with_several_seeds(recall, figure):
    def bars(drawing):
        return [line for axes in drawing.axes for line in axes.lines if line.get_label() == "interval"]

    assert len(bars(figure)) == 19 * 7
    assert bars(drawn(recall[recall["seed"] == 0])[1]) == []


def test_a_model_that_lacks_the_last_slice_is_still_drawn(make_row):
    rows = [
        make_row("based", 64, {"feature_dim": 8}, 0.9, accuracy_by_slice={"64x4": 0.9}),
        make_row("based", 64, {"feature_dim": 16}, 0.9, accuracy_by_slice={"64x4": 1.0, "64x8": 0.8}),
    ]
    axes = drawn(pd.DataFrame(rows))[1].axes[0]
    assert [text.get_text().strip() for text in axes.texts] == ["f16"]
    assert len([line for line in axes.lines if line.get_marker() != "None"]) == 2


def test_the_note_stands_beneath(recall):
    assert drawn(recall, note="How it was done.")[1].texts[-1].get_text() == "How it was done."


def test_dollars_in_a_name_are_no_formula(make_row, tmp_path):
    rows = [make_row(name, 64, {}, 0.5, accuracy_by_slice={"64x4": 0.5}) for name in ("$\\frac{$", "a")]
    _, figure = drawn(pd.DataFrame(rows))
    save(figure, tmp_path / "slices.png")
    assert any(axes.get_title(loc="left") == "$\\frac{$" for axes in figure.axes)
    shown = select(pd.DataFrame(rows), ["state_bytes", "accuracy"])
    save(pareto(shown, note="$\\frac{$"), tmp_path / "pareto.png")
