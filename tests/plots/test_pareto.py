"""The frontier figure: what it draws, that nothing overlaps, and that it says how its points were chosen."""

import numpy as np
import pandas as pd
import pytest

from basedbench.analysis import pareto_front, published, select, selection_note
from basedbench.errors import UserError
from basedbench.plots.pareto import FRONTIER, pareto
from basedbench.plots.style import marks, save
from basedbench.plots.tables import point_table


@pytest.fixture(scope="module")
def points(recall):
    return select(recall)


@pytest.fixture(scope="module")
def figure(points):
    return pareto(points, note=selection_note(points))


def lines(axes, label):
    return [line for line in axes.lines if line.get_label() == label]


def test_bytes_are_on_a_logarithmic_axis_in_powers_of_two(figure):
    (axes,) = figure.axes
    assert axes.get_xscale() == "log"
    assert axes.get_yscale() == "linear"
    texts = [tick.get_text() for tick in axes.get_xticklabels()]
    assert {"8 KiB", "64 KiB", "1 MiB"} <= set(texts)
    assert axes.get_xlabel() == "State per sequence (measured, fp32)"
    assert axes.get_ylabel() == "Recall accuracy"


def test_every_family_has_a_line_through_its_own_frontier(figure, points):
    for name, family in points.groupby("family"):
        (line,) = lines(figure.axes[0], name)
        np.testing.assert_array_equal(line.get_xydata(), pareto_front(family)[["state_bytes", "accuracy"]])


def test_every_point_has_a_marker_of_its_familys_kind(figure, points):
    drawn = [
        (x, y, line.get_markerfacecolor(), line.get_marker())
        for line in figure.axes[0].lines
        if line.get_linestyle() == "None" and line.get_marker() != "_"
        for x, y in line.get_xydata()
    ]
    style = marks(points["family"])
    expected = [
        (x, y, style[family].colour, style[family].marker)
        for x, y, family in points[["state_bytes", "accuracy", "family"]].itertuples(index=False)
    ]
    assert sorted(drawn) == sorted(expected)


def test_variants_of_one_mixer_have_a_line_and_a_title_each(make_row):
    names = ["linear_attention", *(f"linear_attention/{name}" for name in ("identity", "relu", "cosformer"))]
    rows = [
        make_row(
            name, d_model, {"feature_dim": d_model}, 0.1 * place, mixer="linear_attention", state_bytes=4 * d_model**2
        )
        for place, name in enumerate(names, start=1)
        for d_model in (64, 128)
    ]
    points = select(pd.DataFrame(rows), ["state_bytes", "accuracy@256"])
    drawn = pareto(points, y="accuracy@256")
    titles = [text.get_text() for text in drawn.legends[0].get_texts()]
    variants = [f"Linear attention, {title}" for title in ("CosFormer", "Identity", "ReLU")]
    assert titles == ["Linear attention", *variants, FRONTIER]
    assert all(len(lines(drawn.axes[0], name)) == 1 for name in names)


def test_the_frontier_is_a_stair_over_all_points(figure, points):
    (stair,) = lines(figure.axes[0], FRONTIER)
    x, y = stair.get_data()
    assert np.all(np.diff(x) >= 0)
    assert np.all(np.diff(y) >= 0)
    assert np.all((np.diff(x) == 0) | (np.diff(y) == 0))
    for cost, accuracy in points[["state_bytes", "accuracy"]].itertuples(index=False):
        best = max(height for at, height in zip(x, y, strict=True) if at <= cost)
        assert best >= accuracy - 1e-12
    assert x[-1] == figure.axes[0].get_xlim()[1]


def test_a_rate_makes_the_stair_fall(points):
    rates = points.assign(decode_tokens_per_s=1e9 / points["state_bytes"])
    axes = pareto(rates, x="decode_tokens_per_s").axes[0]
    x, y = lines(axes, FRONTIER)[0].get_data()
    assert np.all(np.diff(x) >= 0)
    assert np.all(np.diff(y) <= 0)
    assert x[0] == axes.get_xlim()[0]
    assert "10k" in [tick.get_text() for tick in axes.get_xticklabels()]


def test_a_measured_rate_has_level_bars_that_may_be_open(points):
    rate = 1e9 / points["state_bytes"]
    ends = {"decode_tokens_per_s_low": 0.9 * rate, "decode_tokens_per_s_high": 1.1 * rate}
    rates = points.assign(decode_tokens_per_s=rate, **ends, accuracy_low=np.nan, accuracy_high=np.nan)
    rates.loc[rates.index[0], "decode_tokens_per_s_high"] = np.nan  # of rounds so far apart that there is no end
    axes = pareto(rates, x="decode_tokens_per_s").axes[0]
    bars = {tuple(line.get_xdata()) for line in lines(axes, "interval")}
    first, *others = rate
    assert bars == {(0.9 * first, axes.get_xlim()[1]), *((0.9 * one, 1.1 * one) for one in others)}


def test_seeds_are_bars_within_what_is_possible(figure, points):
    bars = sorted(tuple(line.get_ydata()) for line in lines(figure.axes[0], "interval"))
    ends = points[["accuracy_low", "accuracy_high"]].clip(0, 1).itertuples(index=False)
    assert bars == sorted((low, high) for low, high in ends)
    assert any(high == 1.0 for _, high in bars)


def test_one_seed_has_no_bars(recall):
    points = select(recall[recall["seed"] == 0])
    assert lines(pareto(points).axes[0], "interval") == []


