"""Ctrl-C, SIGTERM and SIGHUP: what raises, what does not, and which processes end with which."""

import importlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from basedbench import forking, signals
from tests.cli.conftest import heeds


@pytest.fixture(autouse=True)
def heeded(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    monkeypatch.setattr(signals, "_raised_at", -signals.AGAIN_S)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    signals.heed_signals()
    with signals.within_a_command():
        yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_second_signal_at_once_is_the_same_wish(number: int, code: int) -> None:
    with pytest.raises(KeyboardInterrupt) as caught:
        signal.raise_signal(number)
    assert signals.exit_code(caught.value) == code
    signal.raise_signal(number)  # raises nothing: what the first one stopped is being put in order


def test_during_an_import_nothing_is_raised_that_could_be_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "stopped_meanwhile.py").write_text("import signal\nsignal.raise_signal(signal.SIGTERM)\n")
    monkeypatch.syspath_prepend(tmp_path)
    ended: list[int] = []
    monkeypatch.setattr(signals, "_end_at_once", ended.append)
    with pytest.raises(signals.Terminated):  # with nothing that ends the process it goes on
        importlib.import_module("stopped_meanwhile")
    assert ended == [signal.SIGTERM]


SCRIPT = """
import signal
from basedbench import cli, signals

cli.app = lambda: signal.raise_signal({number})  # as while options are read, outside of any command
cli.main()
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_outside_of_a_command_there_is_nothing_to_put_in_order(number: int, code: int) -> None:
    script = SCRIPT.format(number=int(number))
    done = subprocess.run([sys.executable, "-c", script], stderr=subprocess.PIPE, text=True, preexec_fn=heeds)
    assert (done.returncode, done.stderr) == (code, "\nStopped.\n")


LEFT = """
import signal
from multiprocessing import util
from basedbench import cli, signals

named = util.get_temp_dir() + "-named"
signals.temporary_files.add(named)
print(util.get_temp_dir(), named)
for name in (util.get_temp_dir() + "/listener", named):
    open(name, "w").close()
cli.app = lambda: signal.raise_signal(signal.SIGTERM)
cli.main()
"""


def test_what_ends_at_once_leaves_nothing_temporary() -> None:
    done = subprocess.run([sys.executable, "-c", LEFT], capture_output=True, text=True, preexec_fn=heeds)
    assert done.returncode == 143
    assert len(done.stdout.split()) == 2
    assert not any(Path(name).exists() for name in done.stdout.split())


FORKED = """
import os, signal, sys
from multiprocessing import util
from basedbench import signals

signals.heed_signals()
folder = util.get_temp_dir()
if (child := os.fork()) == 0:
    signal.raise_signal(signal.SIGTERM)
_, status = os.waitpid(child, 0)
print(os.waitstatus_to_exitcode(status), os.path.isdir(folder))
"""


def test_a_forked_child_leaves_its_parent_the_temporary_folder() -> None:
    done = subprocess.run([sys.executable, "-c", FORKED], capture_output=True, text=True, preexec_fn=heeds)
    assert (done.returncode, done.stdout) == (0, "143 True\n")


def _ignores(ready: Connection) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    ready.send(True)
    time.sleep(600)


def _heeds(ready: Connection) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    ready.send(True)
    time.sleep(600)


def test_what_ignores_sigterm_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forking, "GRACE_S", 0.3)
    processes = []
    for target in (_ignores, _heeds):
        ours, theirs = get_context("fork").Pipe()
        processes.append(get_context("fork").Process(target=target, args=(theirs,)))
        processes[-1].start()
        assert ours.recv()
    assert forking.end(processes) == 1
    assert [process.exitcode for process in processes] == [-signal.SIGKILL, -signal.SIGTERM]


PARENT = """
import os, time
from multiprocessing import get_context
from basedbench.forking import end_with_parent

def hangs(connection):
    end_with_parent()
    connection.send(os.getpid())
    while True:
        pass

if __name__ == "__main__":
    ours, theirs = get_context("forkserver").Pipe()
    get_context("forkserver").Process(target=hangs, args=(theirs,)).start()
    print(ours.recv(), flush=True)
    time.sleep(600)
"""


def test_a_process_ends_when_the_one_that_asked_for_it_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    parent = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    limit = time.monotonic() + 30
    while Path(f"/proc/{child}").exists() and time.monotonic() < limit:
        time.sleep(0.05)
    if Path(f"/proc/{child}").exists():
        os.kill(child, signal.SIGKILL)
        pytest.fail("it went on")
