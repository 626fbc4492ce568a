import math
import re
from collections import deque
from dataclasses import replace
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pandas as pd
import pytest

from basedbench.engines import LocalEngine, Place, local
from basedbench.engines.deadline import Deadline, unlimited
from basedbench.engines.local import _Worker, slowest_first
from basedbench.engines.worker import Worker
from basedbench.models.recall import LayerSpec
from basedbench.store import load
from basedbench.store.schema import PROMISED
from basedbench.timing import failures
from basedbench.training import rows as rows_module
from basedbench.training.cases import RecallCase, recall_cases
from tests.engines.conftest import Memory
from tests.training.conftest import tiny_suite, trained

GOOD = [{"mixer": "based", "grid": {"d_model": 16, "feature_dim": 4}}, {"mixer": "attention", "grid": {"d_model": 16}}]


def cases_of(*broken: str) -> list[RecallCase]:
    bad = [{"mixer": name, "layers": [name], "grid": {"d_model": 16}} for name in broken]
    return recall_cases(tiny_suite([*bad, *GOOD]))


def run(cases: list[RecallCase], root: Path, places: list[Place], plugin: Path) -> tuple[Memory, pd.DataFrame]:
    memory = Memory()
    LocalEngine(places, str(root), memory, [str(plugin)]).run(cases)
    return memory, load(root, "recall").set_index("mixer")


def test_a_failing_run_touches_no_other(tmp_path: Path, plugin: Path) -> None:
    cases = cases_of("poison", "raises", "unbuilt", "stateless", "exhausts")
    memory, rows = run(cases, tmp_path, [Place("cpu", slots=7)], plugin)
    assert rows["status"].to_dict() == {
        "poison": "diverged",
        "raises": "runtime_error",
        "unbuilt": "runtime_error",
        "stateless": "runtime_error",
        "exhausts": "oom",
        "based": "ok",
        "attention": "ok",
    }
    assert rows["reason"]["raises"].startswith("RuntimeError: this mixer never works (misbehaving.py line ")
    assert rows["reason"]["unbuilt"].startswith("ValueError: no such width (misbehaving.py line ")
    assert "init_state() takes 3 positional arguments" in rows["reason"]["stateless"]
    assert rows["steps"]["stateless"] == 0  # known before it was trained
    assert rows[["parameters", "state_bytes"]].isna().all(axis=1).to_dict() == {
        name: name in ("unbuilt", "stateless") for name in rows.index
    }
    assert rows["stop_reason"]["poison"] == "loss is not finite"
    for case in cases[-2:]:
        assert rows["accuracy_by_epoch"][case.mixer] == trained(case).progress.accuracies
    assert ("based", 2) in memory.epochs


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("refuses", "not with these numbers (misbehaving.py line "),
        ("kinless", "KeyError: 'no family' (misbehaving.py line "),
        ("numbered", "family_of of mixer 'numbered' gives 5"),
        ("undecided", "KeyError: 'who knows' (misbehaving.py line "),
        ("uncounted", "state_bytes_zoology is 36893488147419103232"),
    ],
)
def test_whatever_a_mixer_is_asked_it_costs_its_own_run_only(
    tmp_path: Path, plugin: Path, name: str, reason: str
) -> None:
    ours, theirs = Pipe()
    for sent in (cases_of(name)[0], None):
        ours.send(sent)
    Worker(theirs, "cpu", str(tmp_path)).loop()
    row = load(tmp_path, "recall").iloc[0]
    assert (row["status"], row["suite"], row["mixer"]) == ("runtime_error", "tiny", name)
    assert reason in row["reason"]


def test_settings_of_the_process_are_a_runs_own(tmp_path: Path, plugin: Path) -> None:
    cases = cases_of("meddles")
    _, rows = run(cases, tmp_path, [Place("cpu", slots=1)], plugin)
    assert rows["status"].to_dict() == {"meddles": "runtime_error", "based": "ok", "attention": "ok"}
    for case in cases[-2:]:
        assert rows["accuracy_by_epoch"][case.mixer] == trained(case).progress.accuracies


