"""`basedbench throughput --models SUITE`: the decode step of every model of a recall suite."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typer

from basedbench.errors import UserError


def refuse_with_models(options: Mapping[str, object]) -> None:
    """UserError if one of these was given: all models take turns, each time anew, and no other contender is there."""
    for name, value in options.items():
        if value:
            raise UserError(f"{name} does not go with --models; choose models with --filter, or leave {name} out.")


def time_models(
    name: str, device: str, batch: int, rounds: int, pattern: str | None, out: Path, as_json: bool, dry_run: bool
) -> None:
    """Time, store a row each, and print a table; with `dry_run` only say which models."""
    from basedbench.analysis.decoding import decoded_name
    from basedbench.cli.recall_report import built, by_model
    from basedbench.cli.tables import print_json, print_table
    from basedbench.config import load_suite
    from basedbench.config.matching import matching
    from basedbench.store import Store, code_version, device_name, fingerprint
    from basedbench.store.schema import decode_json
    from basedbench.timing.clock import WallClock
    from basedbench.timing.decode import Decoder, decode_rows
    from basedbench.training.cases import recall_cases

    runs = recall_cases(load_suite(name, "recall"))
    runs = runs if pattern is None else matching(runs, pattern, "runs")
    cases = {label: own[0] for label, own in by_model(runs).items()}
    if dry_run:
        _plan(list(cases), as_json)
        return
    store = Store(out)
    decoders = [
        Decoder(
            decoded_name(case.layer_mixers, case.d_model, case.layer_options),
            case.config_json,
            built(case),
            case.longest,
        )
        for case in cases.values()
    ]
    origin = {
        "code_version": code_version(),
        "device_name": device_name(device),
        "fingerprint": fingerprint(device),
    }
    rows = []
    for row in decode_rows(decoders, next(iter(cases.values())).suite, device, batch, rounds, WallClock()):
        rows.append(row | origin)
        store.write("throughput", rows[-1])
    if as_json:
        print_json([decode_json(row) for row in rows])
        return
    table = [
        (label, _state(row), row["status"], row["median_ms"], row["tokens_per_s"])
        for label, row in zip(cases, rows, strict=True)
    ]
    title = f"Decode step, batch {batch}, behind {decoders[0].length} tokens, fp32 on {device}"
    print_table(title, ("model", "state", "status", "median ms", "tokens/s"), table, whole=("model",))
    for label, row in zip(cases, rows, strict=True):
        if row["status"] != "ok":
            typer.echo(f"{label}: {row['status']}: {row['reason']}")
    typer.echo(f"Rows: {out / 'throughput'}. Next: basedbench plot tradeoff --results {out}")


def _state(row: Mapping[str, Any]) -> str | None:
    from basedbench.plots.scales import quantity

    return None if row["state_bytes"] is None else quantity(row["state_bytes"], "bytes")


def _plan(labels: list[str], as_json: bool) -> None:
    from basedbench.cli.tables import print_json

    if as_json:
        print_json([{"model": label} for label in labels])
        return
    typer.echo("\n".join(labels))
    typer.echo(f"{len(labels)} models would be timed. Nothing was run.")
