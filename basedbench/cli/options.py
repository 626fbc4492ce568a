"""What the options of a command are called."""

from typing import Any


def options_of(command: Any) -> set[str]:
    """The names of a typer command's options as they are typed: --out, --quiet, -q, ..."""
    return {name for parameter in command.params for name in parameter.opts}
