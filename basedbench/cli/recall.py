"""`basedbench recall`: train one model, or a whole sweep, on synthetic recall."""

import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from basedbench.cli.options import options_of
from basedbench.cli.time_limit import TimeLimit
from basedbench.errors import visible
from basedbench.signals import exit_code

if TYPE_CHECKING:
    from basedbench.engines import Listener, LocalEngine
    from basedbench.engines.deadline import Deadline
    from basedbench.training.cases import RecallCase
    from basedbench.training.sweep import Plan

SLOW_S = 5.0  # of what is told that it goes on
EXTRA = {"allow_extra_args": True, "ignore_unknown_options": True}


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(context_settings=EXTRA)(recall)


def recall(
    context: typer.Context,
    sweep: Annotated[bool, typer.Option("--sweep", help="Run a whole suite instead of one model.")] = False,
    suite: Annotated[
        str | None, typer.Option(help="A suite's name or file: task and recipe. Default: quick, on a GPU figure2.")
    ] = None,
    mixer: Annotated[str | None, typer.Option(help="One model: its mixer. Its options follow as --name value.")] = None,
    d_model: Annotated[int | None, typer.Option(help="One model: its width. Default: 64.")] = None,
    layers: Annotated[str | None, typer.Option(help="One model: its layers, such as base_conv,based.")] = None,
    lr: Annotated[str | None, typer.Option(help="Learning rates, separated by commas, instead of the suite's.")] = None,
    seed: Annotated[str | None, typer.Option(help="Seeds instead of the suite's: 0,1,7 or 0-9.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Epochs, instead of the suite's.")] = None,
    precision: Annotated[
        str | None, typer.Option(help="fp32, tf32 or bf16, instead of the suite's. auto: bf16 on GPUs, fp32 on CPUs.")
    ] = None,
    filter: Annotated[str | None, typer.Option(help="Only runs whose label this regular expression finds.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:0, ...")] = "auto",
    jobs: Annotated[int | None, typer.Option(min=1, help="Runs at once on each device.")] = None,
    out: Annotated[Path, typer.Option(help="The results folder.")] = Path("results"),
    limit: Annotated[int | None, typer.Option(min=1, help="At most this many runs.")] = None,
    time_limit: TimeLimit = None,
    timeout: Annotated[str | None, typer.Option(help="End a run that takes longer, such as 30m: a row too.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List what would run, and stop.")] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Run again what has a row already.")] = False,
    retry: Annotated[
        str | None, typer.Option(help="Run rows with these statuses again, such as oom,crashed, or outdated.")
    ] = None,
    deterministic: Annotated[
        bool, typer.Option("--deterministic", help="On a GPU: the same bits in every run, attention too.")
    ] = False,
    plugin: Annotated[list[Path] | None, typer.Option(help="A Python file that registers mixers of your own.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the rows, or the plan, as JSON.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print only the end.")] = False,
) -> None:
    """Train models on multi-query associative recall and store one row per run.

    One model:    basedbench recall --mixer based --d-model 64 --feature-dim 16 --lr 1e-2

    A sweep:      basedbench recall --sweep --suite quick

    The same command again goes on where the last one stopped.
    """
    began = time.monotonic()
    from basedbench.forking import TRAINING, driver_is_there, start_server, training_forks
    from basedbench.timing.timeline import note

    note("the command begins")
    if not dry_run and training_forks(device if driver_is_there() else "cpu"):
        start_server(TRAINING)  # it imports what workers need while this process does
    from basedbench.cli import recall_input as given
    from basedbench.cli import time_limit as limits
    from basedbench.cli.in_hand import hold
    from basedbench.cli.outdated import say_outdated, say_versions
    from basedbench.config.matching import matching
    from basedbench.engines import LocalEngine, determinism, resolve_devices
    from basedbench.engines.deadline import Deadline
    from basedbench.engines.paces import fewer_at_once, pace_of_runs
    from basedbench.plugins import load_plugins
    from basedbench.store import Store, device_name
    from basedbench.store.dataset import rows
    from basedbench.streams import stdout_to_stderr
    from basedbench.training.cases import recall_cases
    from basedbench.training.sweep import borrow, kept_rows, outdated, parse_statuses, plan

    note("imported")
    root, plugins = out.absolute(), [str(file.absolute()) for file in plugin or []]  # a mixer may go elsewhere
    with stdout_to_stderr():  # the user's mixers may print
        load_plugins(plugin or [])
        devices = resolve_devices(device)
        chosen = given.choose_suite(suite, devices, lr=lr, seed=seed, epochs=epochs, precision=precision)
        chosen = given.settle_precision(chosen, devices)
        chosen = given.narrow(chosen, sweep, mixer, d_model, layers, context.args, options_of(context.command))
        cases = recall_cases(chosen)
        cases = cases if filter is None else matching(cases, filter, "runs")
    out = out if out.absolute() == root else root
    jobs = min(jobs, len(cases)) if jobs else None
    statuses, limit_s = parse_statuses(retry, fresh), limits.seconds(time_limit)
    timeout_s = limits.seconds(timeout, "--timeout")
    if dry_run:
        todo = plan(cases, root, fresh, statuses)
        with stdout_to_stderr():
            kept = kept_rows(todo, root)
            say_outdated([case.label for case in outdated(kept)], "runs")
        _show_plan(cases, todo, limit, devices, jobs, as_json)
        say_versions([row for _, row in kept], "recall", err=as_json)
        return
    if deterministic:
        determinism.ask()
    store = Store(root)
    with stdout_to_stderr():
        todo = plan(cases, root, fresh, statuses)
        say_outdated([case.label for case in outdated(kept_rows(todo, root))], "runs")
        borrow(store, todo.borrowed)
        places = given.places(devices, jobs)
        places = places if jobs else fewer_at_once(places, todo.todo, limit_s)
        known = limits.own_rows(rows(root, "recall"), device_name(devices[0])) if time_limit else []
        pace = pace_of_runs(places, cases, min(len(todo.todo), limit or len(todo.todo)), known)
        mine, rest = hold(context, out, todo.todo, lambda case: case.case_id, limit, "runs")
        late = plan(mine, root, fresh, statuses)  # another command had some in hand until just now
        borrow(store, late.borrowed)
        look = partial(_looked_at, timeout_s=timeout_s, ends=began + limit_s, quiet=quiet)
        mine = look(late.todo, plugins, plugin or [], devices[0])
        ready = len([*todo.done, *todo.borrowed, *late.done, *late.borrowed])
        deadline = Deadline(limit_s, began, pace)
        engine = partial(LocalEngine, places, str(root), plugins=plugins, deadline=deadline, timeout_s=timeout_s)
        left = _run(mine, rest, ready, engine, deadline, out, quiet, fresh)
    _show_results(cases, out, left, as_json, fresh)


