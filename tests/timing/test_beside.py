"""Kernels of a call compiled beside each other: all that it would launch, and nothing is launched."""

import gc
import os
import subprocess
import sys
import threading
import weakref
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from triton.runtime.jit import JITFunction

from basedbench.config.throughput import Case, MeasureSection
from basedbench.contenders.costs import bytes_of
from basedbench.timing import beside, session
from basedbench.timing.beside import _load, compile_ahead, compile_beside
from basedbench.timing.clock import WallClock
from basedbench.timing.kept import Kept
from basedbench.timing.operator import OperatorSubject
from basedbench.timing.session import Session
from tests.timing.conftest import make_case, make_model_case


class Compiler:
    """Stands in for what compiles or launches a kernel; notes what is asked for, and by which threads."""

    def __init__(self, meeting: int = 1) -> None:
        self.asked: list[tuple[str, Any, bool]] = []
        self.loaded: list[str] = []
        self.together = threading.Barrier(meeting, timeout=10)

    def __call__(self, kernel: str, size: int, *, grid: object, warmup: bool) -> "Compiled":
        self.asked.append((kernel, size, warmup))
        if size == 0:
            raise ValueError("no kernel for that")
        self.together.wait()
        return Compiled(self, kernel)


class Compiled:
    def __init__(self, compiler: Compiler, kernel: str) -> None:
        self.compiler, self.kernel = compiler, kernel

    @property
    def run(self) -> None:
        self.compiler.loaded.append(self.kernel)


def launch(kernel: str, size: int) -> None:
    JITFunction.run(kernel, size, grid=(1,), warmup=False)  # type: ignore[arg-type]


def test_kernels_are_compiled_at_once_and_loaded_but_not_launched(monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = Compiler(meeting=2)  # one after the other they would wait in vain
    monkeypatch.setattr(JITFunction, "run", compiler)
    compile_beside(lambda: [launch(name, 8) for name in ("forward", "backward")], "cpu")
    assert sorted(compiler.asked) == [("backward", 8, True), ("forward", 8, True)]
    assert sorted(compiler.loaded) == ["backward", "forward"]
    assert JITFunction.run is compiler


def test_a_kernel_whose_results_are_read_is_launched(monkeypatch: pytest.MonkeyPatch) -> None:
    launched: list[str] = []
    monkeypatch.setattr(JITFunction, "run", lambda kernel, *given, **options: launched.append(kernel.__name__))
    names = [type("Kernel", (), {"__name__": name})() for name in ("places", "forward", "backward", "places")]
    compile_beside(lambda: [launch(name, 8) for name in names], "cpu", ["places"])
    assert launched[:2] == ["places", "places"]
    assert sorted(launched[2:]) == ["backward", "forward"]


@dataclass
class Descriptor:
    """As those by which kernels copy in bulk."""

    base: Any


def test_what_a_kernel_was_given_is_not_held_until_it_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[torch.dtype, int]] = []
    given: list[tuple[torch.dtype, int]] = []
    tensors: list[weakref.ref[torch.Tensor]] = []

    def compile_(kernel: str, x: Any, pair: Any, *, like: Any, grid: object, warmup: bool) -> None:
        assert not any(tensor() is not None for tensor in tensors)
        assert isinstance(pair, tuple)
        assert pair[1] == 3
        seen.extend((one.dtype, one.data_ptr()) for one in (x, pair[0], like.base))

    def call() -> None:
        made = [torch.zeros(8, dtype=dtype)[1:] for dtype in (torch.float32, torch.float16, torch.int32)]
        given.extend((one.dtype, one.data_ptr()) for one in made)
        tensors.extend(map(weakref.ref, made))
        descriptor = Descriptor(made[2])
        JITFunction.run("forward", made[0], (made[1], 3), like=descriptor, grid=(1,), warmup=False)  # type: ignore[arg-type]
        assert descriptor.base is made[2]  # what it really belongs to

    monkeypatch.setattr(JITFunction, "run", compile_)
    compile_beside(call, "cpu")
    assert seen == given
    assert len(seen) == 3


def test_variants_of_a_kernel_follow_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = Compiler()
    monkeypatch.setattr(JITFunction, "run", compiler)
    name = "forward"
    compile_beside(lambda: [launch(name, size) for size in (8, 16, 8)], "cpu")
    assert compiler.asked == [(name, size, True) for size in (8, 16, 8)]


def test_what_fails_hides_nothing_and_is_no_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = Compiler()
    monkeypatch.setattr(JITFunction, "run", compiler)

    def call() -> None:
        launch("broken", 0)
        launch("forward", 8)
        raise RuntimeError("nothing was computed")

    compile_beside(call, "cpu")
    assert compiler.loaded == ["forward"]
    assert JITFunction.run is compiler


