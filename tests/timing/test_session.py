"""A case from its first call to its samples, on the CPU."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from basedbench.config.throughput import Case, MeasureSection
from basedbench.contenders import Contender, contender, register
from basedbench.kernels import taylor_attention
from basedbench.timing import correctness
from basedbench.timing import session as session_module
from basedbench.timing.clock import WallClock
from basedbench.timing.kept import Kept
from basedbench.timing.memory import peak_memory
from basedbench.timing.operator import INPUT_SETS
from basedbench.timing.session import WARM_UP_CALLS, Session
from tests.contenders.conftest import FORMS, small
from tests.timing.conftest import MockClock


@pytest.mark.parametrize(("operator", "mode"), FORMS)
def test_a_case_is_prepared_and_sampled(operator: str, mode: str) -> None:
    session = Session(small(operator, mode, "reference"), MeasureSection(round_ms=2), "cpu", WallClock())
    facts = session.prepare()
    assert facts["status"] == "ok"
    assert 0 < facts["error"] <= facts["error_bound"]
    assert facts["bytes"] > 0
    assert facts["flops"] > 0
    assert facts["threads"] == torch.get_num_threads()
    assert (facts["state_bytes"] is not None) == (mode == "decode")
    one = session.round()
    assert all(sample > 0 for sample in one.samples_ms)
    assert gc.isenabled()
    session.close()
    assert session.sampler is None


def test_the_state_is_measured_per_sequence() -> None:
    session = Session(small("taylor_attention", "decode", batch=3), MeasureSection(), "cpu", WallClock())
    features = 1 + 8 + 8 * 9 // 2
    assert session.prepare()["state_bytes"] == 2 * features * (6 + 1) * 4


class Slow(Contender):
    """Takes a second to build and another for the first call, then as long as it is told."""

    name = "slow"
    operators = ("taylor_attention",)

    def __init__(self, clock: MockClock, milliseconds: float, wrong: bool = False) -> None:
        self.clock, self.milliseconds, self.wrong, self.calls = clock, milliseconds, wrong, []

    def build(self, case):
        from basedbench.contenders import get_contender

        reference = get_contender("reference").build(case)
        self.clock.advance(1.0)

        def call(tensors):
            self.clock.advance(1.0 if not self.calls else self.milliseconds / 1e3)
            self.calls.append(tensors["q_BLHK"].data_ptr())
            return reference(tensors) * (2 if self.wrong else 1)

        return call


@pytest.mark.usefixtures("own_registries")
def test_compilation_is_told_apart_from_running(clock: MockClock) -> None:
    slow = register(Slow(clock, 5.0))
    session = Session(small("taylor_attention", "fwd", "slow"), MeasureSection(round_ms=50), "cpu", clock)
    facts = session.prepare()
    assert facts["compile_s"] == pytest.approx(2.0 - 0.005)
    before = len(slow.calls)
    one = session.round()
    assert one.samples_ms == pytest.approx([5.0] * 10)
    assert one.seconds == pytest.approx((10 + WARM_UP_CALLS) * 5e-3)
    assert len(slow.calls) - before == 10 + WARM_UP_CALLS
    assert len(set(slow.calls[before:])) == INPUT_SETS


@pytest.mark.usefixtures("own_registries")
@pytest.mark.parametrize("tunes", [False, True])
def test_what_a_peer_chooses_from_is_compiled_before_it_chooses(
    tunes: bool, clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow, compiled = register(Slow(clock, 5.0)), list[Case]()

    def compile_ahead(case: Case, device: str) -> None:
        assert not slow.calls
        compiled.append(case)
        clock.advance(3.0)

    monkeypatch.setattr(session_module, "compile_ahead", compile_ahead)
    monkeypatch.setattr(session_module, "only_compiled", lambda case: tunes)
    session = Session(small("taylor_attention", "fwd", "slow"), MeasureSection(round_ms=50), "cpu", clock)
    facts = session.prepare()
    assert compiled == [session.case] * tunes
    assert facts["compile_s"] == pytest.approx(2.0 + 3.0 * tunes - 0.005)


@pytest.mark.usefixtures("own_registries")
def test_long_calls_have_no_warm_up_and_few_estimates(clock: MockClock) -> None:
    slow = register(Slow(clock, 400.0))
    session = Session(small("taylor_attention", "fwd", "slow"), MeasureSection(round_ms=50), "cpu", clock)
    session.prepare()
    before = len(slow.calls)
    assert session.round().samples_ms == pytest.approx([400.0])
    assert len(slow.calls) - before == 1


@pytest.mark.usefixtures("own_registries")
def test_an_incorrect_contender_is_never_timed(clock: MockClock) -> None:
    slow = register(Slow(clock, 5.0, wrong=True))
    session = Session(small("taylor_attention", "fwd", "slow"), MeasureSection(), "cpu", clock)
    facts = session.prepare()
    assert facts["status"] == "incorrect"
    assert "relative error" in facts["reason"]
    assert facts["error"] == pytest.approx(1.0)
    assert session.sampler is None
    assert len(slow.calls) == 6  # the first call, two for the check, and three that tell why


@pytest.mark.usefixtures("own_registries")
@pytest.mark.parametrize("threads", [1, None])
def test_a_contender_with_threads_of_its_own_is_not_timed(threads: int | None) -> None:
    """Its row would have another number of threads than those beside it, under a heading that has theirs."""
    before = torch.get_num_threads()

    @contender("taylor_attention", name="broad")
    def broad(q, k, v):
        torch.set_num_threads(3)
        return taylor_attention(q, k, v)

    session = Session(small("taylor_attention", "fwd", "broad", threads=threads), MeasureSection(), "cpu", WallClock())
    try:
        facts, due = session.prepare(), threads or before
        assert (facts["status"], facts["threads"], torch.get_num_threads()) == ("incorrect", due, due)
        assert facts["reason"] == f"it sets the number of threads to 3, where the case has {due}"
    finally:
        torch.set_num_threads(before)


@pytest.mark.usefixtures("own_registries")
def test_a_context_with_threads_of_its_own_is_not_timed(clock: MockClock) -> None:
    class Broad(Slow):
        @contextmanager
        def context(self, case: Case) -> Iterator[None]:
            before = torch.get_num_threads()
            torch.set_num_threads(3)
            yield
            torch.set_num_threads(before)

    before = torch.get_num_threads()
    register(Broad(clock, 5.0))
    facts = Session(small("taylor_attention", "fwd", "slow", threads=1), MeasureSection(), "cpu", clock).prepare()
    assert facts["reason"] == "it sets the number of threads to 3, where the case has 1"
    torch.set_num_threads(before)


@pytest.mark.usefixtures("own_registries")
def test_the_threads_of_a_case_that_failed_are_not_the_next_ones(clock: MockClock) -> None:
    class Failing(Slow):
        def build(self, case: Case) -> Any:
            if case.length == 41:
                torch.set_num_threads(3)
                raise ValueError("not this length")
            return super().build(case)

    before, kept = torch.get_num_threads(), Kept("cpu")
    register(Failing(clock, 5.0))
    with pytest.raises(ValueError, match="not this length"):
        Session(small("taylor_attention", "fwd", "slow", length=41), MeasureSection(), "cpu", clock, kept).prepare()
    facts = Session(small("taylor_attention", "fwd", "slow"), MeasureSection(), "cpu", clock, kept).prepare()
    assert (facts["status"], facts["threads"], torch.get_num_threads()) == ("ok", before, before)


@pytest.mark.usefixtures("own_registries")
def test_what_was_found_right_ahead_is_not_checked_again(clock: MockClock) -> None:
    slow, kept = register(Slow(clock, 5.0)), Kept("cpu")
    case = small("taylor_attention", "fwd", "slow")
    Session(case, MeasureSection(), "cpu", clock, kept).rehearse()
    calls = [len(slow.calls)]
    found = []
    for there in (kept, Kept("cpu")):
        found.append(Session(case, MeasureSection(round_ms=50), "cpu", clock, there).prepare())
        calls.append(len(slow.calls))
    assert calls[2] - calls[1] == calls[1] - calls[0] + 2  # the check calls twice
    for name in ("status", "error", "error_bound", "checked_against"):
        assert found[0][name] == found[1][name]
    assert found[0]["compile_s"] == pytest.approx(2.0 - 0.005)  # of the call that compiled


def test_what_lacked_memory_in_company_is_checked_in_full_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, original, lacking = WallClock(), correctness._check, [True]

    def full(case: Case, *more: object) -> correctness.Verdict:
        if case.batch > 1 and lacking:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(case, *more)

    monkeypatch.setattr(correctness, "_check", full)
    case, kept = small("taylor_attention", "fwd", "ours"), Kept("cpu")
    Session(case, MeasureSection(), "cpu", clock, kept).rehearse()
    assert kept.ahead == {}
    lacking.clear()
    assert Session(case, MeasureSection(), "cpu", clock, kept).prepare()["checked_against"] == "float64"


@pytest.mark.usefixtures("own_registries")
def test_what_was_found_wrong_ahead_is_checked_again_and_not_timed(clock: MockClock) -> None:
    register(Slow(clock, 5.0, wrong=True))
    kept = Kept("cpu")
    case = small("taylor_attention", "fwd", "slow")
    Session(case, MeasureSection(), "cpu", clock, kept).rehearse()
    session = Session(case, MeasureSection(), "cpu", clock, kept)
    assert session.prepare()["status"] == "incorrect"
    assert session.sampler is None


class Replays:
    """A subject on a GPU that there is none of: its calls can be replayed, or say why not."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error

    def replayed(self, capture: object) -> list[object]:
        if self.error:
            raise self.error
        return [lambda: None]


