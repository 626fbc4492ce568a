"""The command line run in this process: `outcome = run_cli("list", "mixers")` has exit_code, stdout and stderr."""

from collections.abc import Callable
from typing import Any

import pytest
from typer.testing import CliRunner

from basedbench.cli import app

RunCli = Callable[..., Any]


@pytest.fixture
def run_cli() -> RunCli:
    """Runs a command as `basedbench` would; an exception that it would not have handled is raised here."""

    def run(*arguments: object) -> Any:
        outcome = CliRunner().invoke(app, [str(argument) for argument in arguments])
        if outcome.exception and not isinstance(outcome.exception, SystemExit):
            raise outcome.exception
        return outcome

    return run
