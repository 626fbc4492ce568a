"""The throughput figure: log-log panels, intervals, and failures along the top."""

import numpy as np
import pandas as pd
import pytest

from basedbench.analysis.timings import timings
from basedbench.errors import UserError
from basedbench.plots.throughput import MOST_PANELS, throughput


@pytest.fixture(scope="module")
def figure(throughput_rows):
    return throughput(timings(throughput_rows), note="Medians.")


def lines(axes, label):
    return [line for line in axes.lines if line.get_label() == label]


def test_one_panel_per_mode(figure):
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["Taylor attention", "Taylor attention"]
    assert [axes.texts[0].get_text() for axes in figure.axes] == ["forward", "forward and backward"]


def test_both_axes_are_logarithmic_in_readable_units(figure):
    axes = figure.axes[0]
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["1k", "2k", "4k", "8k", "16k"]
    assert "10 ns" in [tick.get_text() for tick in axes.get_yticklabels()]


def test_one_line_per_contender_with_its_intervals(figure):
    axes = figure.axes[0]
    (ours,) = lines(axes, "ours")
    np.testing.assert_allclose(ours.get_ydata(), 1e-8 / 2)
    assert len(lines(axes, "reference")[0].get_ydata()) == 3
    bars = [line.get_ydata() for line in lines(axes, "interval")]
    assert len(bars) == 5 + 5 + 3
    np.testing.assert_allclose(bars[0], [0.98e-8 / 2, 1.03e-8 / 2])


def test_failures_are_crosses_along_the_top_with_their_status(figure):
    axes = figure.axes[0]
    (oom,) = lines(axes, "reference: oom")
    (unsupported,) = lines(axes, "fla: unsupported")
    assert list(oom.get_xdata()) == [8192, 16384]
    assert list(unsupported.get_xdata()) == [1024, 2048, 4096, 8192, 16384]
    assert oom.get_ydata()[0] != unsupported.get_ydata()[0]
    assert {"oom", "unsupported"} <= {text.get_text() for text in axes.texts}


def test_failures_stand_above_all_data(figure):
    axes = figure.axes[0]
    heights = [line.get_ydata()[0] for line in axes.lines if line.get_marker() == "x"]
    lowest = axes.transAxes.transform((0, min(heights)))[1]
    data = [line for line in axes.lines if line.get_label() in ("ours", "sdpa", "reference")]
    assert max(axes.transData.transform(line.get_xydata())[:, 1].max() for line in data) < lowest


def test_the_legend_names_contenders(figure):
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["ours", "fla", "reference", "sdpa"]
    assert not any(legend.get_window_extent().overlaps(axes.get_window_extent()) for axes in figure.axes)
    assert legend.get_window_extent().x1 <= figure.bbox.x1


def test_an_interval_with_an_open_end_reaches_the_edge(throughput_rows):
    axes = throughput(timings(throughput_rows.assign(ci_low_ms=-1.0))).axes[0]
    bars = [line.get_ydata() for line in lines(axes, "interval")]
    assert len(bars) == 13
    assert all(bar[0] == axes.get_ylim()[0] for bar in bars)
    unknown = throughput(timings(throughput_rows.assign(ci_low_ms=None, ci_high_ms=None)))
    assert lines(unknown.axes[0], "interval") == []


def test_shapes_are_kinds_of_lines(throughput_rows):
    more = throughput_rows.assign(batch=16)
    figure = throughput(timings(pd.concat([throughput_rows, more])))
    kinds = {line.get_linestyle() for line in lines(figure.axes[0], "ours")}
    assert len(kinds) == 2
    assert {"B 2", "B 16"} <= {text.get_text() for text in figure.legends[0].get_texts()}


def test_a_failure_at_one_of_several_shapes_says_which(throughput_rows):
    rows = throughput_rows[throughput_rows["contender"].isin(["ours", "sdpa"])]
    large = rows.assign(batch=16).copy()
    large.loc[(large["contender"] == "sdpa") & (large["length"] == 16384), "status"] = "oom"
    axes = throughput(timings(pd.concat([rows, large]))).axes[0]
    assert "oom (B 16)" in {text.get_text() for text in axes.texts}


def test_nothing_but_failures_is_a_figure(throughput_rows):
    axes = throughput(timings(throughput_rows[throughput_rows["contender"] == "fla"])).axes[0]
    assert len(lines(axes, "fla: unsupported")) == 1
    assert not list(axes.get_yticks())  # of no time


def test_decode_is_against_context_or_batch(throughput_rows):
    decode = throughput_rows[throughput_rows["mode"] == "fwd"].assign(mode="decode")
    assert throughput(timings(decode)).axes[0].get_xlabel() == "context length"
    batches = decode.assign(batch=decode["length"] // 512, length=1)
    assert throughput(timings(batches)).axes[0].get_xlabel() == "batch"


def test_too_many_panels_are_refused_with_a_way_out(throughput_rows):
    rows = pd.concat([throughput_rows.assign(operator=f"operator_{number}") for number in range(MOST_PANELS)])
    with pytest.raises(UserError, match=f"{2 * MOST_PANELS} panels.*--operator"):
        throughput(timings(rows.assign(baseline=None)))


def test_single_width_has_one_column(throughput_rows):
    figure = throughput(timings(throughput_rows), width="single")
    assert len({round(axes.get_position().x0, 3) for axes in figure.axes}) == 1


def test_an_option_in_a_models_name_keeps_its_underscore(throughput_rows):
    rows = throughput_rows.assign(operator=None, model="base_conv+based d_model=64")
    titles = {axes.get_title(loc="left") for axes in throughput(timings(rows)).axes}
    assert titles == {"Base conv+based d_model=64"}


def test_failures_do_not_change_the_axis(throughput_rows):
    """Ticks, scale and axis line are those of what was timed, whatever failed; the panel is higher."""
    timed = throughput_rows[throughput_rows["status"] == "ok"]
    names = [f"fails{number}" for number in range(6)]
    failed = [throughput_rows[throughput_rows["contender"] == "fla"].assign(contender=name) for name in names]
    few, many = throughput(timings(timed)), throughput(timings(pd.concat([timed, *failed])))
    for calm, full in zip(few.axes, many.axes, strict=True):
        assert list(full.get_yticks()) == list(calm.get_yticks())
        assert full.spines["left"].get_bounds() == pytest.approx(calm.get_ylim())
        heights = [np.diff(axes.transData.transform([(1024, low), (1024, high)])[:, 1])[0]
                   for axes in (calm, full) for low, high in [calm.get_ylim()]]  # fmt: skip
        assert heights[1] == pytest.approx(heights[0], rel=0.1)  # pixels of the data
