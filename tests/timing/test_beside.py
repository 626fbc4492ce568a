"""Kernels of a call compiled beside each other: all that it would launch, and nothing is launched."""

import threading
from contextlib import nullcontext
from typing import Any

import pytest
from triton.runtime.jit import JITFunction

from basedbench.timing.beside import compile_ahead, compile_beside
from tests.timing.conftest import make_case


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


def test_one_kernel_is_left_to_its_call(monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = Compiler()
    monkeypatch.setattr(JITFunction, "run", compiler)
    compile_beside(lambda: launch("forward", 8), "cpu")
    assert not compiler.asked


@pytest.mark.parametrize(("contender", "device"), [("ours", "cuda:0"), ("ours", "cpu"), ("fla-chunk", "cuda:0")])
def test_only_kernels_of_ours_are_called_for_nothing(contender: str, device: str) -> None:
    """What tunes would time nothing, and keep that."""
    subject = Subject()
    compile_ahead(subject, make_case(contender), device)  # type: ignore[arg-type]
    assert subject.steps == (["context", "load", "start"] if (contender, device) == ("ours", "cuda:0") else [])


class Subject:
    def __init__(self) -> None:
        self.steps: list[str] = []

    def context(self) -> Any:
        self.steps.append("context")
        return nullcontext()

    def load(self) -> None:
        self.steps.append("load")

    def start(self) -> None:
        self.steps.append("start")
