"""Numbers and ticks as they are written on axes."""

import math

import pytest

from basedbench.plots.scales import column_title, count_text, log_axis, log_ticks, quantity
from basedbench.plots.style import new_figure


@pytest.mark.parametrize(
    ("value", "name", "text"),
    [
        (2048, "state_bytes", "2 KiB"),
        (40_548, "state_bytes_zoology", "39.6 KiB"),
        (1_050_112, "state_bytes", "1 MiB"),
        (1023, "peak_memory_bytes", "1023 B"),
        (0, "state_bytes", "0 B"),
        (3 * 2**40, "bytes", "3 TiB"),
        (1_234_567, "parameters", "1.23M"),
        (999, "parameters", "999"),
        (0.0316, "learning_rate", "0.0316"),
        (24.5, "train_s", "24.5"),
        (2.5e-9, "time_per_token", "2.5 ns"),
        (1e-6, "time_per_token", "1 µs"),
        (3.2, "time_per_token", "3.2 s"),
        (5e-13, "time_per_token", "0.5 ps"),
        (math.nan, "state_bytes", "-"),
    ],
)
def test_quantities(value, name, text):
    assert quantity(value, name) == text


@pytest.mark.parametrize(("value", "text"), [(512, "512"), (1024, "1k"), (131_072, "128k"), (4097, "4097")])
def test_counts(value, text):
    assert count_text(value) == text


@pytest.mark.parametrize(
    ("name", "title"),
    [
        ("state_bytes", "State per sequence (measured, fp32)"),
        ("accuracy@256", "Recall accuracy, 256 pairs"),
        ("accuracy@1024x256", "Recall accuracy, 256 pairs, length 1024"),
        ("decode_tokens_per_s", "Decode tokens per second"),
    ],
)
def test_titles(name, title):
    assert column_title(name) == title


@pytest.mark.parametrize("low", [1.0, 3.0, 700.0, 5e3, 9.7e4])
@pytest.mark.parametrize("span", [1.5, 4.0, 30.0, 300.0, 1e6])
@pytest.mark.parametrize(("base", "most"), [(2, 5), (2, 10), (10, 5), (10, 10)])
def test_ticks_lie_inside_rise_and_are_few(low, span, base, most):
    ticks = log_ticks(low, low * span, base, most)
    assert len(ticks) <= most
    assert ticks == sorted(set(ticks))
    assert all(low * 0.999 <= tick <= low * span * 1.001 for tick in ticks)
    assert len(ticks) >= (2 if span >= 4 else 0)


def test_ticks_of_bytes_are_even_powers_of_two():
    assert log_ticks(5e3, 2e6, 2, 5) == [2.0**power for power in (14, 16, 18, 20)]


def test_ticks_of_a_short_range_are_divided():
    assert log_ticks(1, 60, 10, 6) == [1, 2, 5, 10, 20, 50]
    assert log_ticks(7, 10, 10, 10) == [7, 7.5, 8, 8.5, 9, 9.5, 10]
    assert log_ticks(3072, 12288, 2, 5) == [3072, 4096, 6144, 8192, 12288]
    assert log_ticks(1082, 1558, 10, 6) == [1100, 1200, 1300, 1400, 1500]  # about a single point
    assert log_ticks(83, 120, 10, 6) == [90, 100, 110, 120]  # finer below a power than above it would be odd
    assert log_ticks(0.903, 1.301, 10, 6) == pytest.approx([1, 1.1, 1.2, 1.3])
    assert log_ticks(2600, 3500, 2, 10) == [2816, 3072, 3328]
    assert log_ticks(1000, 2000, 2, 5) == [1024, 1280, 1536, 1792]


def test_an_axis_of_bytes():
    axes = new_figure("double", 2).add_subplot()
    log_axis(axes.xaxis, 5e3, 2e6, "state_bytes", 5)
    assert axes.get_xscale() == "log"
    assert axes.get_yscale() == "linear"
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["16 KiB", "64 KiB", "256 KiB", "1 MiB"]
    assert list(axes.get_xticks(minor=True)) == [2.0**power for power in (13, 15, 17, 19)]
