"""Where output cannot be printed: said in a sentence, with a code that a script sees."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

FULL = Path("/dev/full")


@pytest.mark.skipif(not FULL.exists(), reason="needs /dev/full")
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("arguments", [["--version"], ["results", "--help"], ["results", "table", "kernels"]])
def test_a_full_disk_is_a_sentence_and_no_success(arguments, unbuffered, tmp_path):
    environment = os.environ | {"PYTHONUNBUFFERED": unbuffered}
    command = [sys.executable, "-m", "basedbench", *arguments]
    with FULL.open("w") as out:
        ran = subprocess.run(
            command, stdout=out, stderr=subprocess.PIPE, text=True, env=environment, cwd=tmp_path, check=False
        )
    assert ran.returncode == 2
    assert ran.stderr == "Error: the output cannot be written: the disk is full.\n"


@pytest.mark.parametrize("arguments", [["list", "suites"], ["results", "--help"], ["recall", "--suite", "smoke"]])
def test_a_reader_that_has_enough_is_no_verdict(arguments, tmp_path):
    """Exit code 1 would be that of a regression, or of a sweep all of whose runs failed."""
    reading, writing = os.pipe()
    os.close(reading)
    arguments = [*arguments, *(["--sweep", "--dry-run", "--out", str(tmp_path)] if "recall" in arguments else [])]
    command = [sys.executable, "-m", "basedbench", *arguments]
    ran = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    assert (ran.returncode, ran.stderr) == (141, "")


def test_letters_that_the_encoding_lacks_are_escaped(tmp_path):
    environment = os.environ | {"PYTHONIOENCODING": "latin-1"}
    code = "import sys; from basedbench.cli import output; output.guard(); print('\u00b1 \u2264')"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, env=environment, check=True)
    assert ran.stdout == b"\xb1 \\u2264\n"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "the disk is full"),
        (EOFError("unexpected EOF"), "a process that this command had started was ended from outside"),
    ],
)
def test_a_full_disk_and_a_lost_process_are_a_sentence_wherever_it_is(run_cli, monkeypatch, error, said):
    """A temporary file, a cache; the server that workers are forked from."""

    def full(*_arguments, **_options):
        raise error

    monkeypatch.setattr("basedbench.store.fingerprint", full)
    outcome = run_cli("env")
    assert outcome.exit_code == 2
    assert outcome.stderr.startswith(f"Error: {said}. Rows stored before are safe")
