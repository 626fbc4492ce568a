"""Calling cases once in processes beside each other: all are called, and no failure ends it."""

import os
from multiprocessing import active_children
from pathlib import Path

import pytest
import torch

from basedbench.config.throughput import Case, MeasureSection
from basedbench.store import fingerprint
from basedbench.timing import rehearsal
from basedbench.timing.rehearsal import kinds, processes_for, rehearse, to_rehearse
from basedbench.timing.rehearsed import Rehearsed
from basedbench.timing.worker import Failure
from tests.timing.conftest import make_case, make_model_case

PLUGIN = str(Path(__file__).with_name("plugin_misbehaving.py"))
MEASURE = MeasureSection(round_ms=2, timeout=60)


def test_every_case_is_called_and_failures_are_passed_over() -> None:
    cases = [make_case(name, length=length) for length in (8, 24) for name in ("good", "dies", "raises", "good")]
    failures = rehearse(cases, "cpu", MEASURE, [PLUGIN], processes=2)
    assert sorted(failure.status for failure in failures) == ["crashed", "crashed", "runtime_error", "runtime_error"]


def test_no_tuning_is_kept_of_a_rehearsal(monkeypatch: pytest.MonkeyPatch) -> None:
    """The device is shared there; what peers keep on disk would stand in for tuning where they are timed."""
    for name in ("FLA_CACHE_RESULTS", "TRITON_CACHE_AUTOTUNING"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    rehearsal._set_up("cpu", [])
    assert os.environ["FLA_CACHE_RESULTS"] == os.environ["TRITON_CACHE_AUTOTUNING"] == "0"


def test_nothing_to_do() -> None:
    assert rehearse([], "cpu", MEASURE, [PLUGIN], processes=4) == []


def test_what_compiles_is_called_the_largest_last() -> None:
    cases = [make_case("ours", length=64), make_case("sdpa-flash", length=8), make_case("flex", length=16)]
    cases += [make_case("reference", length=8), make_model_case("based"), make_case("fla-parallel", batch=1, length=8)]
    assert [case.contender for case in to_rehearse(cases)] == ["fla-parallel", "flex", "ours"]


def test_cases_that_may_share_a_kernel_are_one_piece_of_work() -> None:
    lengths = [make_case("ours", length=length) for length in (8, 16)]
    wide = make_case("ours", length=8, key_dim=8)
    others = [make_case("ours", mode="fwd_bwd"), make_case("ours", dtype="bf16"), make_case("flex")]
    assert kinds([lengths[0], wide, *others, lengths[1]]) == [lengths, [wide], *([one] for one in others)]


def test_a_kind_is_called_by_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    hired: list[list[int]] = []

    class Player:
        def __init__(self, *arguments: object) -> None:
            self.called: list[int] = []
            hired.append(self.called)

        def prepare(self, case: Case, measure: MeasureSection) -> object:
            self.called.append(case.length)
            refused = Failure("unsupported", "not for this shape")
            return {8: Failure("crashed", "it died"), 16: refused}.get(case.length, {})

        def kill(self) -> None:
            pass

        stop = kill

    monkeypatch.setattr(rehearsal, "Worker", Player)
    cases = [make_case("ours", length=length) for length in (24, 8, 16, 40)]
    failures = rehearse(cases, "cpu", MEASURE, [], processes=4)
    assert [failure.status for failure in failures] == ["crashed", "unsupported"]
    assert hired == [[24, 8], [16, 40]]  # what crashed is replaced, what was refused a case goes on


def test_a_process_has_two_kinds_or_more_to_call() -> None:
    cases = [make_case("ours", key_dim=width, length=length) for width in range(1, 8) for length in (8, 16)]
    assert processes_for(cases, 12) == 4
    assert processes_for(cases, 2) == 2
    assert processes_for([], 12) == 0


def test_what_was_rehearsed_is_not_again_unless_something_changed(tmp_path: Path) -> None:
    cases, told = [make_case("ours", length=length) for length in (8, 16, 24)], fingerprint()
    known = Rehearsed(tmp_path / "cache", told, [])
    assert known.new(cases) == cases
    known.add(cases[:1])
    known.add(cases[1:2])
    assert Rehearsed(tmp_path / "cache", told, []).new(cases) == cases[2:]
    assert Rehearsed(tmp_path / "cache", told | {"triton": "another"}, []).new(cases) == cases
    plugin = tmp_path / "plugin.py"
    found = []
    for text in ("a = 1", "a = 2"):
        plugin.write_text(text)
        found.append(Rehearsed(tmp_path / "cache", told, [str(plugin)]).file)
    assert len({*found, known.file}) == 3


def test_a_folder_that_cannot_be_written_is_no_matter(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    known, cases = Rehearsed(tmp_path / "file", fingerprint(), []), [make_case("ours")]
    known.add(cases)
    assert known.new(cases) == cases


def test_an_interrupt_ends_the_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(futures: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(rehearsal, "wait", interrupted)
    cases = [make_case("hangs", length=length) for length in range(8, 14)]
    with pytest.raises(KeyboardInterrupt):
        rehearse(cases, "cpu", MEASURE, [PLUGIN], processes=2)
    assert not any(child.name.startswith("ForkServer") and child.is_alive() for child in active_children())
