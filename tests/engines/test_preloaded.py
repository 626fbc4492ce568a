"""What the processes of a sweep find imported, and what they are told of the command that starts them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from basedbench import forking

ROOT = Path(__file__).parents[2]


def test_a_process_that_trains_has_nothing_left_to_import_on_a_machine_with_a_gpu() -> None:
    """Neither to begin with nor for its first steps; and torch's compiler is nobody's.

    Nor does a rehearsal of any mixer do anything with what kernels did not write: no index is read from it, nothing
    waits for it. A GPU would stop, and compile nothing more.
    """
    code = """
import subprocess, sys
import torch
from basedbench import forking
forking.driver_is_there = lambda: True
subprocess.run = lambda *arguments, **options: None  # the driver's module
from basedbench.engines import preloaded
there = set(sys.modules)
from tests.training import dry_rehearsal
torch.use_deterministic_algorithms = lambda *arguments, **options: None  # that needs the compiler's settings
chosen = list(dry_rehearsal.cases())
loaded = set(sys.modules)
dry_rehearsal.cases = lambda: chosen
dry_rehearsal.main()
late = {one for one in set(sys.modules) - loaded if one.partition(".")[0] in ("torch", "pandas", "basedbench", "sympy")}
assert not late, late
assert "torch._dynamo" not in sys.modules
assert "basedbench.training.run" in there and "basedbench.engines.worker" in there
"""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True)
    assert not done.stdout


@pytest.mark.skipif("forkserver" not in forking.get_all_start_methods(), reason="no processes are forked here")
def test_a_forked_process_has_the_environment_of_the_command_as_it_is_now(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(forking, "driver_is_there", lambda: True)
    monkeypatch.setenv("BASEDBENCH_GONE", "1")
    seen = []
    for changed in ({"BASEDBENCH_NEW": "2"}, {"BASEDBENCH_NEW": "3"}):
        monkeypatch.setenv("BASEDBENCH_NEW", changed["BASEDBENCH_NEW"])
        process = forking.start_training("cuda:0", write_environment, (str(tmp_path / "seen"),))
        process.join()
        seen.append((tmp_path / "seen").read_text())
        monkeypatch.delenv("BASEDBENCH_GONE", raising=False)
    assert seen == ["1 2", "None 3"]


def write_environment(path: str) -> None:
    Path(path).write_text(f"{os.environ.get('BASEDBENCH_GONE')} {os.environ.get('BASEDBENCH_NEW')}")


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere it is a program of its own")
def test_a_process_that_trains_on_a_cpu_is_forked_with_all_imports_done(tmp_path: Path) -> None:
    code = f"""
from basedbench import forking
from tests.engines.test_preloaded import write_whether_loaded
forking.start_training("cpu", write_whether_loaded, ({str(tmp_path / "seen")!r},)).join()
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
    assert (tmp_path / "seen").read_text() == "True"


def write_whether_loaded(path: str) -> None:
    Path(path).write_text(str("basedbench.training.run" in sys.modules))
