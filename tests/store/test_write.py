"""Writing a row: what is checked, what comes back, and what a full disk or a kill leaves behind."""

import errno
import os
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta

import pytest

from basedbench.errors import UserError
from basedbench.store import Store, dataset, files, load, schema

FULL = ((errno.ENOSPC, "disk is full"), (errno.EDQUOT, "quota"), (errno.EIO, "disk is full or failing"))
FULL += ((errno.EFBIG, "lift that limit"),)

# Writes two rows; in the middle of the third one's bytes it waits to be killed.
KILLED = """
import os, sys, time
from basedbench.store import Store, schema

def half(descriptor, content):
    write(descriptor, content[: len(content) // 2])
    print("half", flush=True)
    time.sleep(60)

write, store = os.write, Store(sys.argv[1])
for index in range(3):
    if index == 2:
        os.write = half
    store.write("recall", schema.blank_row("recall") | {"suite": "s", "case_id": f"c{index}", "status": "ok"})
"""


def test_a_row_comes_back_as_it_was_written(store, make_row):
    lists = {"accuracy_by_epoch": [0.1, 0.25], "accuracy_by_slice_by_epoch": {"64x4": [0.5], "64x8": []}}
    given = make_row(accuracy=0.25, accuracy_by_slice={"64x4": 0.5}, state_bytes=2**40 + 1, **lists)
    before = datetime.now(UTC)
    path = store.write("recall", given | {"config": {"heads": 1, "feature_dim": 16}, "fingerprint": '{"b": 1, "a": 2}'})
    row = store.row("recall", "s", "c1")
    assert path.parent == store.root / "recall"
    assert before <= row["created_at"] <= datetime.now(UTC)
    assert row["config"] == '{"feature_dim": 16, "heads": 1}'
    assert row["fingerprint"] == '{"a": 2, "b": 1}'
    for name in ("accuracy", "accuracy_by_slice", "state_bytes", *lists):
        assert row[name] == given[name]
    assert set(row) == set(schema.RECALL.names)


@pytest.mark.parametrize("merged", [False, True])
def test_what_runs_again_counts_though_the_clock_was_set_back(store, make_row, merged):
    now = datetime.now(UTC)
    dates = (now + timedelta(hours=1), now + timedelta(hours=2), now + timedelta(days=3))  # the last one counts nothing
    for date in dates:
        store.write("recall", make_row(status="crashed", created_at=date))
    store.write("recall", make_row("c2", created_at=now))
    if merged:
        dataset.compact(store.root, "recall")
    for status in ("oom", "ok"):
        again = Store(store.root)
        again.write("recall", make_row(status=status))
        again.write("recall", make_row("c2"))
        assert dataset.finished(store.root, "recall")["s", "c1"] == status
    assert store.row("recall", "s", "c1")["created_at"] == dates[1] + timedelta(microseconds=2)
    assert now <= store.row("recall", "s", "c2")["created_at"] <= datetime.now(UTC)
    again.write("recall", make_row(status="diverged"))  # by the same store, too
    assert dataset.finished(store.root, "recall")["s", "c1"] == "diverged"
    assert store.row("recall", "s", "c1")["created_at"] == dates[1] + timedelta(microseconds=3)


def test_nan_accuracy_is_kept(store, make_row):
    store.write("recall", make_row(status="diverged", accuracy=float("nan")))
    accuracy = store.row("recall", "s", "c1")["accuracy"]
    assert accuracy != accuracy


@pytest.mark.parametrize("kind", schema.KINDS)
def test_every_kind_takes_a_blank_row(store, kind):
    store.write(kind, schema.blank_row(kind) | {"suite": "s", "case_id": "c", "status": "oom", "reason": "too large"})
    assert dataset.finished(store.root, kind) == {("s", "c"): "oom"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"acuracy": 0.5}, "acuracy"),
        ({"status": "fine"}, "unknown status 'fine'"),
        ({"suite": None}, "no suite"),
        ({"case_id": "../c"}, "cannot be part of a file name"),
        ({"d_model": 64.5}, "'d_model' takes whole numbers"),
        ({"accuracy": "high"}, "'accuracy'"),
        ({"config": "{feature_dim"}, "'config' takes JSON"),
        ({"config": {"scale": float("nan")}}, "'config' takes JSON"),
        ({"created_at": datetime(2026, 1, 1)}, "created_at takes a time with its zone"),
    ],
)
def test_a_row_that_does_not_fit_is_a_mistake_in_the_program(store, make_row, change, message):
    with pytest.raises(ValueError, match=message):
        store.write("recall", make_row(**change))
    assert not list(store.root.rglob("*.parquet"))


def test_a_missing_promised_column_is_named(store, make_row):
    row = make_row()
    del row["parameters"]
    with pytest.raises(ValueError, match="parameters"):
        store.write("recall", row)


def test_an_unknown_kind_is_refused(store, make_row):
    with pytest.raises(ValueError, match="recal"):
        store.write("recal", make_row())


@pytest.mark.parametrize("root", ["file", "file/below"])
def test_a_folder_that_cannot_be_made_is_reported(tmp_path, root):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"cannot write results to .*--out"):
        Store(tmp_path / root)