def test_a_single_kernel_is_compiled_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of what tunes, nothing is called but in its turn: what was left out here would be compiled there."""
    compiler = Compiler()
    monkeypatch.setattr(JITFunction, "run", compiler)
    compile_beside(lambda: launch("forward", 8), "cpu")
    assert compiler.asked == [("forward", 8, True)]
    assert compiler.loaded == ["forward"]
    compile_beside(lambda: None, "cpu")
    assert len(compiler.asked) == 1


def test_a_kernel_that_could_not_be_loaded_is_loaded_anew_where_it_is_launched() -> None:
    """Triton makes its launcher first, and would then launch it without code."""
    kernel = Loading(fails=1)
    with pytest.raises(MemoryError):
        _load(kernel)
    _load(kernel)
    assert kernel.loads == 2


class Loading:
    """As Triton loads a kernel."""

    def __init__(self, fails: int) -> None:
        self.fails, self.loads, self._run = fails, 0, None

    @property
    def run(self) -> Any:
        if self._run is None:
            self._run, self.loads = len, self.loads + 1
            if self.loads <= self.fails:
                raise MemoryError("no room for the code")
        return self._run


CASES = {
    "ours": make_case("ours"),
    "a peer in Triton": make_case("fla-chunk"),
    "a peer with a compiler of its own": make_case("flex"),
    "a model, whose loading checks it": make_model_case(),
    "large": make_case("ours", batch=2**20, length=2**10),
}


@pytest.mark.parametrize("device", ["cuda:0", "cpu"])
@pytest.mark.parametrize("name", CASES)
def test_only_small_cases_that_do_no_more_than_launch_kernels_are_called_for_nothing(
    name: str, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject = Subject()
    monkeypatch.setattr(beside, "subject_of", lambda case, device: subject)
    compile_ahead(CASES[name], device)
    called = name in ("ours", "a peer in Triton") and device == "cuda:0"
    assert subject.steps == (["context", "load", "start"] if called else [])


def test_a_large_case_of_a_peer_is_called_for_nothing_at_a_length_for_which_there_is_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its hundreds of configurations are compiled beside each other, whether or not a shorter case has been there."""
    called: list[Case] = []

    def subject_of(case: Case, device: str) -> Subject:
        called.append(case)
        return Subject()

    monkeypatch.setattr(beside, "subject_of", subject_of)
    for length, contender in ((2**17, "fla-chunk"), (2**17, "ours"), (2**12, "fla-chunk")):
        compile_ahead(make_case(contender, batch=2**8, length=length), "cuda:0")
    assert [case.contender for case in called] == ["fla-chunk", "fla-chunk"]
    assert called[0].length < 2**17
    assert called[1].length == 2**12
    assert bytes_of(called[0]) <= beside.MOST_BYTES < 2 * bytes_of(called[0])


@pytest.mark.parametrize("broken", ["subject_of", "_launches_of", "_wake_driver", "_enter", "_compile", "noted"])
@pytest.mark.parametrize("mode", ["fwd", "fwd_bwd", "decode"])
def test_whatever_fails_the_case_is_called_and_checked(broken: str, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        failed.append(broken)
        raise RuntimeError("nothing works")

    failed: list[str] = []
    monkeypatch.setattr(JITFunction, "run", Compiler())
    monkeypatch.setattr(beside, "_wake_driver", lambda: None)
    monkeypatch.setattr(beside, "_enter", lambda device: None)
    monkeypatch.setattr(beside, "subject_of", lambda case, device: Launching())
    monkeypatch.setattr(session, "compile_ahead", lambda case, device: compile_ahead(case, "cuda:0"))
    monkeypatch.setattr(beside, broken, fails)
    case, kept = make_case(mode=mode), Kept("cpu")
    measure = MeasureSection(round_ms=1)
    assert Session(case, measure, "cpu", WallClock(), kept).rehearse() == {}
    assert failed
    assert kept.ahead[case.id].verdict.reason is None
    timed = Session(case, measure, "cpu", WallClock(), kept)
    assert timed.prepare()["status"] == "ok"
    assert all(sample > 0 for sample in timed.round().samples_ms)


def test_what_the_call_for_nothing_writes_is_not_what_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    """Inputs, states and results of the dry call are its own, and gone before the real one."""
    made: list[weakref.ref[OperatorSubject]] = []

    class Spoilt(OperatorSubject):
        def start(self) -> None:
            super().start()
            for tensor in (*self.tensors.values(), *self.first.tensors.values()):
                tensor.fill_(torch.nan)
            made.append(weakref.ref(self))

    monkeypatch.setattr(beside, "subject_of", Spoilt)
    case = make_case(mode="decode")
    compile_ahead(case, "cpu:0")
    gc.collect()
    assert made[0]() is None
    subject = OperatorSubject(case, "cpu")
    subject.load()
    subject.start()
    assert subject.check().reason is None


def test_operators_of_ours_do_nothing_with_what_kernels_did_not_write() -> None:
    """No index is read from it, nothing waits for it: a GPU would stop, for good."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-W", "ignore", "-m", "tests.timing.dry_calls"]
    done = subprocess.run(
        command, env=environment, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True
    )
    assert not done.stdout


class Subject:
    grad = False

    def __init__(self) -> None:
        self.steps: list[str] = []

    def context(self) -> Any:
        self.steps.append("context")
        return nullcontext()

    def load(self) -> None:
        self.steps.append("load")

    def start(self) -> None:
        self.steps.append("start")


class Launching(Subject):
    """It launches two kernels."""

    def start(self) -> None:
        launch("forward", 8)
        launch("backward", 8)
