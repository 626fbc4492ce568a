"""Reading: the newest row of a case, rows of older and newer versions, files that are no results."""

import errno
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from basedbench.errors import UserError
from basedbench.store import Store, dataset, load, schema

MORNING = datetime(2026, 1, 1, 8, tzinfo=UTC)
TIME = schema.RECALL.field("created_at").type
GARBAGE = {
    "empty": b"",
    "text": b"not parquet at all",
    "cut": None,  # a row's first half
    "foreign": {"height": [1.0]},
    "nameless": {"suite": ["s"], "case_id": pa.nulls(1, pa.string()), "status": ["ok"]},
    "homeless": {"suite": pa.nulls(1, pa.string()), "case_id": ["c"], "status": ["ok"], "created_at": [MORNING]},
    "endless": {"suite": ["s"], "case_id": ["c"], "created_at": [MORNING]},
    "ageless": {"suite": ["s"], "case_id": ["c"], "status": ["ok"]},
    "dateless": {"suite": ["s"], "case_id": ["c"], "status": ["ok"], "created_at": pa.array([2**62], TIME)},
    "mistyped": {"suite": ["s"], "case_id": ["c"], "status": ["ok"], "accuracy": ["high"]},
}


def put_garbage(store: Store, name: str, row: dict) -> str:
    """A file that is no result among the results; returns its path."""
    path = store.write("recall", row).with_stem(name)
    content = GARBAGE[name]
    if isinstance(content, dict):
        pq.write_table(pa.table(content), path)
    else:
        path.write_bytes(next(path.parent.glob("2*")).read_bytes()[:-1000] if content is None else content)
    return str(path)


def test_the_newest_row_of_a_case_wins_whatever_the_order_of_writing(store, make_row):
    for minutes, status in ((5, "oom"), (20, "ok"), (10, "timeout")):
        store.write("recall", make_row(status=status, created_at=MORNING + timedelta(minutes=minutes)))
    store.write("recall", make_row(suite="other", status="crashed", created_at=MORNING))
    assert dataset.finished(store.root, "recall") == {("s", "c1"): "ok", ("other", "c1"): "crashed"}
    assert store.row("recall", "s", "c1")["status"] == "ok"
    assert store.row("recall", "s", "c2") is None
    assert list(load(store.root, "recall")["status"]) == ["crashed", "ok"]


def test_a_frame_has_all_columns_dicts_lists_and_nulls(store, make_row):
    store.write("recall", make_row("a", accuracy_by_slice={"64x4": 0.5}, loss_by_epoch=[2.0, 1.0], seed=3))
    store.write("recall", make_row("b", seed=4))
    frame = load(store.root, "recall")
    assert list(frame.columns) == schema.RECALL.names
    assert frame["accuracy_by_slice"][0] == {"64x4": 0.5}
    assert frame["loss_by_epoch"][0] == [2.0, 1.0]
    assert list(frame["seed"]) == [3, 4]
    assert frame["seed"].dtype == "int64"
    assert frame["accuracy_by_slice"][1] is None
    assert frame[["mixer", "accuracy", "state_bytes"]].isna().all(axis=None)
    assert isinstance(frame["created_at"].dtype, pd.DatetimeTZDtype)


def test_nothing_to_load_says_what_to_run(tmp_path):
    with pytest.raises(UserError, match=r"no throughput results in .*`basedbench throughput --out"):
        load(tmp_path, "throughput")
    (tmp_path / "calibration").mkdir()
    with pytest.raises(UserError, match=r"no calibration results .*`basedbench calibrate --out"):
        load(tmp_path, "calibration")


def test_nothing_to_load_points_to_results_nearby(tmp_path, make_row):
    Store(tmp_path / "reference" / "h200").write("recall", make_row())
    for root in (tmp_path, tmp_path / "reference" / "h200" / "recall"):
        with pytest.raises(UserError, match=r"look in one that has some: \S*reference/h200\."):
            load(root, "recall")
    assert len(load(tmp_path / "reference" / "h200", "recall")) == 1


def test_rows_of_an_older_version_lack_columns_and_load_with_nulls(store, make_row):
    store.write("recall", make_row("new", family="based"))
    row = {"suite": ["s"], "case_id": ["old"], "status": ["ok"], "seed": pa.array([7], pa.int32())}
    pq.write_table(pa.table(row | {"created_at": [MORNING]}), store.root / "recall" / "2025.parquet")
    frame = load(store.root, "recall").set_index("case_id")
    assert list(frame.index) == ["old", "new"]
    assert frame["seed"]["old"] == 7
    assert pd.isna(frame["family"]["old"])
    dataset.compact(store.root, "recall")
    assert dataset.finished(store.root, "recall") == {("s", "old"): "ok", ("s", "new"): "ok"}


