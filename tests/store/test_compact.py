"""Merging: rows are the same before, after and at every instant in between, whoever writes, reads or dies meanwhile."""

import random
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from basedbench.errors import UserError
from basedbench.store import Store, dataset, files, load

START = datetime(2026, 1, 1, tzinfo=UTC)

WRITER = """
import sys
from basedbench.store import Store, schema
store = Store(sys.argv[1])
for index in range(40):
    case = f"{sys.argv[2]}{index}"
    store.write("recall", schema.blank_row("recall") | {"suite": "s", "case_id": case, "status": "ok", "seed": index})
"""


def fill(store, make_row, seed: int) -> None:
    """Random rows: cases measured several times, some at the very same instant."""
    draw = random.Random(seed)
    for _ in range(draw.randint(2, 25)):
        when = START + timedelta(seconds=draw.randint(0, 5))
        row = make_row(f"c{draw.randint(0, 6)}", suite=draw.choice("st"), accuracy=draw.random(), created_at=when)
        store.write("recall", row | {"accuracy_by_slice": {"64x4": draw.random()}, "seed": draw.choice([None, 1])})


def seen(store) -> str:
    """All that a reader sees, exactly."""
    return repr(dataset.rows(store.root, "recall"))


@pytest.mark.parametrize("seed", range(8))
def test_a_merge_changes_nothing_a_reader_sees(store, make_row, seed):
    for part in range(2):
        fill(store, make_row, 10 * seed + part)
        before, frame, finished = seen(store), load(store.root, "recall"), dataset.finished(store.root, "recall")
        assert dataset.compact(store.root, "recall") > 1
        assert len(list((store.root / "recall").iterdir())) == 1
        assert seen(store) == before
        assert load(store.root, "recall").to_dict("list").keys() == frame.to_dict("list").keys()
        assert repr(load(store.root, "recall").values.tolist()) == repr(frame.values.tolist())
        assert dataset.finished(store.root, "recall") == finished


def test_every_instant_of_a_merge_shows_every_row_and_a_kill_loses_none(store, make_row, monkeypatch):
    fill(store, make_row, 1)
    before, unlink, looks = seen(store), Path.unlink, []

    def watched(path, missing_ok=False):
        looks.append(seen(store))
        if len(looks) == 5:
            raise KeyboardInterrupt
        unlink(path, missing_ok=missing_ok)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", watched)
        with pytest.raises(KeyboardInterrupt):
            dataset.compact(store.root, "recall")
    assert looks == [before] * 5
    dataset.compact(store.root, "recall")
    assert seen(store) == before


def test_a_merge_keeps_superseded_rows_and_each_row_once(store, make_row, monkeypatch):
    for minute in range(3):
        store.write("recall", make_row(accuracy=minute, created_at=START + timedelta(minutes=minute)))
    with monkeypatch.context() as patch:  # a merge that dies before it removes anything
        patch.setattr(Path, "unlink", fail)
        with pytest.raises(InterruptedError):
            dataset.compact(store.root, "recall")
    dataset.compact(store.root, "recall")
    (merged,) = (store.root / "recall").iterdir()
    assert dataset.pq.read_table(merged)["accuracy"].to_pylist() == [0.0, 1.0, 2.0]


def test_a_merge_without_room_on_the_disk_removes_nothing(store, make_row, monkeypatch):
    fill(store, make_row, 2)
    before, names = seen(store), sorted((store.root / "recall").iterdir())
    with monkeypatch.context() as patch:
        patch.setattr(files.os, "fsync", full)
        with pytest.raises(UserError, match="disk is full"):
            dataset.compact(store.root, "recall")
    assert seen(store) == before
    assert sorted((store.root / "recall").iterdir()) == names


def test_nothing_to_merge(store, make_row):
    assert dataset.compact(store.root, "recall") == 0
    path = store.write("recall", make_row())
    assert dataset.compact(store.root, "recall") == 1
    assert path.exists()


def test_a_reader_looks_again_if_files_were_merged_under_its_hands(store, make_row, monkeypatch):
    fill(store, make_row, 3)
    before, stale = seen(store), files.visible(store.root / "recall")
    dataset.compact(store.root, "recall")
    answers = [stale]
    visible = files.visible
    monkeypatch.setattr(files, "visible", lambda folder: answers.pop() if answers else visible(folder))
    assert seen(store) == before
    assert not answers


@pytest.mark.parametrize(
    ("looks", "wanted"),
    [
        ([{"a"}, {"a"}], ["a"]),
        ([{"a"}, {"a", "b"}], ["a", "b"]),  # a new row is no reason to look again
        ([{"b"}, {"compacted-1"}, {"compacted-1"}], ["compacted-1"]),
        (
            [set(), {"compacted-1"}, {"compacted-1"}],
            ["compacted-1"],
        ),  # all old files gone before the listing came to them
    ],
)
def test_a_listing_that_a_merge_cut_through_is_repeated(monkeypatch, looks, wanted):
    answers = iter(looks)
    monkeypatch.setattr(files, "_names", lambda _: next(answers))
    assert [path.name for path in files.visible(Path("folder"))] == wanted
    assert next(answers, None) is None


def test_two_processes_write_while_a_third_merges_and_reads(tmp_path):
    store = Store(tmp_path)
    children = [subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path), name]) for name in "ab"]
    known: set[tuple[str, str]] = set()
    merges = 0
    while any(child.poll() is None for child in children):
        now = set(dataset.finished(store.root, "recall"))
        assert known <= now
        known = now
        merges += dataset.compact(store.root, "recall") > 1
    assert [child.wait() for child in children] == [0, 0]
    assert merges
    assert set(dataset.finished(store.root, "recall")) == {
        ("s", f"{name}{index}") for name in "ab" for index in range(40)
    }


def fail(*_args, **_keywords):
    raise InterruptedError


def full(*_args):
    raise OSError(28, "No space left on device")
