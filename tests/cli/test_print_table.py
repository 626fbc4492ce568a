"""Tables in a hundred columns, or fewer of a terminal: names fold before anything is cut off, numbers never."""

import re
import sys
from collections.abc import Callable

import pytest

from basedbench.cli.tables import WIDTH, print_table

Shown = Callable[[], str]


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[[int], Shown]:
    """A terminal of so many columns; what it is asked to show, without styles."""

    def of(columns: int) -> Shown:
        monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
        monkeypatch.setenv("COLUMNS", str(columns))
        return lambda: re.sub(r"\x1b\[[\d;]*m", "", capsys.readouterr().out)

    return of


@pytest.mark.parametrize("columns", [120, 80, 60, 20])
def test_numbers_are_never_broken_and_names_no_more_than_a_terminal_needs(terminal, columns) -> None:
    shown = terminal(columns)
    heading = ("operator", "contender", "length", "median", "95 % interval")
    line = ("gated_linear_attention", "flash-linear-attention", 1048576, "123.4 ms", "0.1145 - 0.1835")
    print_table("", heading, [line], whole=heading)
    text = shown()
    assert {"1,048,576", "123.4", "0.1145", "0.1835"} <= set(text.split())
    assert ("gated_linear_attention" in text) == (columns > 60)
    assert max(map(len, text.splitlines())) <= max(columns, 60)


@pytest.mark.parametrize("variables", [{}, {"COLUMNS": "40"}, {"FORCE_COLOR": "1", "COLUMNS": "40"}])
def test_a_pipe_gets_names_whole_however_wide(capsys, monkeypatch, variables) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    name = "base_conv+attention/" + "x" * 100
    print_table("", ("name", "said", "number"), [(name, "some words " * 20, 1048576)], whole=("name",))
    text = capsys.readouterr().out
    assert name in text
    assert "1,048,576" in text


def test_nothing_in_a_cell_steers_the_terminal(capsys) -> None:
    print_table("\x1b[31mred", ("na\x07me",), [("fam\x1b]0;title\x07ily",), ({"k\x1b[2J": ["\x9b"]},)])
    text = capsys.readouterr().out
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", text)
    assert "fam?]0;title?ily" in text


def test_a_table_too_wide_loses_nothing(terminal) -> None:
    text = terminal(WIDTH)
    columns = ("operator", "mode", "shape", "at", "time")
    long = (
        "base_conv+attention d_model=1024 and_more=7",
        "decode",
        "B 64 dropout 0.1 heads 16 feature_dim 24 window 128",
    )
    lines = [(*long, 512, 5.4321), ("taylor_attention", "fwd", "B 1 H 4 " + "x" * 120, 16384, 1.25)]
    print_table("", columns, lines, whole=columns)
    shown = text()
    assert all(len(line) <= WIDTH for line in shown.splitlines())
    words = shown.split()
    for word in (*columns, *long[0].split(), *long[2].split(), "decode", "512", "16,384", "5.432", "1.25"):
        assert word in words
    assert sum(word.count("x") for word in words if set(word) == {"x"}) == 120


def test_columns_that_fit_are_whole(capsys: pytest.CaptureFixture[str]) -> None:
    name = "a column that is wider than its share of all, though all fit"
    print_table("", ("name", "b", "c", "d"), [(name, "1", "2", "3")], whole=("name",))
    assert name in capsys.readouterr().out


def test_a_name_stays_whole_while_other_columns_can_be_folded_between_words(terminal) -> None:
    text = terminal(WIDTH)
    columns = ("contender", "95 % interval", *(f"column {index}" for index in range(7)))
    lines = [("taylor_attention/flash-linear-attention", "0.1145 - 0.1835", *("12 345" for _ in range(7)))]
    print_table("", columns, lines, whole=columns)
    shown = text()
    assert all(len(line) <= WIDTH for line in shown.splitlines())
    words = shown.split()
    for word in (lines[0][0], "0.1145", "0.1835"):
        assert word in words


@pytest.mark.parametrize("title", ["Suite [/foo]", "Suite [draft] at fp32", "Suite [bold]a[/bold]"])
def test_a_title_is_text_whatever_stands_in_it(capsys: pytest.CaptureFixture[str], title: str) -> None:
    print_table(title, ["a"], [["b" * 40]])
    assert title in capsys.readouterr().out
