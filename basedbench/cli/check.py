"""`basedbench check`: is it right? The kernels on this machine against float64; a mixer against its contract."""

from pathlib import Path
from typing import Annotated

import typer

from basedbench.signals import exit_code

_JSON = Annotated[bool, typer.Option("--json", help="Print JSON.")]
_QUIET = Annotated[bool, typer.Option("--quiet", "-q", help="Print only what is wrong, and the end.")]

group = typer.Typer(invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})


@group.callback()
def kernels(
    context: typer.Context,
    filter: Annotated[str | None, typer.Option(help="Only problems whose label this regular expression finds.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:0, ...")] = "auto",
    plugin: Annotated[
        list[Path] | None, typer.Option(help="A Python file that registers contenders: they are checked instead.")
    ] = None,
    jobs: Annotated[
        int | None,
        typer.Option(min=1, help="Worker processes. Default: cores, at most 8; on a GPU cores - 2, at most 12."),
    ] = None,
    as_json: _JSON = False,
    quiet: _QUIET = False,
) -> None:
    """Check every kernel on this machine against float64; exit code 1 if one is wrong.

    Outputs, gradients of every input, and decode steps with their states, over dtypes, lengths, widths and options. An
    error may be twice that of the PyTorch reference in the same dtype, plus a floor.

    basedbench check mixer NAME runs the contract of a sequence mixer.
    """
    if context.invoked_subcommand:
        return
    from basedbench.checking.contender import contender_problems
    from basedbench.checking.problems import problems
    from basedbench.checking.run import FAILURES, run_checks
    from basedbench.cli import check_report as report
    from basedbench.config.matching import matching
    from basedbench.engines import cores, resolve_devices
    from basedbench.engines.compile_ahead import most_processes
    from basedbench.plugins import load_plugins

    place = resolve_devices(device)[0]
    own = load_plugins(plugin or [])
    chosen = contender_problems(own) if own else problems(place.partition(":")[0])
    chosen = chosen if filter is None else matching(chosen, filter, "problems")
    listener = report.Progress(len(chosen), silent=quiet or as_json)
    usual = min(8, cores()) if place == "cpu" else max(1, most_processes(place, cores()))
    try:
        rows = run_checks(chosen, place, [str(path) for path in plugin or []], jobs or usual, listener)
    except KeyboardInterrupt as stop:
        report.kernels(listener.rows, place, as_json=as_json, quiet=quiet)
        report.stopped(len(listener.rows), len(chosen), "problems")
        raise typer.Exit(exit_code(stop)) from None
    report.kernels(rows, place, as_json=as_json, quiet=quiet)
    if any(row["verdict"] in FAILURES for row in rows):
        raise typer.Exit(1)


@group.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def mixer(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="A registered mixer. Its options follow as --name value.")],
    plugin: Annotated[list[Path] | None, typer.Option(help="A Python file that registers it.")] = None,
    d_model: Annotated[int, typer.Option(min=1, help="Its width.")] = 24,
    as_json: _JSON = False,
    quiet: _QUIET = False,
) -> None:
    """Run the contract's laws over a sequence mixer, on the CPU; exit code 1 if it breaks one.

    basedbench check mixer mine --plugin mine.py --d-model 32 --feature-dim 8
    """
    from basedbench.forking import TIMING, start_server

    start_server(TIMING)  # it imports what the worker needs while this process does
    from basedbench.checking.laws import LAWS, STATED, Law
    from basedbench.checking.mixer import examine
    from basedbench.checking.subject import Breach, Subject, stated_formula
    from basedbench.cli import check_report as report
    from basedbench.cli.recall_input import given_options
    from basedbench.mixers import check_options
    from basedbench.plugins import load_plugins
    from basedbench.streams import stdout_to_stderr

    load_plugins(plugin or [])
    options = given_options(context.args)
    with stdout_to_stderr():  # the mixer may print
        check_options(name, d_model, options)
    found, stop = dict[Law, list[Breach]](), None
    try:
        for law, breaches in examine(Subject(name, d_model, options), [str(path) for path in plugin or []]):
            found[law] = breaches
    except KeyboardInterrupt as interrupt:
        stop = interrupt
    unstated = STATED if stated_formula(name) is None else None
    report.laws(name, LAWS, found, unstated=unstated, as_json=as_json, quiet=quiet)
    if stop is not None:
        report.stopped(len(found), len(LAWS), "laws")
        raise typer.Exit(exit_code(stop))
    if any(found.values()):
        raise typer.Exit(1)


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.add_typer(group, name="check")
