"""`--help` of every command shows what its options are said to be: nothing is taken for markup and left out."""

import re
from collections.abc import Iterator
from typing import Any

import pytest
from typer.main import get_command

from basedbench.cli import app
from tests.cli.conftest import RunCli


def commands(command: Any, *path: str) -> Iterator[tuple[tuple[str, ...], Any]]:
    yield path, command
    for name, one in getattr(command, "commands", {}).items():
        yield from commands(one, *path, name)


def words(text: str) -> str:
    return " ".join(re.sub("[│╭╮╰╯─]", " ", text).split())


COMMANDS = dict(commands(get_command(app)))


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_every_option_is_told_whole(run_cli: RunCli, path: tuple[str, ...]) -> None:
    shown = words(run_cli(*path, "--help").stdout)
    for parameter in COMMANDS[path].params:
        told = getattr(parameter, "help", None)
        if told and not getattr(parameter, "hidden", False):
            assert words(told) in shown, parameter.name
