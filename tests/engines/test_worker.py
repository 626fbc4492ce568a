"""In which order a worker lets its runs use the host."""

from collections.abc import Iterator
from itertools import pairwise
from multiprocessing import Pipe
from pathlib import Path
from types import SimpleNamespace

import pytest

from basedbench.engines import worker as module
from basedbench.engines.compile_ahead import DONE, IN_HAND, Rehearsed
from basedbench.engines.worker import Active, Worker
from tests.training.conftest import MakeCase, make_case

__all__ = ["make_case"]


class Runs:
    """Stand-ins: `pieces` to record, then epochs of `steps` that the device takes `waits` looks to work off."""

    def __init__(self, worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
        self.worker, self.log, self.now = worker, list[str](), 0.0
        monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: self.now, sleep=self.sleep))
        monkeypatch.setattr(worker, "_shared", self.now)
        monkeypatch.setattr(module, "recall_row", lambda case, progress, circumstances, reason: {})
        monkeypatch.setattr(worker.store, "write", lambda kind, row: None)
        monkeypatch.setattr(worker, "_send", lambda message: None)
        self.entries: dict[str, Active] = {}

    def sleep(self, seconds: float) -> None:
        self.log.append("sleep")

    def add(self, name: str, pieces: int, steps: int, *, waits: int = 2, epochs: int = 1, piece_s: float = 1.0) -> None:
        run = SimpleNamespace(recorded=False)

        def train() -> Iterator[bool]:
            for _ in range(pieces):
                self.log.append(f"record {name}")
                self.now += piece_s
                yield True
            run.recorded = True
            for _ in range(epochs):
                for _ in range(steps):
                    self.log.append(f"step {name}")
                    self.now += 0.001
                    yield True
                for _ in range(waits):
                    self.log.append(f"wait {name}")
                    yield False

        self.entries[name] = Active(SimpleNamespace(case_id=name, label=name), train(), None, run=run)  # type: ignore[arg-type]
        self.worker.active.append(self.entries[name])


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Runs:
    worker = Worker(Pipe()[0], "cpu", str(tmp_path))
    worker.open = False
    return Runs(worker, monkeypatch)


def test_recorded_runs_take_turns(runs: Runs) -> None:
    runs.add("a", 0, 2, waits=1)
    runs.add("b", 0, 2, waits=1)
    runs.worker._record()
    runs.worker._record()
    runs.worker.loop()
    assert runs.log == ["step a", "step b", "step a", "step b", "wait a", "wait b", "sleep"]


def test_a_run_is_recorded_while_the_others_can_do_no_more_than_wait(runs: Runs) -> None:
    runs.add("a", 1, 3, waits=9)
    runs.add("b", 2, 1)
    runs.worker.loop()
    assert runs.log[:8] == ["record a", "step a", "step a", "step a", "wait a", "record b", "wait a", "record b"]


def test_a_run_that_is_never_done_enqueuing_leaves_the_host_to_one_that_is_recorded(runs: Runs) -> None:
    runs.add("a", 1, 1000)
    runs.add("b", 3, 1)
    runs.worker.loop()
    records = [index for index, what in enumerate(runs.log) if what == "record b"]
    steps = [after - before - 1 for before, after in pairwise(records)]
    assert all(module.FEED_S / 0.001 <= count <= module.FEED_S / 0.001 + 2 for count in steps)


def test_small_pieces_are_recorded_together_and_one_run_after_another(runs: Runs) -> None:
    runs.add("a", 1, 1, waits=99)
    runs.add("b", 10, 1, piece_s=module.RECORD_S / 3.5)
    runs.add("c", 1, 1)
    runs.worker.loop()
    taken = [what for what in runs.log if not what.startswith("wait a")]
    assert taken[:4] == ["record a", "step a", "record b", "record b"]
    assert taken.index("record c") > max(index for index, what in enumerate(taken) if what == "record b")
    together = "".join("b" if what == "record b" else "." for what in runs.log).split(".")
    assert max(map(len, together)) == 4


