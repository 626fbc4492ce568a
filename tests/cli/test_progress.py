"""What a sweep says of itself, on a clock that only moves when told."""

import io
import threading
from typing import Any

import pytest
from rich.console import Console

from basedbench.cli import progress
from basedbench.cli.progress import LiveView, PlainView, repeated, watch
from basedbench.training.cases import RecallCase, recall_cases
from tests.training.conftest import tiny_suite


@pytest.fixture
def cases() -> list[RecallCase]:
    return recall_cases(tiny_suite(epochs=4, learning_rates=[0.01, 0.02, 0.03]))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A list whose only element is the time."""
    seconds = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: seconds[0])
    return seconds


def row(accuracy: float, **changes: Any) -> dict[str, Any]:
    return {"status": "ok", "accuracy": accuracy, "train_s": 1.5, "reason": "", "stop_reason": ""} | changes


def told(view: PlainView) -> str:
    """The lines since the last call."""
    assert isinstance(view.console.file, io.StringIO)
    text = view.console.file.getvalue()
    view.console.file.truncate(0)
    view.console.file.seek(0)
    return text


def test_a_line_in_between_says_how_far_it_is(cases: list[RecallCase], clock: list[float]) -> None:
    view = PlainView(cases, Console(file=io.StringIO()))
    for case in cases:
        view.started(case)
    view.report()
    assert told(view) == "0 of 3 runs done, 3 left (0 of 12 epochs)  0.0 runs/min\n"
    clock[0] += 30
    for epoch in (1, 2):
        view.epoch(cases[0], epoch, 0.5)
    view.report()
    assert told(view) == "0 of 3 runs done, 3 left (2 of 12 epochs)  0.0 runs/min  2 min 30 s left\n"
    clock[0] += 30
    view.finished(cases[0], row(0.75))  # two epochs early
    assert told(view).startswith(f"[1/3] {cases[0].label}: accuracy 0.750  1.5 s  about 4 min 0 s left")
    view.report()
    expected = "1 of 3 runs done, 2 left (2 of 10 epochs)  1.0 runs/min  4 min 0 s left  best so far: based 0.750\n"
    assert told(view) == expected
    view.finished(cases[1], row(0.0, status="oom", reason="out of memory"))
    view.finished(cases[2], row(0.5))
    told(view)
    view.report()
    assert told(view).endswith("best so far: based 0.750\n")


def test_epochs_of_a_lost_attempt_do_not_count(cases: list[RecallCase], clock: list[float]) -> None:
    view = PlainView(cases, Console(file=io.StringIO()))
    for _ in range(2):
        view.started(cases[0])
        for epoch in (1, 2, 3, 4):
            view.epoch(cases[0], epoch, 0.5)
    view.report()
    assert "(4 of 12 epochs)" in told(view)


def test_a_terminal_has_the_same_words_in_its_bars(cases: list[RecallCase], clock: list[float]) -> None:
    view = LiveView(cases, ready=2)
    view.started(cases[0])
    clock[0] += 60
    view.epoch(cases[0], 1, 0.5)
    view.finished(cases[0], row(0.75))
    console = Console(file=io.StringIO(), width=120)
    console.print(view.render())
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "1/3" in text
    assert "1.0 runs/min  8 min 0 s left  (2 done before)" in text
    assert "best so far: based 0.750" in text


def test_something_is_called_until_the_block_ends() -> None:
    calls: list[int] = []
    enough = threading.Event()

    def call() -> None:
        calls.append(1)
        if len(calls) == 3:
            enough.set()

    with repeated(call, 0.001):
        assert enough.wait(30)
    count = len(calls)
    assert not [thread for thread in threading.enumerate() if thread.daemon and thread.name.endswith("(loop)")]
    assert len(calls) == count


@pytest.mark.parametrize(("quiet", "lines"), [(False, True), (True, False)])
def test_lines_in_between_unless_quiet(
    cases: list[RecallCase],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    quiet: bool,
    lines: bool,
) -> None:
    monkeypatch.setattr(progress, "EVERY_S", 0.001)
    reported, report = threading.Event(), PlainView.report
    monkeypatch.setattr(PlainView, "report", lambda self: (report(self), reported.set()))
    with watch(cases, 0, quiet):
        assert reported.wait(30 if lines else 0.05) == lines
    errors = capfd.readouterr().err
    assert ("0 of 3 runs done" in errors) == lines
    assert quiet == (errors == "")
