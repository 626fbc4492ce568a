"""Tables in a hundred columns: columns that are to stay whole are broken before anything is cut off."""

import pytest

from basedbench.cli.tables import WIDTH, print_table


def test_a_table_too_wide_loses_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    columns = ("operator", "mode", "shape", "at", "time")
    long = (
        "base_conv+attention d_model=1024 and_more=7",
        "decode",
        "B 64 dropout 0.1 heads 16 feature_dim 24 window 128",
    )
    lines = [(*long, 512, 5.4321), ("taylor_attention", "fwd", "B 1 H 4 " + "x" * 120, 16384, 1.25)]
    print_table("", columns, lines, whole=columns)
    shown = capsys.readouterr().out
    assert all(len(line) <= WIDTH for line in shown.splitlines())
    words = shown.split()
    for word in (*columns, *long[0].split(), *long[2].split(), "decode", "512", "16,384", "5.432", "1.25"):
        assert word in words
    assert sum(word.count("x") for word in words if set(word) == {"x"}) == 120


def test_columns_that_fit_are_whole(capsys: pytest.CaptureFixture[str]) -> None:
    name = "a column that is wider than its share of all, though all fit"
    print_table("", ("name", "b", "c", "d"), [(name, "1", "2", "3")], whole=("name",))
    assert name in capsys.readouterr().out


def test_a_name_stays_whole_while_other_columns_can_be_folded_between_words(capsys: pytest.CaptureFixture[str]) -> None:
    columns = ("contender", "95 % interval", *(f"column {index}" for index in range(7)))
    lines = [("taylor_attention/flash-linear-attention", "0.1145 - 0.1835", *("12 345" for _ in range(7)))]
    print_table("", columns, lines, whole=columns)
    shown = capsys.readouterr().out
    assert all(len(line) <= WIDTH for line in shown.splitlines())
    words = shown.split()
    for word in (lines[0][0], "0.1145", "0.1835"):
        assert word in words
