"""What the machine or the environment lacks is a sentence, not a traceback."""

import errno
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from basedbench.cli.surroundings import explained
from tests.cli.conftest import RunCli
from tests.cli.test_recall import SUITE


def run(*arguments: object, **environment: str) -> "subprocess.CompletedProcess[bytes]":
    command = [sys.executable, "-m", "basedbench", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, env=os.environ | environment, timeout=300, check=False)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere workers are no forks")
def test_a_library_that_cannot_be_imported(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(SUITE)
    ran = run("recall", "--sweep", "--suite", tmp_path / "s.yaml", "--out", tmp_path / "out", TORCH_LOGS="nope")
    assert ran.returncode == 2
    (line,) = ran.stderr.decode().splitlines()
    assert line.startswith("Error: torch cannot be imported: ValueError: Invalid log settings: nope, ")
    assert line.endswith("an environment variable, a limit (ulimit -v), or the installation.")


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a folder that one works in cannot be removed")
@pytest.mark.parametrize("arguments", [["env"], ["recall", "--mixer", "based", "--suite", "smoke", "--out", "/x/y"]])
def test_a_working_folder_that_is_gone(tmp_path: Path, arguments: list[str]) -> None:
    (tmp_path / "gone").mkdir()
    words = " ".join([sys.executable, "-m", "basedbench", *arguments])
    script = f"cd {tmp_path}/gone && rmdir ../gone && exec {words}"
    ran = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=False)
    assert ran.returncode == 2
    assert ran.stderr.endswith(
        "Error: the working folder cannot be entered (No such file or directory); cd to one that is there.\n"
    )
    assert "Traceback" not in ran.stderr


def test_no_folder_for_temporary_files(run_cli: RunCli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: ["/nowhere/at/all"])
    outcome = run_cli("check", "mixer", "based", "--d-model", 16)
    assert outcome.exit_code == 2
    assert "no folder for temporary files that can be written; set the variable TMPDIR" in outcome.stderr


def test_memory_that_does_not_suffice_and_what_is_nobodys_but_ours() -> None:
    for error in (MemoryError(), OSError(errno.ENOMEM, "Cannot allocate memory")):
        assert "does not suffice" in (explained(error) or "")
    assert "no thread can be started" in (explained(RuntimeError("can't start new thread")) or "")
    assert explained(FileNotFoundError(2, "No such file", "x")) is None
    assert explained(ValueError("a bug")) is None


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere names are UTF-8 whatever the locale")
@pytest.mark.parametrize("name", ["größe.yaml", "mixér.py"])
def test_a_name_that_the_locale_cannot_read(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(SUITE)
    option = "--suite" if name.endswith("yaml") else "--plugin"
    locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    ran = run("recall", "--sweep", option, tmp_path / name, "--dry-run", **locale)
    assert ran.returncode == 2
    assert b"this locale has no such letters; set LC_ALL=C.UTF-8." in ran.stderr
    assert b"Traceback" not in ran.stderr