@pytest.mark.parametrize("width", ["single", "double"])
def test_labels_name_configurations_and_overlap_nothing(points, width):
    figure = pareto(points, width=width)
    axes = figure.axes[0]
    assert {"d48 f8", "d128 f24", "w64"} <= {text.get_text() for text in axes.texts}
    boxes = [text.get_window_extent() for text in axes.texts]
    markers = axes.transData.transform(points[["state_bytes", "accuracy"]])
    for index, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[index + 1 :])
        assert not any(box.contains(x, y) for x, y in markers)
    assert len(boxes) > len(points) * (0.6 if width == "single" else 0.75)


@pytest.mark.parametrize("width", ["single", "double"])
def test_the_legend_names_families_and_hides_no_data(points, width):
    figure = pareto(points, width=width)
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["Based", "Attention", "Sliding window", FRONTIER]
    box = legend.get_window_extent()
    assert not box.overlaps(figure.axes[0].get_window_extent())
    assert figure.bbox.x1 >= box.x1
    assert figure.bbox.y1 >= box.y1


def test_the_note_stands_beneath(figure):
    note = figure.texts[0].get_text().replace("\n", " ")
    assert note.startswith("Best of 2 learning rates per model, chosen on the test split; mean of 3 seeds")
    assert figure.texts[0].get_window_extent().y1 < figure.axes[0].xaxis.label.get_window_extent().y0


def test_published_points_are_hollow_and_dotted(recall):
    points = select(recall[recall["family"] == "based"], ["state_bytes_zoology", "accuracy"])
    figure = pareto(points, "state_bytes_zoology", published=published())
    (hollow,) = lines(figure.axes[0], "delta_net, Published")
    assert hollow.get_markerfacecolor() == "white"
    np.testing.assert_array_equal(hollow.get_ydata(), [0.793, 0.963, 0.995])
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert {"Based", "DeltaNet", "Published"} <= set(texts)
    assert "digitised" in figure.texts[0].get_text()


def test_published_points_are_not_part_of_the_frontier(recall):
    points = select(recall[recall["family"] == "based"], ["state_bytes_zoology", "accuracy"])
    stairs = [
        lines(pareto(points, "state_bytes_zoology", published=known).axes[0], FRONTIER)[0].get_ydata()
        for known in (None, published())
    ]
    np.testing.assert_array_equal(*stairs)


def test_the_table_stands_beneath_in_rows_that_do_not_overlap(points):
    rows = point_table(points, "state_bytes", "accuracy")
    figure = pareto(points, table=rows)
    plain = pareto(points)
    assert figure.get_figheight() > plain.get_figheight()
    axes, beneath = figure.axes
    words = [text for text in beneath.texts if text.get_text()]
    assert {"Based", "d64 f16", "39.6 KiB"} <= {text.get_text() for text in words}
    assert axes.get_window_extent().y0 > max(text.get_window_extent().y1 for text in words)
    boxes = [text.get_window_extent() for text in words]
    assert not any(one.overlaps(other) for index, one in enumerate(boxes) for other in boxes[index + 1 :])
    assert all(figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1 for box in boxes)


def test_table_rows(points):
    header, *rows = point_table(points.assign(published=0.5, difference=0.1), "state_bytes", "accuracy")
    assert header == ["", "family", "model", "state", "accuracy", "lr", "seeds", "published", "difference"]
    assert len(rows) == len(points)
    assert [row[0] for row in rows].count("*") == len(pareto_front(points))
    row = next(row for row in rows if row[2] == "d64 f16")
    assert row[:2] == ["*", "Based"]
    assert row[3] == "39.6 KiB"
    assert row[4].startswith("0.9")
    assert "±0.0" in row[4]
    assert row[5:] == ["0.01", "3", "0.500", "+0.100"]


def test_a_diverged_seed_shows_in_the_table(make_row):
    frame = pd.DataFrame([make_row("based", 64, {}, 0.9), make_row("based", 64, {}, np.nan, seed=1, status="diverged")])
    assert point_table(select(frame), "state_bytes", "accuracy")[1][-1] == "1 of 2"


def test_every_learning_rate_can_be_drawn(recall):
    points = select(recall[recall["family"] == "attention"], how="all")
    assert {"d64 lr 0.01", "d64 lr 0.001"} <= {text.get_text() for text in pareto(points).axes[0].texts}


def test_one_point_is_a_figure(make_row):
    axes = pareto(select(pd.DataFrame([make_row("based", 64, {"feature_dim": 16}, 0.9)]))).axes[0]
    assert [text.get_text() for text in axes.texts] == ["f16"]


def test_points_without_a_place_are_left_out(make_row):
    rows = [make_row("based", 64, {}, 0.9), make_row("none", 64, {}, 0.1, state_bytes=0)]
    rows.append(make_row("endless", 64, {}, 0.1, state_bytes=np.inf))
    axes = pareto(select(pd.DataFrame(rows))).axes[0]
    assert lines(axes, "none") == lines(axes, "endless") == []
    with pytest.raises(UserError, match="no point has both state_bytes"):
        pareto(select(pd.DataFrame(rows[1:])))


def test_svg_is_the_same_every_time(points, tmp_path):
    files = [save(pareto(points), tmp_path / f"{name}.svg").read_bytes() for name in "ab"]
    assert files[0] == files[1]
    assert b"<dc:date>" not in files[0]
