"""The command line run in this process: `outcome = run_cli("list", "mixers")` has exit_code, stdout and stderr."""

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from basedbench.cli import app
from basedbench.store import compact

RunCli = Callable[..., Any]


def heeds() -> None:
    """Called in a child before it starts a command that is to be interrupted: what a shell starts in the background,
    these tests perhaps, ignores Ctrl-C, and behind nohup SIGHUP, and so do its children."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


@pytest.fixture
def run_cli() -> RunCli:
    """Runs a command as `basedbench` would; an exception that it would not have handled is raised here."""

    def run(*arguments: object) -> Any:
        outcome = CliRunner().invoke(app, [str(argument) for argument in arguments])
        if outcome.exception and not isinstance(outcome.exception, SystemExit):
            raise outcome.exception
        return outcome

    return run


@pytest.fixture
def out(tmp_path: Path, calibrated: bytes) -> Path:
    """A results folder with this machine's ceilings in it."""
    folder = tmp_path / "results" / "calibration"
    folder.mkdir(parents=True)
    (folder / "all.parquet").write_bytes(calibrated)
    return folder.parent


@pytest.fixture(scope="session")
def calibrated(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("calibrated")
    command = ["calibrate", "--device", "cpu", "--seconds", "0.01", "--threads", "1", "--out", str(folder)]
    assert CliRunner().invoke(app, command).exit_code == 0
    compact(folder, "calibration")
    return next((folder / "calibration").glob("*.parquet")).read_bytes()
