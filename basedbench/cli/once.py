"""An option that a command line has twice: the last one counts, as everywhere, and of the others a warning tells."""

from collections import Counter
from typing import Any

import typer
from typer.core import TyperCommand

from basedbench.errors import warn

# What may be meant to add up: several seeds, patterns, folders. The last suite, device or --out is an answer.
ADDED = ("seed", "lr", "filter", "results", "models", "precision", "contender", "against")


class Command(TyperCommand):
    """Who gives `--seed 0 --seed 1` may mean both; who adds to the options of a script means the last."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        given = [*args]
        rest = super().parse_args(ctx, args)
        _, _, order = self.make_parser(ctx).parse_args(args=given)
        times = Counter(one.name for one in order)
        for one in self.get_params(ctx):
            if one.name in ADDED and not one.multiple and times[one.name] > 1:
                value = ctx.params.get(one.name)
                warn(f"{max(one.opts, key=len)} is given {times[one.name]} times; the last counts: {value!s:.60}.")
        return rest


def heeded(app: typer.Typer) -> None:
    """Make all commands of an app, and of its groups, commands of this kind."""
    for command in app.registered_commands:
        command.cls = Command
    for group in app.registered_groups:
        if group.typer_instance is not None:
            heeded(group.typer_instance)
