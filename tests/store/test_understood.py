"""Rows of other versions: those without what is needed are left out with one warning, the others are read."""

from datetime import UTC, datetime

import pyarrow.parquet as pq
import pytest

from basedbench.errors import UserError
from basedbench.store import Store, load, schema
from basedbench.store.dataset import rows

GOOD = {"suite": "s", "status": "ok", "config": "{}", "created_at": None}
RECALL = GOOD | {"mixer": "based", "family": "based", "d_model": 64, "learning_rate": 0.01, "accuracy": 0.5}
TIMED = GOOD | {"operator": "ssd", "contender": "ours", "mode": "fwd", "dtype": "fp32", "batch": 1, "length": 64}
TIMED |= {"median_ms": 1.0, "device_name": "a CPU"}
STRANGE = [
    ("recall", {"mixer": None}, "no mixer"),
    ("recall", {"learning_rate": float("nan")}, "no learning_rate"),
    ("recall", {"accuracy": float("nan")}, "no accuracy"),
    ("recall", {"config": "{feature_dim"}, "a config that is no JSON object"),
    ("recall", {"config": '{"a":' + "[" * 100_000}, "a config that is no JSON object"),
    ("recall", {"task": "[1]"}, "a task that is no JSON object"),
    ("recall", {"fingerprint": "NVIDIA"}, "a fingerprint that is no JSON object"),
    ("recall", {"accuracy_by_slice": {"all": 1.0}}, "slices that are not LENGTHxPAIRS"),
    ("throughput", {"operator": None}, "no operator and no model"),
    ("throughput", {"config": None}, "no config"),
    ("recall", {"accuracy_by_slice": {"8x0": 1.0}}, "slices that are not LENGTHxPAIRS"),
    ("recall", {"accuracy": -0.5}, "an impossible accuracy"),
    ("recall", {"d_model": 0}, "an impossible d_model"),
    ("throughput", {"median_ms": None}, "no median_ms"),
    ("throughput", {"median_ms": -1.0}, "an impossible median_ms"),
    ("throughput", {"tokens_per_s": float("inf")}, "an impossible tokens_per_s"),
    ("throughput", {"ci_high_ms": 1e300}, "an impossible ci_high_ms"),
    ("throughput", {"length": 0}, "an impossible length"),
]


def put(store: Store, kind: str, case_id: str, values: dict) -> None:
    """A row as some other version may have stored it: nothing is checked."""
    (store.root / kind).mkdir(exist_ok=True)
    row = schema.blank_row(kind) | (RECALL if kind == "recall" else TIMED) | {"case_id": case_id} | values
    row["created_at"] = datetime(2026, 1, 1, tzinfo=UTC)
    pq.write_table(schema.to_table(kind, row), store.root / kind / f"{case_id}.parquet")


@pytest.mark.parametrize(("kind", "values", "reason"), STRANGE)
def test_a_row_that_makes_no_sense_is_left_out_with_a_reason(store, capsys, kind, values, reason):
    put(store, kind, "good", {})
    put(store, kind, "strange", values)
    assert list(load(store.root, kind, understood=True)["case_id"]) == ["good"]
    assert [row["case_id"] for row in rows(store.root, kind, understood=True)] == ["good"]
    (warning,) = capsys.readouterr().err.splitlines()
    assert warning.startswith(f"Warning: 1 of 2 {kind} rows in {store.root} are left out")
    assert f"1 with {reason}" in warning
    assert len(load(store.root, kind)) == 2


def test_the_least_learning_rate_that_a_suite_may_have_is_read(store, capsys):
    put(store, "recall", "least", {"learning_rate": 1e-18})
    assert list(load(store.root, "recall", understood=True)["case_id"]) == ["least"]
    assert capsys.readouterr().err == ""


def test_a_failure_needs_no_result_and_a_family_may_be_missing(store, capsys):
    put(store, "recall", "failed", {"status": "oom", "accuracy": None})
    put(store, "recall", "old", {"family": None})
    assert list(load(store.root, "recall", understood=True)["family"]) == ["based", "based"]
    assert capsys.readouterr().err == ""


def test_a_row_that_is_wrong_twice_counts_once_and_nothing_left_is_said(store, capsys):
    put(store, "recall", "strange", {"mixer": None, "config": "{"})
    with pytest.raises(UserError, match="none of the recall rows"):
        load(store.root, "recall", understood=True)
    assert "1 of 1 recall rows" in capsys.readouterr().err
