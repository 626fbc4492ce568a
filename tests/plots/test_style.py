"""Marks that can be told apart, and figures saved the same way every time."""

import errno
import os
from itertools import combinations

import matplotlib
import pytest
from matplotlib.colors import to_rgb

from basedbench.errors import UserError
from basedbench.plots.style import add_note, marks, new_figure, save


def test_known_families_always_look_the_same():
    alone, together = marks(["based"]), marks(["zebra", "mamba", "based", "ape"])
    assert alone["based"] == together["based"]
    assert marks(["mamba"])["mamba"] == together["mamba"]


def test_every_family_of_the_suites_has_a_look_of_its_own():
    families = ["delta_net", "gated_delta_net", "kda", "gla", "retnet", "rwkv4", "rwkv7", "linear_attention"]
    together = marks([*families, "based", "attention", "linear_attention/relu"])
    assert len({(mark.colour, mark.marker) for mark in together.values()}) == len(together)
    for name in families:
        assert marks([name, "ape"])[name] == together[name]


def test_no_two_names_look_alike():
    style = marks([f"mixer_{number}" for number in range(20)] + ["based", "attention", "mamba", "gla"])
    looks = [(mark.colour, mark.marker) for mark in style.values()]
    assert len(set(looks)) == len(looks) == 24
    assert len({mark.marker for mark in marks("abcdefgh").values()}) == 8


@pytest.mark.parametrize(
    "known", [["based"], ["delta_net", "gla", "rwkv7", "retnet", "kda", "rwkv4", "gated_delta_net"]]
)
def test_no_two_of_very_many_are_drawn_alike(known):
    style = marks([*known, *(f"mixer_{number}" for number in range(90))])
    assert len(set(style.values())) == len(style)
    few = [*known, *(f"mixer_{number}" for number in range(40))]
    assert len({(mark.colour, mark.marker) for mark in marks(few).values()}) == len(few)


def test_the_reference_families_differ_in_marker_and_from_each_other_in_colour():
    style = marks(["based", "attention", "sliding_window", "mamba", "mamba2", "hyena", "h3"])
    for one, other in combinations(style.values(), 2):
        assert one.marker != other.marker
        assert sum(abs(a - b) for a, b in zip(to_rgb(one.colour), to_rgb(other.colour), strict=True)) > 0.3


def test_ours_is_known_behind_an_operator_too():
    assert marks(["taylor attention: ours"])["taylor attention: ours"] == marks(["ours"])["ours"]
    both = marks(["ours", "taylor attention: ours"])
    assert both["ours"] != both["taylor attention: ours"]


def figure():
    drawn = new_figure("single", 2.0)
    axes = drawn.add_subplot()
    axes.plot([1, 2], [3, 4], label="line", marker="o")
    axes.set_title("Title")
    drawn.legend(loc="outside upper left")
    return drawn


@pytest.mark.parametrize("kind", ["svg", "pdf", "png"])
def test_the_same_figure_gives_the_same_bytes(kind, tmp_path):
    first, second = (save(figure(), tmp_path / f"{name}.{kind}").read_bytes() for name in ("a", "b"))
    assert first == second


def test_fonts_are_embedded_whole_and_nothing_global_changes(tmp_path):
    before = dict(matplotlib.rcParams)
    pdf = save(figure(), tmp_path / "new" / "folder" / "figure.pdf").read_bytes()
    assert b"/CIDFontType2" in pdf  # TrueType; matplotlib's own choice would be Type 3
    assert b"/Type3" not in pdf
    assert dict(matplotlib.rcParams) == before


def test_a_column_wide_figure_has_a_columns_width(tmp_path):
    png = save(figure(), tmp_path / "figure.png").read_bytes()
    assert int.from_bytes(png[16:20], "big") == round(3.4 * 300)


@pytest.mark.parametrize("name", ["figure.jpg", "figure", "figure.PNG.txt"])
def test_unknown_formats(name, tmp_path):
    with pytest.raises(UserError, match=r"saved as \.png, \.svg, \.pdf"):
        save(figure(), tmp_path / name)


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="cannot write the figure"):
        save(figure(), tmp_path / "file" / "figure.png")
    (tmp_path / "figure.png").mkdir()
    with pytest.raises(UserError, match="cannot write the figure"):
        save(figure(), tmp_path / "figure.png")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["figure.png", "file"]


@pytest.mark.parametrize("kind", ["png", "svg", "pdf"])
def test_a_full_disk_leaves_the_old_figure_and_nothing_hidden(tmp_path, monkeypatch, kind):
    path = save(figure(), tmp_path / f"figure.{kind}")
    before = path.read_bytes()
    monkeypatch.setattr(os, "write", full)
    with pytest.raises(UserError, match=r"cannot write the figure .*: the disk is full; .*--out"):
        save(figure(), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def full(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("name", [".png", "x" * 260 + ".png"])
def test_names_that_no_file_can_have(tmp_path, name):
    with pytest.raises(UserError):
        save(figure(), tmp_path / name)


@pytest.mark.parametrize("width", ["single", "double"])
def test_notes_are_broken_to_the_width(width):
    drawn = new_figure(width, 2.0)
    add_note(drawn, "a remark of some words " * 12)
    drawn.draw_without_rendering()
    (text,) = drawn.texts
    extent = text.get_window_extent()
    assert extent.x0 >= 0
    assert extent.x1 <= drawn.bbox.x1
