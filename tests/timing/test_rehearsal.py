"""Calling cases once in processes beside each other: all are called, and no failure ends it."""

from multiprocessing import active_children
from pathlib import Path

import pytest

from basedbench.config.throughput import MeasureSection
from basedbench.timing import rehearsal
from basedbench.timing.rehearsal import rehearse, to_rehearse
from tests.timing.conftest import make_case, make_model_case

PLUGIN = str(Path(__file__).with_name("plugin_misbehaving.py"))
MEASURE = MeasureSection(round_ms=2, timeout=60)


def test_every_case_is_called_and_failures_are_passed_over() -> None:
    cases = [make_case(name, length=length) for length in (8, 24) for name in ("good", "dies", "raises", "good")]
    failures = rehearse(cases, "cpu", MEASURE, [PLUGIN], processes=2)
    assert sorted(failure.status for failure in failures) == ["crashed", "crashed", "runtime_error", "runtime_error"]


def test_nothing_to_do() -> None:
    assert rehearse([], "cpu", MEASURE, [PLUGIN], processes=4) == []


def test_what_compiles_is_called_the_largest_last() -> None:
    cases = [make_case("ours", length=64), make_case("sdpa-flash", length=8), make_case("flex", length=16)]
    cases += [make_case("reference", length=8), make_model_case("based"), make_case("fla-parallel", batch=1, length=8)]
    assert [case.contender for case in to_rehearse(cases)] == ["fla-parallel", "flex", "ours"]


def test_an_interrupt_ends_the_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(futures: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(rehearsal, "wait", interrupted)
    cases = [make_case("hangs", length=length) for length in range(8, 14)]
    with pytest.raises(KeyboardInterrupt):
        rehearse(cases, "cpu", MEASURE, [PLUGIN], processes=2)
    assert not any(child.name.startswith("ForkServer") and child.is_alive() for child in active_children())
