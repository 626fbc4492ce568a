"""What is said on stderr ends no command, whatever became of stderr; a closed stream has its number taken."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import sys
from basedbench.cli import output
from basedbench.streams import stderr_never_fails, stdout_to_stderr

stderr_never_fails()
output.guard()
with stdout_to_stderr():
    print("x" * 100_000)
print("x" * 100_000, file=sys.stderr, flush=True)
with open(sys.argv[1], "w") as file:
    assert file.fileno() > 2
    file.write("done")
"""


@pytest.mark.parametrize("fate", ["full", "closed", "unread"])
def test_a_command_goes_on_without_stderr(tmp_path: Path, fate: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(tmp_path / "out")],
        stdout=subprocess.DEVNULL,
        stderr=writer if fate == "unread" else os.open("/dev/full", os.O_WRONLY),
        preexec_fn=(lambda: os.close(2)) if fate == "closed" else None,
    )
    os.close(writer)
    assert process.wait(timeout=60) == 0
    assert (tmp_path / "out").read_text() == "done"


def test_a_command_goes_on_without_stdout(tmp_path: Path) -> None:
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "out")]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, preexec_fn=lambda: os.close(1), timeout=60)
    assert (done.returncode, (tmp_path / "out").read_text()) == (0, "done")