def on_a_gpu(subject: object, cache: str = "cold") -> Session:
    session = Session(small("taylor_attention", "fwd"), MeasureSection(), "cpu", WallClock())
    session.case = session.case.model_copy(update={"device": "cuda", "cache": cache})
    session.subject = subject  # type: ignore[assignment]
    return session


def test_what_cannot_be_captured_is_launched_and_says_so() -> None:
    for error in (RuntimeError("operation not permitted\nwhen stream is capturing"), torch.OutOfMemoryError("full")):
        calls, reason = on_a_gpu(Replays(error))._replayed()
        assert calls == []
        assert reason.startswith("launched by the host, cannot be captured in a CUDA graph: ")
        assert "\n" not in reason
    calls, reason = on_a_gpu(Replays())._replayed()
    assert len(calls) == 1
    assert reason is None
    assert on_a_gpu(Replays(), cache="hot")._replayed() == ([], None)  # a graph of whole passes is made then


def test_on_a_gpu_memory_is_weighed_in_the_calls_that_are_estimated(monkeypatch: pytest.MonkeyPatch) -> None:
    weighed, calls = on_a_gpu(Replays()), []
    weighed.calls = [lambda: calls.append(1), lambda: calls.append(2)]
    monkeypatch.setattr(weighed, "_synchronize", lambda: None)
    monkeypatch.setattr(session_module, "peak_memory", lambda call, device: call() or 7)
    (estimate, enqueue), memory = weighed._weighed()
    assert memory == 7
    assert calls == [1, 2, 1]
    assert 0 < enqueue <= estimate


def test_peak_memory_is_what_a_call_needs() -> None:
    def call() -> torch.Tensor:
        a = torch.ones(2**22)  # 16 MiB
        b = a + 1
        del a
        return b * 2

    assert peak_memory(call, "cpu") == pytest.approx(2 * 2**24, rel=1e-3)