def test_columns_of_a_newer_version_are_ignored_and_survive_a_merge(store, make_row):
    store.write("recall", make_row("now"))
    row = {"suite": ["s"], "case_id": ["later"], "status": ["ok"], "joules": [1.5], "created_at": [MORNING]}
    pq.write_table(pa.table(row), store.root / "recall" / "later.parquet")
    assert "joules" not in load(store.root, "recall")
    dataset.compact(store.root, "recall")
    (merged,) = (store.root / "recall").iterdir()
    joules = dict(zip(*pq.read_table(merged).select(["case_id", "joules"]).to_pydict().values(), strict=True))
    assert joules == {"later": 1.5, "now": None}


@pytest.mark.parametrize("twice", [False, True])
def test_unknown_columns_that_cannot_be_merged_are_told(store, make_row, twice):
    """Of two newer versions that have one in unlike types; of a file that has it twice."""
    for case, value in (("later", "much"), ("latest", [1])):
        row = {"suite": ["s"], "case_id": [case], "status": ["ok"], "created_at": [MORNING], "new": [value]}
        table = pa.table(row)
        table = table.append_column("new", pa.array([1])) if twice else table
        pq.write_table(table, store.write("recall", make_row(case)).with_stem(case))
    with pytest.raises(UserError, match="new"):
        dataset.compact(store.root, "recall")
    assert len(load(store.root, "recall")) == 2
    assert len(list((store.root / "recall").iterdir())) == 4


def test_a_file_set_aside_replaces_none_of_the_same_name(store, make_row):
    for _ in range(2):
        put_garbage(store, "text", make_row("good"))
        dataset.set_aside_corrupt(store.root, "recall")
    assert len(list((store.root / "recall" / "corrupt").iterdir())) == 2


@pytest.mark.parametrize("name", GARBAGE)
def test_a_file_that_is_no_result_is_named_and_can_be_set_aside(store, make_row, name):
    path = put_garbage(store, name, make_row("good"))
    for read in (lambda: load(store.root, "recall"), lambda: dataset.compact(store.root, "recall")):
        with pytest.raises(UserError, match=r"cannot be read .*--set-aside-corrupt") as error:
            read()
        assert path in str(error.value)
        cause = str(error.value).partition("(")[2].partition(");")[0]
        assert not cause.endswith((" is", " this"))  # a whole clause
    (aside,) = dataset.set_aside_corrupt(store.root, "recall")
    assert aside.name == f"{name}.parquet"
    assert aside.parent.name == "corrupt"
    assert list(load(store.root, "recall")["case_id"]) == ["good"]
    assert dataset.set_aside_corrupt(store.root, "recall") == []


UNREADABLE = [
    (PermissionError(errno.EACCES, "Permission denied"), "permission denied"),
    (OSError(errno.EIO, "Input/output error"), "failing"),
    (pa.ArrowMemoryError("malloc of size 64 failed"), "malloc"),
    (pa.ArrowNotImplementedError("Support for codec 'lz5' not built"), "codec"),
]


@pytest.mark.parametrize(("failure", "message"), UNREADABLE)
def test_a_whole_file_that_cannot_be_read_now_is_not_set_aside(store, make_row, monkeypatch, failure, message):
    path = store.write("recall", make_row())

    def fail(*_, **options):
        raise failure

    with monkeypatch.context() as patch:
        patch.setattr(pq, "ParquetFile", fail)
        with pytest.raises(UserError, match=message) as error:
            dataset.set_aside_corrupt(store.root, "recall")
    assert str(path) in str(error.value)
    assert "set-aside" not in str(error.value)
    assert dataset.set_aside_corrupt(store.root, "recall") == []


@pytest.mark.parametrize("obstacle", ["a file named corrupt", "a read-only folder"])
def test_a_corrupt_file_that_cannot_be_moved_stays(store, make_row, monkeypatch, obstacle):
    path = put_garbage(store, "text", make_row())
    if obstacle == "a file named corrupt":
        (store.root / "recall" / "corrupt").write_text("in the way")
    else:
        monkeypatch.setattr(Path, "mkdir", denied)
    with pytest.raises(UserError, match="cannot be moved to"):
        dataset.set_aside_corrupt(store.root, "recall")
    assert Path(path).read_bytes() == GARBAGE["text"]