def test_each_second_is_shared_by_the_runs_that_train(runs: Runs) -> None:
    """While none does, by all: a pays half of the second in which it is recorded, then all of its own steps."""
    runs.add("a", 1, 5, waits=0)
    runs.add("b", 3, 1, waits=0, piece_s=2.0)
    runs.worker.loop()
    a, b = runs.entries["a"], runs.entries["b"]
    assert a.share_s + b.share_s == pytest.approx(runs.now)
    assert a.share_s == pytest.approx(1 / 2 + 0.005)
    assert b.wall_s == pytest.approx(runs.now)


def test_a_run_that_only_waits_beside_one_that_trains_pays_nothing(runs: Runs) -> None:
    runs.add("a", 0, 40)
    runs.add("b", 0, 40)
    for entry in runs.entries.values():
        runs.worker._advance(entry)
    runs.worker._share()
    waiting = iter([False] * 1000)
    idle = Active(SimpleNamespace(case_id="", label=""), waiting, None, run=SimpleNamespace(recorded=False))  # type: ignore[arg-type]
    runs.worker.active.append(idle)
    while len(runs.worker.active) > 1:
        runs.worker._go_round()
        runs.worker._share()
    a, b = runs.entries["a"], runs.entries["b"]
    assert idle.share_s == 0
    assert a.share_s == pytest.approx(b.share_s)
    assert a.share_s + b.share_s == pytest.approx(runs.now)
    assert idle.wall_s > 0
    assert a.company == b.company == idle.company == 3  # which is not the wall clock over the share


def test_time_in_which_a_worker_has_no_run_is_nobodys(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    def receive() -> str:
        runs.now += 50.0
        return "case"

    connection = SimpleNamespace(poll=lambda timeout: not runs.entries, recv=receive)
    monkeypatch.setattr(runs.worker, "connection", connection)
    monkeypatch.setattr(runs.worker, "open", True)
    monkeypatch.setattr(runs.worker, "_start", lambda case: runs.add("a", 1, 0) or runs.worker.active.pop())
    runs.worker._receive()
    runs.worker.open = False
    runs.worker.loop()
    assert runs.entries["a"].share_s == pytest.approx(1.0)


def test_a_run_that_waits_for_its_kernels_keeps_no_other_from_the_host(runs: Runs) -> None:
    runs.add("a", 1, 1, waits=3)
    waiting = [False, False, True]
    runs.worker.active.insert(
        0, Active(SimpleNamespace(case_id="", label=""), iter(waiting), None, run=SimpleNamespace(recorded=False))
    )  # type: ignore[arg-type]
    runs.worker.loop()
    assert runs.log[:2] == ["record a", "step a"]


@pytest.mark.parametrize("compiled", [True, False])
def test_a_run_waits_for_the_processes_that_compile_its_kernels_but_not_for_ever(
    compiled: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_case: MakeCase
) -> None:
    case, now = make_case(), [0.0]
    rehearsed = Rehearsed([case])
    rehearsed.set(case, IN_HAND)
    monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    worker = Worker(Pipe()[0], "cpu", str(tmp_path), rehearsed)
    steps = worker._steps(Active(case, iter(()), None))
    assert [next(steps), next(steps), next(steps)] == [True, False, False]
    if compiled:
        rehearsed.set(case, DONE)
    else:
        now[0] = module.KERNELS_S
    assert next(steps)


def test_a_model_that_is_to_come_waits_with_others_that_are_in_hand(tmp_path: Path, make_case: MakeCase) -> None:
    first, later = make_case(), make_case([{"mixer": "attention", "grid": {"d_model": 16}}])
    worker = Worker(Pipe()[0], "cpu", str(tmp_path), Rehearsed([first, later]))
    worker.rehearsed.set(first, IN_HAND)
    entries = [Active(case, iter(()), None) for case in (first, later)]
    worker.active += entries
    steps = worker._steps(entries[1])
    assert [next(steps), next(steps)] == [True, False]
    worker.active.remove(entries[0])
    assert next(steps)
