"""`basedbench env`: what results on this machine depend on."""

from typing import Annotated

import typer


def env(
    device: Annotated[
        str | None, typer.Option(help="The device to describe: cpu, cuda:0, ... Default: the first GPU, else the CPU.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Print the fingerprint that every result row carries: hardware, drivers, versions, environment variables."""
    import torch

    from basedbench.cli.tables import flat, print_json, print_table
    from basedbench.store import code_version, fingerprint

    found = fingerprint(device or ("cuda:0" if torch.cuda.is_available() else "cpu"))
    if as_json:
        print_json(found)
        return
    print_table("Fingerprint", ("what", "value"), flat({"code_version": code_version()} | found))


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(env)
