"""Calling cases once in processes beside each other: all are called, and no failure ends it."""

import os
import threading
from collections.abc import Callable
from multiprocessing import active_children
from pathlib import Path

import pytest
import torch

from basedbench.config.throughput import Case, MeasureSection
from basedbench.store import fingerprint
from basedbench.timing import rehearsal
from basedbench.timing.kinds import by_their_own, kinds, processes_for, to_rehearse
from basedbench.timing.rehearsal import Outcome, rehearse
from basedbench.timing.rehearsed import Rehearsed
from basedbench.timing.worker import Failure
from tests.timing.conftest import MockClock, make_case, make_model_case

PLUGIN = str(Path(__file__).with_name("plugin_misbehaving.py"))
MEASURE = MeasureSection(round_ms=2, timeout=60)


def test_every_case_is_called_and_failures_are_passed_over() -> None:
    cases = [make_case(name, length=length) for length in (8, 24) for name in ("good", "dies", "raises", "good")]
    failures = rehearse(cases, "cpu", MEASURE, [PLUGIN], processes=2).failures
    assert sorted(one.status for one in failures) == ["crashed", "crashed", "runtime_error", "runtime_error"]


def test_no_tuning_is_kept_of_a_rehearsal(monkeypatch: pytest.MonkeyPatch) -> None:
    """The device is shared there; what peers keep on disk would stand in for tuning where they are timed."""
    for name in ("FLA_CACHE_RESULTS", "TRITON_CACHE_AUTOTUNING"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    rehearsal._set_up("cpu", [])
    assert os.environ["FLA_CACHE_RESULTS"] == os.environ["TRITON_CACHE_AUTOTUNING"] == "0"


def test_the_seconds_of_every_process_count() -> None:
    cases = [make_case("good", length=length) for length in (8, 16)] + [make_case("raises")]
    seconds = rehearse(cases, "cpu", MEASURE, [PLUGIN], processes=2).seconds
    assert set(seconds) == {case.implementation for case in cases}
    assert all(one > 0 for one in seconds.values())


def test_nothing_to_do() -> None:
    assert rehearse([], "cpu", MEASURE, [PLUGIN], processes=4) == Outcome()


def test_what_compiles_is_called_the_largest_last() -> None:
    cases = [make_case("ours", length=64), make_case("sdpa-flash", length=8), make_case("flex", length=16)]
    cases += [make_case("reference", length=8), make_model_case("based"), make_case("fla-parallel", batch=1, length=8)]
    assert [case.contender for case in to_rehearse(cases)] == ["fla-parallel", "flex", "ours"]


def test_of_what_compiles_once_for_all_shapes_the_smallest_of_a_kind_is_called() -> None:
    shapes = [{"mode": mode, "length": length} for mode in ("fwd", "fwd_bwd") for length in (32, 8, 16)]
    cases = [make_case("sdpa-cudnn", operator="attention", **shape) for shape in shapes]
    assert to_rehearse(cases) == [cases[1], cases[4]]
    assert by_their_own(cases) == cases
    assert processes_for([cases[1], cases[4]], 12) == 1


def test_cases_that_may_share_a_kernel_are_one_piece_of_work() -> None:
    lengths = [make_case("ours", length=length) for length in (8, 16)]
    wide = make_case("ours", length=8, key_dim=8)
    backward, half, peer = make_case("ours", mode="fwd_bwd"), make_case("ours", dtype="bf16"), make_case("flex")
    found = kinds([lengths[0], wide, backward, half, peer, lengths[1]])
    assert found == [[peer], [backward], lengths, [wide], [half]]  # what takes longest is begun first


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
    failures = rehearse(cases, "cpu", MEASURE, [], processes=4).failures
    assert [failure.status for failure in failures] == ["crashed", "unsupported"]
    assert hired == [[24, 8], [16, 40]]  # what crashed is replaced, what was refused a case goes on


def test_a_helper_has_two_kinds_or_more_to_call_and_more_where_workers_share_them() -> None:
    shapes = [{"key_dim": width, "length": length} for width in range(1, 10) for length in (8, 16)]
    peers, ours = ([make_case(name, **shape) for shape in shapes] for name in ("flex", "ours"))
    assert processes_for(peers, 12) == 5
    assert processes_for(ours, 12) == 1
    assert processes_for([*ours, *peers], 12) == 6
    assert processes_for(peers, 2) == 2
    assert processes_for([], 12) == 0


class Own:
    """A worker that will time cases: it notes what it calls, and answers as it is told."""

    def __init__(self, answers: Callable[[Case], object] = lambda case: {}, status: str = "runtime_error") -> None:
        self.answers, self.called, self.imported = answers, list[Case](), list[Case]()
        self.status = status  # of its imports

    def imports(self, case: Case) -> Failure:
        assert not self.called
        self.imported.append(case)
        return Failure(self.status, "no module of that name")

    def rehearse(self, case: Case, measure: MeasureSection) -> object:
        self.called.append(case)
        return self.answers(case)


def test_own_workers_check_what_needs_no_compiling_at_once_and_the_rest_when_it_is_compiled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ready = [make_case("reference", length=length) for length in (8, 16)]
    first = [make_case("ours", length=length, mode="fwd_bwd") for length in (8, 16)]
    then = [make_case("ours", length=8)]
    checked = {case.id: threading.Event() for case in (*ready, *first, *then)}
    compiled: list[Case] = []

    class Helper:
        def __init__(self, *arguments: object) -> None:
            pass

        def prepare(self, case: Case, measure: MeasureSection) -> object:
            for other in ready if case in first else first:  # checked while this one compiles, or it waits in vain
                assert checked[other.id].wait(10)
            compiled.append(case)
            return {}

        def kill(self) -> None:
            pass

        stop = kill

    def check(case: Case) -> object:
        assert case in (*ready, *compiled)
        checked[case.id].set()
        return {}

    monkeypatch.setattr(rehearsal, "Worker", Helper)
    monkeypatch.setattr(rehearsal, "_claimable", lambda part, own: False)  # all is compiled by the helper
    own = {case.implementation: Own(check) for case in (ready[0], first[0])}
    outcome = rehearse([*then, *first], "cpu", MEASURE, [], processes=1, own=own, ready=ready)
    assert outcome.compiled == [*first, *then]
    assert [worker.called[:2] for worker in own.values()] == [ready, first]
    assert not outcome.failures


def test_of_peers_that_tune_helpers_call_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a call would choose beside others has to be chosen again alone."""
    called: list[str] = []
    monkeypatch.setattr(rehearsal._Rehearsal, "_call", lambda self: called.append(self.case.contender))
    for name in ("fla-chunk", "fla-parallel", "mamba_ssm", "flex", "sdpa-cudnn", "ours"):
        assert rehearsal._Rehearsal(make_case(name), "cpu").prepare() == {}
    assert called == ["fla-parallel", "mamba_ssm", "flex", "sdpa-cudnn", "ours"]


def test_a_forward_that_is_tuned_is_compiled_with_its_backward() -> None:
    modes = [make_case("fla-chunk", mode=mode, length=length) for length in (8, 16) for mode in ("fwd", "fwd_bwd")]
    others = [make_case("flex", mode=mode) for mode in ("fwd", "fwd_bwd")]
    assert kinds([*others[:1], *modes, *others[1:]]) == [modes, others[1:], others[:1]]


def test_own_workers_import_before_they_call_and_failures_there_are_no_matter() -> None:
    mine, tuned = make_case("ours"), make_case("fla-chunk")
    own = {case.implementation: Own() for case in (mine, tuned)}
    rehearse([mine], "cpu", MEASURE, [], processes=0, own=own, imports=[mine, tuned])
    assert [worker.imported for worker in own.values()] == [[mine], [tuned]]
    assert [worker.called for worker in own.values()] == [[mine], []]


def test_an_own_worker_compiles_kinds_of_its_own_if_nobody_helps() -> None:
    mine, others = [make_case("ours", key_dim=k) for k in (4, 8)], [make_case("ours", operator="short_conv", heads=1)]
    own = {mine[0].implementation: Own()}
    outcome = rehearse([*mine, *others, make_case("flex")], "cpu", MEASURE, [], processes=0, own=own)
    assert own[mine[0].implementation].called == outcome.compiled == mine


def test_the_last_own_worker_leaves_its_cases_to_their_turn() -> None:
    ready = [make_case("reference", length=length) for length in (8, 16, 24)]
    own = {ready[0].implementation: Own()}
    rehearse([], "cpu", MEASURE, [], processes=0, own=own, ready=ready)
    assert own[ready[0].implementation].called == []


def test_what_is_not_begun_in_time_is_left_to_its_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = MockClock()
    monkeypatch.setattr(rehearsal.time, "monotonic", clock.now)

    def takes_long(case: Case) -> object:
        clock.advance(6.0)
        return {}

    cases = [make_case("ours", key_dim=width) for width in (4, 8, 12)]
    ready = [make_case("reference", length=length) for length in (8, 16)]
    own = {case.implementation: Own(takes_long) for case in (cases[0],)}
    outcome = rehearse(cases, "cpu", MEASURE, [], processes=0, own=own, limit_s=10.0)
    assert own[cases[0].implementation].called == outcome.compiled == cases[:2]
    late = {case.implementation: Own(takes_long) for case in (cases[0], ready[0])}
    assert rehearse(cases, "cpu", MEASURE, [], processes=0, own=late, ready=ready, limit_s=0.0) == Outcome()
    assert all(worker.called == [] for worker in late.values())


def test_of_a_kind_with_many_cases_those_are_called_that_begin_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, called = MockClock(), list[Case]()
    monkeypatch.setattr(rehearsal.time, "monotonic", clock.now)

    def takes_long(case: Case) -> object:
        clock.advance(6.0)
        called.append(case)
        return {}

    class Helper(Own):
        def __init__(self, *_: object) -> None:
            super().__init__(takes_long)

        def prepare(self, case: Case, measure: MeasureSection) -> object:
            return self.rehearse(case, measure)

        def kill(self) -> None:
            pass

        stop = kill

    monkeypatch.setattr(rehearsal, "Worker", Helper)
    cases = [make_case("ours", length=length) for length in (8, 16, 24)]
    for helpers in (0, 1):
        called.clear()
        own = {} if helpers else {cases[0].implementation: Own(takes_long)}
        outcome = rehearse(cases, "cpu", MEASURE, [], processes=helpers, own=own, limit_s=10.0)
        assert called == outcome.compiled == cases[:2]


@pytest.mark.parametrize("status", ["timeout", "crashed"])
def test_an_own_worker_that_an_import_ended_is_named_and_not_asked_again(status: str) -> None:
    """What is timed would else find a worker that is gone, and have that for a result."""
    cases = [make_case(name) for name in ("ours", "fla-chunk")]
    own = {case.implementation: Own(status=status) for case in cases}
    outcome = rehearse(cases[:1], "cpu", MEASURE, [], processes=0, own=own, ready=cases[:1], imports=cases)
    assert sorted(case.contender for case in outcome.lost) == ["fla-chunk", "ours"]
    assert all(worker.called == [] for worker in own.values())


def test_an_own_worker_that_failed_is_named_and_not_asked_again() -> None:
    both = threading.Barrier(2, timeout=10)

    def meet(case: Case) -> object:
        if case.length == 8:
            both.wait()
        return Failure("crashed", "it died") if case.contender == "ours" else {}

    cases = [make_case(name, length=length) for name in ("ours", "reference") for length in (8, 16)]
    own = {case.implementation: Own(meet) for case in cases}
    outcome = rehearse(cases[:2], "cpu", MEASURE, [], processes=0, own=own, ready=cases[2:])
    assert own[cases[0].implementation].called == outcome.lost == cases[:1]
    assert [failure.status for failure in outcome.failures] == ["crashed"]


def test_what_tunes_and_what_is_large_is_not_checked_in_company() -> None:
    small, large = make_case("ours"), make_case("ours", batch=64, length=2**16, heads=16, device="cuda")
    assert by_their_own([small, make_case("flex"), make_case("fla-chunk"), large, make_model_case()]) == [small]


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


def test_a_list_that_is_no_text_is_begun_anew(tmp_path: Path) -> None:
    known, cases = Rehearsed(tmp_path, fingerprint(), []), [make_case("ours")]
    known.file.write_bytes(b"\xff\x00")
    assert known.new(cases) == cases


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
