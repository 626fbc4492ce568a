"""`basedbench throughput --models SUITE`: the decode step of every model of a recall suite."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

import typer

from basedbench.errors import UserError
from basedbench.signals import exit_code

if TYPE_CHECKING:
    from basedbench.engines.deadline import Deadline
    from basedbench.timing.decode_session import Decoder
    from basedbench.training.cases import RecallCase

Row = Mapping[str, Any]
SEQUENCES = 64  # decoded at once


def refuse_with_models(options: Mapping[str, object]) -> None:
    """UserError if one of these was given: all models take turns, each time anew, and no other contender is there."""
    for name, value in options.items():
        if value:
            raise UserError(f"{name} does not go with --models; choose models with --filter, or leave {name} out.")


def check_plugins(files: Sequence[Path], models: bool) -> None:
    """UserError if what the user's files register is nothing that would be timed."""
    from basedbench.plugins import load_plugin

    found = [load_plugin(file) for file in files]
    if found and models and not any(one.mixers for one in found):
        raise UserError("--plugin: no mixer is registered, and contenders are timed without --models; leave one out.")
    if found and not models and not any(one.contenders for one in found):
        raise UserError("--plugin: only mixers are registered; their decode steps are timed with --models SUITE.")


def time_models(
    context: typer.Context,
    name: str,
    device: str,
    batch: int,
    rounds: int,
    pattern: str | None,
    out: Path,
    as_json: bool,
    dry_run: bool,
    deadline: "Deadline[Any]",
    plugins: Sequence[str],
) -> None:
    """Time, store a row each, and print a table; with `dry_run` only say which models."""
    from basedbench.cli.in_hand import hold
    from basedbench.config import load_suite
    from basedbench.config.matching import matching
    from basedbench.engines.deadline import TimeUp
    from basedbench.store import Store, code_version, device_name, fingerprint
    from basedbench.streams import stdout_to_stderr
    from basedbench.timing.decode import decode_rows
    from basedbench.training.cases import recall_cases

    with stdout_to_stderr():  # the user's mixers may print where they look at options
        runs = recall_cases(load_suite(name, "recall"))
        runs = runs if pattern is None else matching(runs, pattern, "runs")
    if dry_run:
        _plan(list(_models(runs)), as_json)
        return
    store, stop = Store(out), None
    with stdout_to_stderr():
        decoders = _decoders(runs)
    mine, _ = hold(context, out, list(decoders.items()), lambda one: f"{one[1].name} {one[1].config}", None, "models")
    decoders = dict(mine)
    origin = {
        "code_version": code_version(),
        "device_name": device_name(device),
        "fingerprint": fingerprint(device),
    }
    rows: dict[str, Row] = {}
    labels = {(one.name, one.config): label for label, one in decoders.items()}
    try:
        for row in decode_rows(list(decoders.values()), runs[0].suite, device, batch, rounds, deadline, plugins):
            store.write("throughput", row | origin)
            rows[labels[row["model"], row["config"]]] = row | origin
    except KeyboardInterrupt as interrupt:
        stop = interrupt
    _report(rows, as_json, f"batch {batch}, behind {runs[0].longest} tokens, fp32 on {device}", out)
    if stop is not None:
        _say_lost([label for label in decoders if label not in rows], len(decoders), stop)
    if stop is not None and not isinstance(stop, TimeUp):
        raise typer.Exit(exit_code(stop))


def _models(runs: "Sequence[RecallCase]") -> "dict[str, RecallCase]":
    """A run of every model, by its label."""
    from basedbench.cli.recall_report import by_model

    return {label: own[0] for label, own in by_model(runs).items()}


def _decoders(runs: "Sequence[RecallCase]") -> "dict[str, Decoder]":
    from basedbench.analysis.decoding import decoded_name
    from basedbench.timing.decode_session import Decoder
    from basedbench.training.run import build_model

    def decoder(case: "RecallCase") -> Decoder:
        name = decoded_name(case.layer_mixers, case.d_model, case.layer_options)
        build = partial(build_model, case)
        return Decoder(name, case.config_json, build, case.longest, case.task.vocab_size, case.source)

    return {label: decoder(case) for label, case in _models(runs).items()}


def _report(rows: Mapping[str, Row], as_json: bool, what: str, out: Path) -> None:
    from basedbench.cli.tables import print_json, print_table
    from basedbench.store.schema import decode_json

    if as_json:
        print_json([decode_json(row) for row in rows.values()])
        return
    if not rows:
        return
    table = [(label, _state(row), row["status"], row["median_ms"], row["tokens_per_s"]) for label, row in rows.items()]
    print_table(f"Decode step, {what}", ("model", "state", "status", "median ms", "tokens/s"), table, whole=("model",))
    for label, row in rows.items():
        if row["status"] != "ok":
            typer.echo(f"{label}: {row['status']}: {row['reason']}")
    typer.echo(f"Rows: {out / 'throughput'}. Next: basedbench plot tradeoff --results {quote(str(out))}")


def _say_lost(lost: Sequence[str], count: int, stop: KeyboardInterrupt) -> None:
    """What the end before the last round has cost."""
    from basedbench.cli.tables import print_note
    from basedbench.engines.deadline import TimeUp
    from basedbench.timing.decode import FEWEST_ROUNDS

    when = "The time is up" if isinstance(stop, TimeUp) else "Stopped"
    kept = f"{count - len(lost)} of {count} models have a row of the rounds so far"
    typer.echo(f"\n{when}: {kept}; the same command begins anew.", err=True)
    if lost:
        print_note(f"Lost, with fewer than {FEWEST_ROUNDS} rounds: {', '.join(lost)}", err=True)


def _state(row: Row) -> str | None:
    from basedbench.plots.scales import quantity

    return None if row["state_bytes"] is None else quantity(row["state_bytes"], "bytes")


def _plan(labels: list[str], as_json: bool) -> None:
    from basedbench.cli.tables import print_json

    if as_json:
        print_json([{"model": label} for label in labels])
        return
    typer.echo("\n".join(labels))
    typer.echo(f"{len(labels)} models would be timed. Nothing was run.")