def test_a_folder_that_cannot_be_read_is_named(store, make_row, monkeypatch):
    store.write("recall", make_row())
    monkeypatch.setattr(os, "scandir", denied)
    for read in (dataset.load, dataset.finished, dataset.compact):
        with pytest.raises(UserError, match=r"/recall' cannot be read: permission denied"):
            read(store.root, "recall")
    with pytest.raises(UserError, match="cannot be read"):
        dataset.kinds_in(store.root)


def test_a_row_of_a_wrong_clock_hides_no_newer_one(store, make_row, capsys):
    now = datetime.now(UTC)
    store.write("recall", make_row(status="oom", created_at=now + timedelta(hours=20)))  # clocks differ that much
    store.write("recall", make_row("d", status="oom", created_at=now))
    ahead = store.write("recall", make_row("d", status="timeout", created_at=now + timedelta(days=400)))
    alone = store.write("recall", make_row("e", created_at=now + timedelta(days=300)))
    store.write("recall", make_row(created_at=now))
    assert dataset.finished(store.root, "recall") == {("s", "e"): "ok", ("s", "d"): "oom", ("s", "c1"): "oom"}
    assert list(load(store.root, "recall")["case_id"]) == ["e", "d", "c1"]
    (warning,) = capsys.readouterr().err.splitlines()
    assert "dated in the future" in warning
    assert [str(path) in warning for path in sorted(ahead.parent.iterdir())].count(True) == 2
    assert str(ahead) in warning
    assert str(alone) in warning
    dataset.compact(store.root, "recall")
    assert dataset.finished(store.root, "recall") == {("s", "e"): "ok", ("s", "d"): "oom", ("s", "c1"): "oom"}


def denied(*_args, **_keywords):
    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def test_kinds_in_a_folder(store, tmp_path):
    store.write("throughput", schema.blank_row("throughput") | {"suite": "s", "case_id": "c", "status": "ok"})
    (store.root / "recall").mkdir()
    assert dataset.kinds_in(store.root) == ["throughput"]
    assert dataset.kinds_in(tmp_path / "nowhere") == []


def test_load_is_a_public_call(store, make_row):
    import basedbench

    store.write("recall", make_row())
    assert len(basedbench.load(str(store.root), "recall")) == 1


def test_a_folder_with_a_file_name_is_no_result_to_look_for(store):
    (store.root / "recall" / "a.parquet").mkdir(parents=True)
    with pytest.raises(UserError) as error:
        load(store.root, "recall")
    assert "look in" not in str(error.value)


@pytest.mark.parametrize("name", ["run-12:30", "s3:", "~", "~nobody"])
def test_a_folder_is_a_folder_whatever_its_name(tmp_path, make_row, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    Store(name).write("recall", make_row("a"))
    Store(name).write("recall", make_row("b"))
    assert list(load(name, "recall")["case_id"]) == ["a", "b"]
    assert dataset.set_aside_corrupt(name, "recall") == []
    assert dataset.compact(name, "recall") == 2
    assert len(load(name, "recall")) == 2


def test_a_folder_whose_name_is_no_text_is_refused(tmp_path, make_row):
    name = tmp_path / os.fsdecode(b"\xff")
    with pytest.raises(UserError, match="is not UTF-8 text: rename it"):
        Store(name)


@pytest.mark.parametrize("merged", [False, True])
def test_a_number_that_a_disk_changed_is_no_number(store, make_row, merged):
    store.write("recall", make_row("a", accuracy=0.6806))
    if merged:
        store.write("recall", make_row("b", accuracy=0.5))
        dataset.compact(store.root, "recall")
    (file,) = (store.root / "recall").glob("*.parquet")
    content, number = bytearray(file.read_bytes()), np.float64(0.6806).tobytes()
    content[content.index(number) + 6] ^= 8
    file.write_bytes(content)
    with pytest.raises(UserError, match="cannot be read"):
        load(store.root, "recall")
    assert len(dataset.set_aside_corrupt(store.root, "recall")) == 1


def test_text_that_is_none_makes_a_file_no_result(store, make_row):
    file = store.write("recall", make_row("a", device_name="Xeon"))
    table = pq.read_table(file)
    name = table.column_names.index("device_name")
    damaged = pa.array([b"Xe\xffn"], pa.binary()).cast(pa.string(), safe=False)
    pq.write_table(table.set_column(name, "device_name", damaged), file)
    with pytest.raises(UserError, match="cannot be read"):
        load(store.root, "recall")
    assert len(dataset.set_aside_corrupt(store.root, "recall")) == 1