def test_a_run_that_does_not_fit_beside_others_waits_for_room(tmp_path: Path, plugin: Path) -> None:
    memory, rows = run(cases_of("greedy"), tmp_path, [Place("cpu", slots=3)], plugin)
    assert rows["status"].to_dict() == {"greedy": "ok", "based": "ok", "attention": "ok"}
    assert memory.began.count("greedy") == 2


@pytest.mark.parametrize("kills", [0, 1])
def test_a_machine_without_memory_left_is_oom(
    tmp_path: Path, plugin: Path, kills: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Signal 9 alone does not say that: a mixer may send it to itself."""
    monkeypatch.setattr(local, "oom_kills", lambda: 5)
    monkeypatch.setattr(failures, "oom_kills", lambda: 5 + kills)
    _, rows = run(cases_of("hungry", "starved")[:2], tmp_path, [Place("cpu", slots=1)], plugin)
    assert rows["status"].to_dict() == {"hungry": "oom", "starved": "oom" if kills else "crashed"}
    assert "signal 9" in rows["reason"]["starved"]


@pytest.mark.parametrize("slots", [1, 3])
def test_a_dying_process_costs_only_the_case_that_kills_it(
    tmp_path: Path, plugin: Path, slots: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows_module, "build_model", lambda case: pytest.fail("what killed it was built here too"))
    memory, rows = run(cases_of("dies"), tmp_path, [Place("cpu", slots=slots)], plugin)
    assert rows["status"].to_dict() == {"dies": "crashed", "based": "ok", "attention": "ok"}
    assert rows["reason"]["dies"] == "the worker died with exit code 7"
    assert set(memory.rows) == {"dies", "based", "attention"}
    assert memory.began.count("dies") == (1 if slots == 1 else 2)  # a case that was alone is not tried again
    assert rows["train_s"]["dies"] > 0  # it was alone with the device, the last time


def test_a_process_of_which_nothing_is_known_is_not_the_cases_fault_at_once(tmp_path: Path, plugin: Path) -> None:
    """When the process that starts workers is ended, they seem to have ended with 255, whatever they were at."""
    memory, rows = run(cases_of("unknown")[:1], tmp_path, [Place("cpu", slots=1)], plugin)
    assert memory.began.count("unknown") == 2
    assert rows["status"].to_dict() == {"unknown": "crashed"}


def test_what_a_mixer_raises_or_leaves_behind_ends_no_sweep(tmp_path: Path, plugin: Path) -> None:
    """An exception that is no Exception, a copy of the process, and a thread that would be waited for."""
    cases = cases_of("cancels", "forks", "threads")
    memory, rows = run(cases, tmp_path, [Place("cpu", slots=1)], plugin)
    assert rows["status"].to_dict() == {
        "cancels": "runtime_error",
        "forks": "ok",
        "threads": "ok",
        "based": "ok",
        "attention": "ok",
    }
    assert rows["reason"]["cancels"].startswith("Cancelled: never mind (misbehaving.py line ")
    assert len(list((tmp_path / "recall").iterdir())) == len(cases)
    assert set(memory.rows) == set(rows.index)


def test_a_run_that_takes_too_long_is_a_row(tmp_path: Path, plugin: Path) -> None:
    memory = Memory()
    LocalEngine([Place("cpu", slots=1)], str(tmp_path), memory, [str(plugin)], timeout_s=1.5).run(cases_of("hangs")[:1])
    assert memory.rows["hangs"]["status"] == "timeout"
    assert load(tmp_path, "recall")["reason"][0] == "not done within 1.5 s"
    assert load(tmp_path, "recall")["train_s"][0] >= 1.5


def test_what_a_lost_run_shared_with_others_is_not_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory, now = Memory(), 0.0
    engine = LocalEngine([], str(tmp_path), memory, deadline=Deadline(math.inf, 0.0, unlimited().pace, lambda: now))
    process = SimpleNamespace(exitcode=7)
    worker = _Worker(Place("cpu", 2), process, SimpleNamespace(send=lambda case: None), 2)  # type: ignore[arg-type]
    based, attention = cases_of()
    for case in (based, attention):
        engine._give(worker, case)
    now = 5.0
    worker.in_hand.pop(based.case_id)  # which is done
    engine._lost(worker, worker.in_hand.pop(attention.case_id))
    assert memory.rows["attention"]["train_s"] == 0
    engine._give(worker, based)
    now = 8.0
    engine._lost(worker, based)
    assert memory.rows["based"]["train_s"] == 3


def test_a_row_that_cannot_be_stored_ends_no_sweep(
    tmp_path: Path, plugin: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    good = cases_of()
    endless = LayerSpec("based", {**good[0].layers[1].options, "cutoff": math.inf})  # which is refused before a sweep
    bad = replace(good[0], named=(), layers=(good[0].layers[0], endless))
    LocalEngine([Place("cpu", slots=2)], str(tmp_path), Memory(), [str(plugin)]).run([bad, good[1]])
    assert list(load(tmp_path, "recall")["mixer"]) == ["attention"]
    assert f"Warning: {bad.label} has no row: column 'config' takes JSON" in capfd.readouterr().err


def test_a_run_that_breaks_the_device_costs_the_others_nothing(tmp_path: Path, plugin: Path) -> None:
    """After an illegal access every call of the process fails: no row may be written from what then comes."""
    memory, rows = run(cases_of("breaks"), tmp_path, [Place("cpu", slots=3)], plugin)
    assert rows["status"].to_dict() == {"breaks": "crashed", "based": "ok", "attention": "ok"}
    assert memory.began.count("breaks") == 2
    said = r"the worker died with exit code 1: RuntimeError: an illegal memory access .* line \d+\)"
    assert re.fullmatch(said, rows["reason"]["breaks"])


def test_several_devices_begin_with_what_takes_longest() -> None:
    sections = [{"mixer": name, "grid": {"d_model": [64, 128]}} for name in ("attention", "mamba")]
    cases = recall_cases(tiny_suite(sections))
    order = [(case.mixer, case.d_model) for case in slowest_first(cases, "cuda:0")]
    assert order == [("mamba", 128), ("mamba", 64), ("attention", 128), ("attention", 64)]


def test_a_worker_goes_on_with_models_that_it_has_begun() -> None:
    """Two workers, three models at two rates: each takes both runs of a model before it begins another's."""
    suite = tiny_suite([{"mixer": "based", "grid": {"d_model": 16, "feature_dim": [2, 3, 4]}}])
    rates = suite.train.model_copy(update={"learning_rates": [0.01, 0.02]})
    cases = recall_cases(suite.model_copy(update={"train": rates}))
    engine = LocalEngine([], "", Memory())
    first, second = (_Worker(Place("cpu", 1), None, cast(Connection, None), 1) for _ in range(2))
    engine._workers, engine._queue = [first, second], deque(cases)
    taken = []
    for worker in (first, second, second, first, first, second):
        case = engine._next(worker)
        assert case is not None
        worker.models.add(case.model_id)
        taken.append((case.config["feature_dim"], case.learning_rate))
    assert taken == [(2, 0.01), (3, 0.01), (3, 0.02), (2, 0.02), (4, 0.01), (4, 0.02)]
    assert engine._next(first) is None


def test_rows_say_everything_promised(tmp_path: Path, plugin: Path) -> None:
    cases = cases_of()
    _, rows = run(cases, tmp_path, [Place("cpu", slots=1)] * 2, plugin)
    row = rows.reset_index().set_index("case_id").loc[cases[0].case_id]
    assert set(PROMISED["recall"]) <= {"case_id", *row.index}
    scalars = [name for name in PROMISED["recall"] if name != "case_id" and not isinstance(row[name], list | dict)]
    empty = {name for name in scalars if pd.isna(row[name])}
    assert empty == {"reason"}
    assert set(row["accuracy_by_slice"]) == {"16x2", "32x8"}
    assert row["accuracy_by_slice_by_epoch"]["16x2"][-1] == row["accuracy_by_slice"]["16x2"]
    assert row["accuracy"] == pytest.approx(sum(row["accuracy_by_slice"].values()) / 2)
    assert (row["steps"], row["epochs"], row["stop_reason"], row["device"]) == (8, 2, "epochs", "cpu")
    assert row["state_bytes"] == 4 * (2 * 16 + 15 * 17)  # BaseConv's two inputs; 1 + f + f(f+1)/2 features, d + 1 wide
    assert row["data_hash"]
    assert row["train_s"] > 0


@pytest.mark.parametrize("slots", [2, 3])
def test_an_early_stop_leaves_the_runs_beside_it_as_they_are(tmp_path: Path, plugin: Path, slots: int) -> None:
    """With two slots the third run starts in the middle of the second, where the first has stopped."""
    window = {"mixer": "sliding_window", "grid": {"d_model": 16, "window": 8}}
    stopping = recall_cases(tiny_suite(GOOD[1:], epochs=4, stop_accuracy=1e-9))
    others = recall_cases(tiny_suite([GOOD[0], window], epochs=4))
    memory, rows = run([*stopping, *others], tmp_path, [Place("cpu", slots=slots)], plugin)
    stopped = rows.loc["attention"]
    assert (stopped["status"], stopped["stop_reason"]) == ("ok", "accuracy above 1e-09")
    never = trained(recall_cases(tiny_suite(GOOD[1:], epochs=4, stop_accuracy=2.0))[0]).progress
    epochs = next(index for index, accuracy in enumerate(never.accuracies, 1) if accuracy > 0)
    assert epochs < 4
    assert stopped["accuracy_by_epoch"] == never.accuracies[:epochs]
    assert stopped["loss_by_epoch"] == never.losses[:epochs]
    assert stopped["steps"] == epochs * stopping[0].steps_per_epoch
    for case in others:
        alone, beside = trained(case).progress, rows.loc[case.mixer]
        assert beside["stop_reason"] == "epochs"
        assert beside["loss_by_epoch"] == alone.losses
        assert beside["accuracy_by_epoch"] == alone.accuracies
        assert beside["accuracy_by_slice_by_epoch"] == alone.slices
        assert memory.epochs.index(("attention", epochs)) < memory.epochs.index((case.mixer, 4))


def test_side_by_side_seconds_are_shared(tmp_path: Path, plugin: Path) -> None:
    _, alone = run(cases_of(), tmp_path / "alone", [Place("cpu", slots=1)], plugin)
    _, beside = run(cases_of(), tmp_path / "beside", [Place("cpu", slots=2)], plugin)
    assert set(alone["concurrent_runs"]) == {1}
    assert max(beside["concurrent_runs"]) == 2


def test_a_results_folder_renamed_meanwhile_is_told_and_costs_no_row(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "results"

    class Renames(Memory):
        def finished(self, case: RecallCase, row: dict[str, Any]) -> None:
            if not self.rows:
                root.rename(tmp_path / "elsewhere")
            super().finished(case, row)

    LocalEngine([Place("cpu", slots=1)], str(root), Renames()).run(cases_of())
    folders = (root, tmp_path / "elsewhere")
    assert sorted(mixer for folder in folders for mixer in load(folder, "recall")["mixer"]) == ["attention", "based"]
    assert f"Warning: the results folder {str(root)!r} was renamed or deleted" in capsys.readouterr().err