def _looked_at(
    todo: "list[RecallCase]",
    plugins: list[str],
    given: list[Path],
    device: str,
    *,
    timeout_s: float,
    ends: float,
    quiet: bool,
) -> "list[RecallCase]":
    """The cases; those whose mixers, of the user's own, answer from more than their states have that in their rows."""
    if not any(case.source for case in todo):
        return todo
    from basedbench.checking.state import LIMIT_S, with_doubts
    from basedbench.cli.progress import repeated

    begun: list[str] = []  # what is looked at, the last one now

    def say() -> None:
        if begun and not quiet:
            typer.echo(f"Looking at {visible(begun[-1])} first: does it answer from its state alone?", err=True)
            begun.clear()  # once for each

    limit_s, all_s = min(LIMIT_S, max(1.0, timeout_s)), ends - time.monotonic()
    with repeated(say, SLOW_S):
        cases, sentences = with_doubts(
            *(todo, plugins, [str(file) for file in given], device, limit_s, all_s),
            begins=lambda subject: begun.append(f"{subject.name} (d_model {subject.d_model}, at most {limit_s:g} s)"),
        )
    for sentence in sentences:
        typer.echo(visible(sentence), err=True)
    return cases


def _show_plan(
    cases: "list[RecallCase]", plan: "Plan", limit: int | None, devices: list[str], jobs: int | None, as_json: bool
) -> None:
    from basedbench.cli import recall_report as report

    if as_json:
        report.plan_json(cases, plan, limit)
    else:
        report.plan_table(cases, plan, limit, devices, jobs)


def _show_results(cases: "list[RecallCase]", out: Path, left: int, as_json: bool, fresh: bool) -> None:
    from basedbench.cli import recall_report as report

    if as_json:
        report.results_json(cases, out)
    else:
        report.results_table(cases, out, left, fresh)


def _run(
    todo: "list[RecallCase]",
    rest: "list[RecallCase]",
    ready: int,
    engine: "Callable[[Listener], LocalEngine]",
    deadline: "Deadline[RecallCase]",
    out: Path,
    quiet: bool,
    fresh: bool,
) -> int:
    """Run what is to be done, beside what is `ready`; returns how many runs `--limit` leaves, which are the `rest`."""
    from basedbench.cli.progress import watch
    from basedbench.cli.time_limit import goes_on, say_left
    from basedbench.engines.deadline import TimeUp

    running: LocalEngine | None = None
    try:
        with watch(todo, ready, quiet) as listener:
            running = engine(listener)
            with suppress(TimeUp), deadline.kept():
                running.run(todo)
    except KeyboardInterrupt as stop:
        force = ", some processes only by force" if running and running.killed else ""
        kept = f"Finished runs are in {out / 'recall'}; the same command again {goes_on(fresh)}."
        typer.echo(f"\nStopped{force}. {kept}", err=True)
        raise typer.Exit(exit_code(stop)) from None
    assert running is not None
    at_once = sum(place.slots for place in running.places)
    late = say_left(deadline, todo, running.left, running.under_way, rest, at_once=at_once, what="runs", fresh=fresh)
    return 0 if late else len(rest)
