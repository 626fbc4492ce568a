"""`basedbench throughput`: time kernels, their peers and whole models, check them first, store one row each."""

import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from basedbench.cli.time_limit import TimeLimit
from basedbench.signals import exit_code

if TYPE_CHECKING:
    from collections.abc import Collection

    from basedbench.config.throughput import AnyCase
    from basedbench.store import Store
    from basedbench.timing.worker import Workers

CEILING_SECONDS, CEILING_SECONDS_ON_A_CPU = 0.15, 0.5  # for each


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(throughput)


def throughput(
    context: typer.Context,
    suite: Annotated[
        str | None, typer.Option(help="A suite's name or file. Default: quick-throughput; on a GPU kernels.")
    ] = None,
    models: Annotated[
        str | None, typer.Option(help="Time the decode step of this recall suite's models instead of operators.")
    ] = None,
    batch: Annotated[
        int | None, typer.Option(min=1, help="With --models: sequences decoded at once. Default: 64.")
    ] = None,
    filter: Annotated[str | None, typer.Option(help="Only cases whose label this regular expression finds.")] = None,
    contender: Annotated[
        list[str] | None, typer.Option(help="Only these, in the suite or not; may be repeated.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:0, ...")] = "auto",
    mode: Annotated[str | None, typer.Option(help="Only fwd, fwd_bwd, decode, generation or prefill.")] = None,
    out: Annotated[Path, typer.Option(help="The results folder.")] = Path("results"),
    limit: Annotated[int | None, typer.Option(min=1, help="At most this many cases.")] = None,
    time_limit: TimeLimit = None,
    rounds: Annotated[
        int | None, typer.Option(min=3, help="At least so many rounds a case, whatever the suite's limits.")
    ] = None,
    cross_check: Annotated[
        bool, typer.Option("--cross-check", help="On a GPU: also store what do_bench and the profiler say.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List what would run, and stop.")] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Time again what has a row already.")] = False,
    retry: Annotated[
        str | None, typer.Option(help="Time rows with these statuses again, such as oom,crashed, or outdated.")
    ] = None,
    plugin: Annotated[list[Path] | None, typer.Option(help="A Python file of your own contenders or mixers.")] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="A whole model's weights: a local file or folder as released. Random without.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the rows as JSON.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print only the end.")] = False,
) -> None:
    """Time kernels, their peers and whole models on this machine and store one row per case.

    Every contender is checked against the reference before it is timed, and every model's steps against its parallel
    form. The same command again goes on where the last one stopped; --models begins anew, for its models take turns.
    """
    began = time.monotonic()
    from basedbench.forking import TIMING, driver_is_there, start_server
    from basedbench.timing.timeline import note

    note("the command begins")
    if not dry_run and (models is not None or (device != "cpu" and driver_is_there())):
        start_server(TIMING)  # it imports what workers need while this process does
    from basedbench.cli import throughput_report as report
    from basedbench.cli import time_limit as limits
    from basedbench.cli.decode import SEQUENCES, check_plugins, refuse_with_models, time_models
    from basedbench.cli.in_hand import hold
    from basedbench.cli.outdated import say_outdated
    from basedbench.config import load_suite
    from basedbench.config.section import MOST
    from basedbench.engines import resolve_devices
    from basedbench.engines.deadline import Deadline, TimeUp, unlimited
    from basedbench.engines.devices import check_threads
    from basedbench.engines.paces import pace_of_cases
    from basedbench.errors import UserError
    from basedbench.plugins import load_plugins
    from basedbench.store import Store
    from basedbench.streams import stdout_to_stderr
    from basedbench.timing.ceilings import fractions_of
    from basedbench.timing.choose import choose, outdated, pending, with_checkpoint
    from basedbench.timing.sweep import Sweep
    from basedbench.training.sweep import OUTDATED, parse_statuses

    note("imported")
    own = load_plugins(plugin or [])
    check_plugins(plugin or [], models is not None)
    if models is not None:
        foreign = {"--suite": suite, "--contender": contender, "--mode": mode, "--limit": limit, "--retry": retry}
        refuse_with_models(foreign | {"--cross-check": cross_check, "--checkpoint": checkpoint})
        if batch is not None and batch > MOST:
            raise UserError(f"--batch takes whole numbers from 1 to {MOST}, got {batch}.")
        deadline = Deadline(limits.seconds(time_limit), began, unlimited().pace)
        place, files = resolve_devices(device)[0], [str(path) for path in plugin or []]
        time_models(
            context, models, place, batch or SEQUENCES, rounds or 15, filter, out, as_json, dry_run, deadline, files
        )
        return
    if batch is not None:
        raise UserError("--batch goes with --models alone: a suite's cases say their batch; choose some with --filter.")
    place = resolve_devices(device)[0]
    kind = place.partition(":")[0]
    if cross_check and kind == "cpu":
        raise UserError("--cross-check asks tools that time GPUs; leave it out on a CPU.")
    if kind != "cpu" and not dry_run:  # on a CPU it would take turns with what measures the ceilings
        start_server(TIMING)
    chosen = load_suite(("quick-throughput" if kind == "cpu" else "kernels") if suite is None else suite, "throughput")
    if kind == "cpu":
        check_threads(chosen.measure.threads)
    cases = choose(chosen, kind, plugins=own, contenders=contender or [], mode=mode, pattern=filter)
    if checkpoint is not None:
        cases = with_checkpoint(cases, checkpoint)
    rows, limit_s = report.stored(out, chosen.name), limits.seconds(time_limit)
    statuses = parse_statuses(retry, fresh)
    with stdout_to_stderr():  # the user's contenders say their versions
        old = outdated(cases, rows, own)
    left_of = partial(pending, fresh=fresh, retry=statuses, again=old if OUTDATED in statuses else ())
    due = left_of(cases, rows)
    due_ids = {case.id for case in due}
    say_outdated([case.label for case in old if case.id not in due_ids], "cases")
    if dry_run:
        report.plan(cases, due[:limit], as_json)
        return
    measure = chosen.measure if rounds is None else chosen.measure.at_least(rounds)
    measure = measure.model_copy(update={"cross_check": cross_check or measure.cross_check})
    store = Store(out)
    todo, rest = hold(context, out, due, lambda case: f"{chosen.name} {case.id}", limit, "cases")
    todo = left_of(todo, report.stored(out, chosen.name))  # another command had some in hand until just now
    try:
        sweep = Sweep(chosen.name, store, place, measure, [str(path) for path in plugin or []])
        known = limits.own_rows(rows, sweep.origin["device_name"]) if time_limit else []
        sweep.deadline = Deadline(limit_s, began, pace_of_cases(measure, cases, known))
        if kind == "cpu":
            sweep.ceilings = _ceilings(store, place, measure.threads, quiet) if todo else {}
        else:
            common = store, place, quiet, fractions_of(todo)
            sweep.find_ceilings = partial(_ceilings_by_a_worker, *common, origin=sweep.origin)
        sweep.on_rehearsal = partial(report.rehearsal, quiet=quiet)
        note("the suite is read")
        progress = report.Progress(len(todo), len(cases), began, quiet)
        with suppress(TimeUp), sweep.deadline.kept():
            sweep.run(todo, progress)
        progress.close(sweep.spent, sweep.called)
        late = limits.say_left(sweep.deadline, todo, sweep.left, sweep.under_way, rest, what="cases", fresh=fresh)
    except KeyboardInterrupt as stop:
        again = f"the same command again {limits.goes_on(fresh)}"
        typer.echo(f"\nStopped. Rows are in {out / 'throughput'}; {again}.", err=True)
        raise typer.Exit(exit_code(stop)) from None
    report.results(cases, report.stored(out, chosen.name), out, as_json, left=0 if late else len(rest), fresh=fresh)


