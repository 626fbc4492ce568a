"""The generation figure: against batch and against context, a row of panels for each size."""

import numpy as np
import pandas as pd
import pytest

from basedbench.analysis.language import fastest, language_rows
from basedbench.errors import UserError
from basedbench.plots.generation import MOST_LINES, generation
from tests.plots.conftest import language_row


@pytest.fixture(scope="module")
def figure(language_frame):
    return generation(fastest(language_rows(language_frame, "generation")), 128, 1024, note="Medians.")


def lines(axes, label):
    return [line for line in axes.lines if line.get_label() == label]


def test_a_row_of_panels_for_each_size(figure):
    titles = [(axes.get_title(loc="left"), axes.texts[0].get_text()) for axes in figure.axes]
    assert titles == [
        ("1.3B models", "at context 1,024"), ("1.3B models", "at batch 128"),
        ("360M models", "at context 1,024"), ("360M models", "at batch 128"),
    ]  # fmt: skip
    assert [axes.get_xlabel() for axes in figure.axes[:2]] == ["batch", "context length"]


def test_one_line_per_model_at_its_fastest(figure):
    by_batch, by_length = figure.axes[:2]
    (attention,) = lines(by_batch, "attention")
    assert list(attention.get_xdata()) == [1, 128]
    np.testing.assert_allclose(attention.get_ydata(), [1e3 / (3 * (1 + 1 / 64)), 128e3 / (3 * 3)])
    (based,) = lines(by_length, "based")
    assert list(based.get_xdata()) == [1024, 4096]
    assert len(set(based.get_ydata())) == 1
    assert len(lines(by_length, "interval")) == 4


def test_running_out_of_memory_is_a_cross(figure):
    (cross,) = lines(figure.axes[1], "attention: oom")
    assert list(cross.get_xdata()) == [4096]
    assert "oom" in {text.get_text() for text in figure.axes[1].texts}


def test_a_family_has_one_colour_and_a_model_one_look(figure, language_frame):
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["based", "attention"]
    variant = language_frame[language_frame["model"] == "attention-1.3b"].assign(model="attention-1.3b-h64")
    rows = fastest(language_rows(pd.concat([language_frame, variant], ignore_index=True), "generation"))
    axes = generation(rows, 128, 1024).axes[1]
    (wide,), (narrow,) = lines(axes, "attention"), lines(axes, "attention-h64")
    assert wide.get_color() == narrow.get_color() != lines(axes, "based")[0].get_color()
    assert wide.get_marker() != narrow.get_marker()
    assert wide.get_linestyle() != narrow.get_linestyle()


def test_a_panel_of_one_place_is_left_out(language_frame):
    rows = language_rows(language_frame[language_frame["batch"] == 128], "generation")
    assert {axes.texts[0].get_text() for axes in generation(fastest(rows), 128, 1024).axes} == {"at batch 128"}
    one = language_rows(pd.DataFrame([language_row("based-360m", 1, 8, 2.0)]), "generation")
    (axes,) = generation(one, 1, 8).axes  # against context would show the same
    assert axes.texts[0].get_text() == "at context 8"
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["450", "500", "550", "600"]


def test_too_many_lines_are_refused_with_a_way_out():
    many = [language_row(f"based-360m-{n}", 1, length, 2.0) for n in range(MOST_LINES + 1) for length in (8, 16)]
    with pytest.raises(UserError, match=r"--filter"):
        generation(language_rows(pd.DataFrame(many), "generation"), 1, 8)


def test_of_two_sizes_timed_at_one_context_each_the_other_one_has_no_panel_against_batch(language_frame):
    rows = fastest(language_rows(language_frame, "generation"))
    place = {"1.3b": 1024, "360m": 4096}
    rows = rows[(rows["batch"] == 128) & (rows["family"] == "attention") & (rows["length"] == rows["size"].map(place))]
    assert set(rows["size"]) == set(place)
    titles = [(axes.get_title(loc="left"), axes.texts[0].get_text()) for axes in generation(rows, 128, 1024).axes]
    assert ("360M models", "at batch 128") in titles
    assert ("360M models", "at context 1,024") not in titles