def test_a_folder_that_cannot_be_written_is_reported(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "write", fail_with(errno.EROFS))
    with pytest.raises(UserError, match="read-only"):
        Store(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("call", ["write", "fsync", "replace", "open"])
@pytest.mark.parametrize(("number", "message"), FULL)
def test_a_full_disk_loses_one_row_and_says_which(store, make_row, monkeypatch, call, number, message):
    store.write("recall", make_row("safe"))
    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail_with(number))
        with pytest.raises(UserError, match=message) as error:
            store.write("recall", make_row("lost"))
    for part in ("case lost", "suite s", str(store.root), "are safe", "run the same command again"):
        assert part in str(error.value)
    assert dataset.finished(store.root, "recall") == {("s", "safe"): "ok"}
    assert len(list((store.root / "recall").iterdir())) == 1


def test_a_row_half_written_when_the_disk_fills_leaves_nothing(store, make_row, monkeypatch):
    write, calls = os.write, []

    def fills_up(descriptor, content):
        if calls:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        calls.append(write(descriptor, content[:100]))
        return calls[0]

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", fills_up)
        with pytest.raises(UserError, match="disk is full"):
            store.write("recall", make_row())
    assert calls == [100]
    assert not list((store.root / "recall").iterdir())


def test_a_file_system_that_is_really_full(tmp_path, make_row):
    root = tmp_path / "small"
    root.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(root)]
    try:
        refused = subprocess.run(mount, capture_output=True, check=False).returncode
    except FileNotFoundError:
        refused = True
    if refused:
        pytest.skip("mounting a small file system is not allowed here")
    try:
        store, written = Store(root), set()
        with pytest.raises(UserError, match="disk is full"):
            write_many(store, make_row, written)
        assert written
        assert set(dataset.finished(store.root, "recall")) == written
        assert not list(root.rglob(f"{files.HIDDEN}*"))
    finally:
        subprocess.run(["umount", str(root)], check=True)


def test_a_kill_in_the_middle_of_a_row_loses_that_row_alone(tmp_path):
    with subprocess.Popen([sys.executable, "-c", KILLED, tmp_path], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout.readline() == "half\n"
        child.send_signal(signal.SIGKILL)
    assert child.returncode == -signal.SIGKILL
    assert len(list((tmp_path / "recall").glob(f"{files.HIDDEN}*"))) == 1
    assert list(load(tmp_path, "recall")["case_id"]) == ["c0", "c1"]


@pytest.mark.parametrize(
    "clean", [lambda store: dataset.compact(store.root, "recall"), lambda store: Store(store.root)]
)
@pytest.mark.parametrize("inside", ["", "recall"])
def test_a_merge_and_a_writer_remove_old_leftovers_of_killed_ones_alone(store, clean, inside):
    folder = store.root / inside
    folder.mkdir(exist_ok=True)
    for age_s, name in ((0, "fedcba9876543210"), (48 * 3600, "0123456789abcdef")):
        path = folder / f"{files.HIDDEN}{name}"
        path.write_bytes(b"half")
        os.utime(path, (time.time() - age_s,) * 2)
    clean(store)
    assert [path.name for path in folder.iterdir()] == [f"{files.HIDDEN}fedcba9876543210"]


def test_names_are_in_order_of_time_and_never_the_same():
    moments = [
        datetime(2026, 1, 9, tzinfo=UTC),
        datetime(2026, 1, 10, tzinfo=UTC),
        datetime(2026, 1, 10, 0, 0, 1, 5, UTC),
    ]
    names = [files.part_name("c", moment) for moment in moments]
    assert names == sorted(names)
    assert len({files.part_name("c", moments[0]) for _ in range(100)}) == 100


def fail_with(number: int):
    def fail(*_args, **_keywords):
        raise OSError(number, os.strerror(number))

    return fail


def write_many(store: Store, make_row, written: set[tuple[str, str]]) -> None:
    for index in range(100):
        store.write("recall", make_row(f"c{index}"))
        written.add(("s", f"c{index}"))


def test_only_unfinished_files_of_its_own_are_removed(tmp_path):
    names = {".tmp-notes.txt": True, ".tmp-probe-0123abcd": False, ".tmp-0123456789abcdef": False, ".tmp-012": True}
    for name in names:
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (0, 0))
    files.remove_stale(tmp_path)
    assert {name: (tmp_path / name).exists() for name in names} == names


@pytest.mark.parametrize("gone", ["results", "results/recall"])
def test_a_folder_that_goes_away_is_told_once_and_the_rows_after_that_are_stored(tmp_path, make_row, gone):
    told = []
    store = Store(tmp_path / "results", told.append)
    store.write("recall", make_row(case_id="c1"))
    store.write("throughput", schema.blank_row("throughput") | {"suite": "s", "case_id": "t", "status": "ok"})
    assert told == []
    (tmp_path / gone).rename(tmp_path / "elsewhere")
    for case_id in ("c2", "c3"):
        store.write("recall", make_row(case_id=case_id))
    (text,) = told
    assert text.startswith(f"the results folder {str(tmp_path / gone)!r} was renamed or deleted")
    assert list(load(store.root, "recall")["case_id"]) == ["c2", "c3"]
