"""What a sweep takes over from other suites, and what its rows say of runs that failed."""

import math
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from basedbench.analysis.suites import rows_for_figure
from basedbench.store import Store
from basedbench.store.dataset import load, rows
from basedbench.training.cases import RecallCase, recall_cases
from basedbench.training.rows import Circumstances, recall_row
from basedbench.training.run import Progress
from basedbench.training.sweep import borrow, plan
from basedbench.training.tally import device_seconds
from tests.training.conftest import tiny_suite

THEN = datetime.now(UTC) - timedelta(days=1)


def case_of(suite: str, pairs: int) -> RecallCase:
    tested = {"segments": [{"length": 16, "pairs": pairs}], "examples": 20}
    raw = tiny_suite().model_dump() | {"name": suite, "test": tested}
    return recall_cases(type(tiny_suite()).model_validate(raw))[0]


def row(case: RecallCase, accuracy: float, hours: int) -> dict[str, Any]:
    progress = Progress()
    progress.accuracies.append(accuracy)
    found = recall_row(case, progress, Circumstances("cpu", train_s=5.0))
    return found | {"created_at": THEN + timedelta(hours=hours), "data_hash": "0" * 16}


def test_rows_that_an_edited_suite_takes_over_are_of_its_present_task(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.write("recall", row(case_of("other", 4), 0.9, 0))
    store.write("recall", row(case_of("mine", 2), 0.1, 1))  # later, and before the edit
    edited = case_of("mine", 4)
    todo = plan([edited], tmp_path, fresh=False, retry=frozenset())
    assert [case.case_id for case, _ in todo.borrowed] == [edited.case_id]
    borrow(store, todo.borrowed)
    assert rows_for_figure(load(tmp_path, "recall"), ["mine"])["accuracy"].tolist() == [0.9]
    assert device_seconds(rows(tmp_path, "recall")) == 10.0  # two runs, one of which has two rows


def test_a_run_that_failed_on_its_way_has_no_result(tmp_path: Path) -> None:
    progress = Progress(accuracies=[0.3], slices={"16x2": [0.3]}, status="diverged", stop_reason="loss")
    found = recall_row(case_of("mine", 2), progress, Circumstances("cpu", data_hash="0" * 16))
    assert (found["reason"], found["stop_reason"]) == ("loss", "loss")
    assert math.isnan(found["accuracy"])
    assert math.isnan(found["accuracy_best"])
    assert (found["accuracy_by_slice"], found["accuracy_by_epoch"]) == ({}, [0.3])
    Store(tmp_path).write("recall", found)
    (stored,) = rows(tmp_path, "recall")
    assert (stored["status"], stored["accuracy_by_epoch"]) == ("diverged", [0.3])
