"""The curves figure: a panel per family, a line per model, bands of seeds, marks where runs stopped early."""

import numpy as np
import pandas as pd
import pytest

from basedbench.analysis.curves import curves as curves_of
from basedbench.errors import UserError
from basedbench.plots.curves import MOST_LINES, MOST_PANELS, curves
from basedbench.plots.style import save


@pytest.fixture
def learnt(make_row):
    """Makes a run with curves: `rise` is the epoch in which it learns."""

    def make(family, config, accuracy, rise=2, epochs=8, **more):
        by_epoch = [accuracy if epoch >= rise else 0.0 for epoch in range(1, epochs + 1)]
        more = {"epochs": 8, "loss_by_epoch": [9 - 8.9 * one for one in by_epoch]} | more
        return make_row(family, 64, config, accuracy, accuracy_by_epoch=by_epoch, **more)

    return make


def drawn(*rows, y="accuracy", **options):
    return curves(curves_of(pd.DataFrame(rows), y), y, **options)


def lines(axes, label):
    return [line for line in axes.lines if line.get_label() == label]


def test_one_panel_per_family_one_line_per_model(learnt):
    figure = drawn(
        learnt("based", {"feature_dim": 8}, 0.5, rise=3, state_bytes=100),
        learnt("based", {"feature_dim": 16}, 0.9, rise=5, state_bytes=200),
        learnt("mamba", {"d_state": 8}, 0.3),
    )
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["Based", "Mamba"]
    narrow, wide = lines(figure.axes[0], "mean")
    np.testing.assert_allclose(narrow.get_xdata(), range(1, 9))
    np.testing.assert_allclose(narrow.get_ydata(), [0, 0, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5])
    assert narrow.get_color() != wide.get_color()
    assert [text.get_text().strip() for text in figure.axes[0].texts] == ["f8", "f16"]
    assert figure.axes[0].get_xticks()[0] == 1
    assert figure.axes[0].get_xticks()[-1] == 8
    assert not lines(figure.axes[0], "stopped")


def test_several_seeds_have_a_band_from_the_smallest_to_the_largest(learnt):
    rows = [learnt("based", {}, accuracy, seed=seed) for seed, accuracy in enumerate((0.2, 0.6))]
    (axes,) = drawn(*rows, learnt("based", {"feature_dim": 8}, 0.9)).axes
    bands = [one for one in axes.collections if one.get_label() == "band"]
    assert len(bands) == 1
    corners = bands[0].get_paths()[0].vertices
    assert set(corners[corners[:, 0] == 8][:, 1]) == {0.2, 0.6}
    assert lines(axes, "mean")[0].get_ydata()[-1] == pytest.approx(0.4)


def test_a_model_whose_runs_stopped_early_ends_with_a_mark_and_is_dotted_on(learnt):
    (axes,) = drawn(learnt("based", {}, 1.0, epochs=3), learnt("based", {"feature_dim": 8}, 0.5)).axes
    (mark,) = lines(axes, "stopped")
    assert (list(mark.get_xdata()), list(mark.get_ydata())) == ([3], [1.0])
    assert mark.get_marker() == "o"
    (held,) = lines(axes, "held")
    assert (list(held.get_xdata()), held.get_linestyle()) == ([3, 8], ":")


def test_a_shorter_recipe_ends_without_a_mark(learnt):
    short = learnt("based", {}, 0.5, epochs=3) | {"epochs": 3}
    (axes,) = drawn(short, learnt("based", {"feature_dim": 8}, 0.5)).axes
    assert not lines(axes, "stopped")
    assert lines(axes, "held")[0].get_linestyle() == "-"


def test_a_loss_is_on_a_logarithmic_axis_that_holds_it(learnt):
    (axes,) = drawn(learnt("based", {}, 1.0), learnt("based", {"feature_dim": 8}, 0.5), y="loss").axes
    low, high = axes.get_ylim()
    assert axes.get_yscale() == "log"
    assert 0 < low < 0.1 < 9 < high
    assert len(axes.texts) == 2


def test_a_loss_of_zero_is_on_no_axis_and_draws_all_the_same(learnt):
    gone = learnt("based", {}, 1.0, loss_by_epoch=[1.0, 0.0])
    (axes,) = drawn(gone, learnt("based", {"feature_dim": 8}, 0.5), y="loss").axes
    assert [text.get_text().strip() for text in axes.texts] == ["f8"]
    stopped = drawn(gone | {"loss_by_epoch": [0.0]}, y="loss").axes[0]
    assert not lines(stopped, "stopped")


@pytest.mark.parametrize("width", ["single", "double"])
def test_names_overlap_neither_each_other_nor_the_next_panel(learnt, width):
    rows = [
        learnt(family, {"feature_dim": at, "a_long_option_name": "x"}, 1.0 - at / 1000, state_bytes=at)
        for family in ("based", "mamba", "hyena", "h3")
        for at in range(MOST_LINES)
    ]
    figure = drawn(*rows, width=width)
    for axes in figure.axes:
        names = [text.get_window_extent() for text in axes.texts]
        assert len(names) == MOST_LINES
        assert not any(one.overlaps(other) for index, one in enumerate(names) for other in names[index + 1 :])
        assert all(box.x1 <= axes.get_window_extent().x1 + 1 for box in names)
        assert all(box.x0 >= axes.transData.transform((8, 0))[0] for box in names)


def test_the_widest_name_is_whole_though_it_has_no_more_letters_than_others(learnt):
    rows = [learnt(name, {"feature_dim": 1111111}, 0.5) for name in ("based", "linear_attention", "mamba")]
    rows += [learnt("based", {"feature_dim": 1111111}, 0.6), learnt("mamba", {"d_state": 8888888}, 0.7)]
    names = [text.get_text().strip() for axes in drawn(*rows).axes for text in axes.texts]
    assert "N8888888" in names
    assert not any("…" in name for name in names)


def test_one_epoch_alone_is_a_figure(learnt, tmp_path):
    figure = drawn(learnt("based", {}, 1.0, rise=1, epochs=1), note="How it was done.")
    assert list(figure.axes[0].get_xticks()) == [1]
    assert figure.texts[-1].get_text() == "How it was done."
    assert save(figure, tmp_path / "one.svg").stat().st_size > 1000


def test_models_without_a_curve_are_not_drawn(learnt):
    old = learnt("mamba", {}, 0.5) | {"accuracy_by_epoch": None}
    assert len(drawn(learnt("based", {}, 0.5), old).axes) == 1


def test_too_many_are_refused_with_what_to_do(learnt):
    with pytest.raises(UserError, match=f"Based would have {MOST_LINES + 1} lines.*--filter '.based d_model=64 '"):
        drawn(*(learnt("based", {"feature_dim": at}, 0.5) for at in range(MOST_LINES + 1)))
    with pytest.raises(UserError, match=f"{MOST_PANELS + 1} families.*choose some with --suite or --filter"):
        drawn(*(learnt(f"m{at}", {}, 0.5) for at in range(MOST_PANELS + 1)))
