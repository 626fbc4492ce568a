"""Kernels that several processes come to: compiled by one of them."""

import multiprocessing
import os
import sys
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
from triton import knobs
from triton.runtime import _async_compile
from triton.runtime.jit import JITFunction

from basedbench import locks
from basedbench.locks import TakenError
from basedbench.timing.beside import compile_beside
from basedbench.timing.claims import Claims, claimed, claiming

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="files are locked with fcntl")
SPAWN = multiprocessing.get_context("spawn")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(knobs.cache, "dir", str(tmp_path))
    return tmp_path


def compile_slowly(connection: Connection, folder: str, keys: list[str], made: Path) -> None:
    """Another process: it has kernels in hand until it is told to go on, or dies if that is what it is told."""
    knobs.cache.dir = folder

    def compile_() -> None:
        connection.send("in hand")
        if connection.recv() == "die":
            os._exit(1)
        made.write_text("compiled")

    for key in keys:
        Claims(patient=False).submit(key, compile_, lambda kernel: None)
    connection.send("done")


class Other:
    """That process."""

    def __init__(self, folder: Path, *keys: str) -> None:
        self.made = folder / "kernel"
        self.connection, theirs = SPAWN.Pipe()
        self.process = SPAWN.Process(target=compile_slowly, args=(theirs, str(folder), list(keys), self.made))
        self.process.start()
        assert self.connection.recv() == "in hand"

    def tell(self, what: str) -> None:
        self.connection.send(what)


def test_a_kernel_in_hand_elsewhere_is_refused_and_free_when_that_process_has_it(folder: Path) -> None:
    other = Other(folder, "forward")
    with pytest.raises(TakenError), claimed("forward", patient=False):
        pass
    with claimed("backward", patient=False):
        pass
    other.tell("go on")
    assert other.connection.recv() == "done"
    with claimed("forward", patient=False):
        pass
    other.process.join()


def test_patience_waits_until_the_kernel_is_there(folder: Path) -> None:
    other = Other(folder, "forward")
    other.tell("go on")  # perhaps after the lock is asked for, perhaps before: it is there in both
    with claimed("forward", patient=True):
        assert other.made.read_text() == "compiled"
    other.process.join()


def test_what_a_process_had_in_hand_when_it_died_is_free(folder: Path) -> None:
    other = Other(folder, "forward")
    other.tell("die")
    with claimed("forward", patient=True):
        assert not other.made.exists()
    other.process.join()


def test_kernels_of_others_come_last(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And are compiled by Triton's own way then, whose mode asks for the claim."""
    other = Other(folder, "a")
    order: list[str] = []

    class Compiled:
        run = None

    def run(kernel: str, *, grid: object, warmup: bool) -> Compiled:
        def compile_() -> Compiled:
            order.append(kernel)
            if kernel == "c":
                other.tell("go on")
            return Compiled()

        mode = _async_compile.active_mode.get()
        assert mode is not None
        return mode.submit(kernel, compile_, lambda compiled: None)  # type: ignore[no-any-return]

    monkeypatch.setattr(JITFunction, "run", run)
    monkeypatch.setattr("basedbench.timing.beside.MOST_THREADS", 1)
    compile_beside(lambda: [JITFunction.run(name, grid=(1,), warmup=False) for name in "abc"], "cpu")  # type: ignore[arg-type]
    assert order == ["b", "c", "a"]
    assert other.made.read_text() == "compiled"
    other.process.join()


def test_outside_of_the_block_triton_compiles_as_ever() -> None:
    with claiming(patient=False):
        assert isinstance(_async_compile.active_mode.get(), Claims)
    assert _async_compile.active_mode.get() is None


@pytest.mark.parametrize("fault", ["no fcntl", "no folder", "no locks"])
def test_without_locks_everything_is_compiled(fault: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(37, "No locks available")

    if fault == "no fcntl":
        monkeypatch.setattr(locks, "fcntl", None)
    elif fault == "no folder":
        monkeypatch.setattr(knobs.cache, "dir", str(folder / "file" / "cache"))
        (folder / "file").write_text("not a folder")
    else:
        monkeypatch.setattr(locks.fcntl, "lockf", refuse)
    done: list[str] = []
    assert Claims(patient=False).submit("forward", lambda: "kernel", done.append) == "kernel"
    assert done == ["kernel"]