def _ceilings(store: "Store", device: str, threads: int | None, quiet: bool) -> dict[str, float]:
    """This machine's ceilings; those that the folder lacks are measured first."""
    from basedbench.timing.ceilings import calibrate, rates_of, stored_ceilings

    found = stored_ceilings(store.root, device, threads)
    missing = [name for name in rates_of(device) if name not in found]
    if not missing:
        return found
    _announce(quiet)
    for row in calibrate(device, CEILING_SECONDS_ON_A_CPU, threads, missing if found else ()):
        store.write("calibration", row)
    return stored_ceilings(store.root, device, threads)


def _ceilings_by_a_worker(
    store: "Store",
    device: str,
    quiet: bool,
    names: "Collection[str]",
    workers: "Workers",
    case: "AnyCase",
    origin: dict[str, Any] | None = None,
) -> dict[str, float]:
    """Those of these names on a GPU, by the worker of a case: it is up; this process needs no context of its own."""
    from basedbench.timing.ceilings import stored_ceilings
    from basedbench.timing.worker import CeilingsRequest, Failure

    found = stored_ceilings(store.root, device)
    missing = tuple(name for name in names if name not in found)
    if not missing:
        return found
    _announce(quiet)
    answer = workers.of(case).ceilings(CeilingsRequest(CEILING_SECONDS, missing, origin))
    if isinstance(answer, Failure):
        workers.discard(case)  # the cases go without fractions of these ceilings
        return found
    for row in answer:
        store.write("calibration", row)
    return stored_ceilings(store.root, device)


def _announce(quiet: bool) -> None:
    if not quiet:
        typer.echo("measuring this machine's ceilings first (`basedbench calibrate` does it with more care)", err=True)
