"""`basedbench calibrate`: measure what this machine can do."""

from pathlib import Path
from typing import Annotated, Any

import typer

COLUMNS = ("ceiling", "rate", "median", "95 % interval", "rounds", "stopped")
MEANINGS = {
    "copy": "memory bandwidth, bytes read and written by a copy",
    "launch": "the host's cost of one small operation",
}


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(calibrate)


def calibrate(
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:0, ...")] = "auto",
    out: Annotated[Path, typer.Option(help="The results folder.")] = Path("results"),
    seconds: Annotated[float, typer.Option(min=0.01, help="Sampling time for each ceiling.")] = 3.0,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads. Default: torch's.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the rows as JSON.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing.")] = False,
) -> None:
    """Measure this machine's copy bandwidth, matrix product rates and launch cost, and store them.

    `basedbench throughput` gives fractions of the newest ones in its results folder; on a CPU, of those measured with
    as many threads.
    """
    from basedbench.cli.tables import print_json
    from basedbench.engines import resolve_devices
    from basedbench.engines.devices import check_threads
    from basedbench.store import Store
    from basedbench.store.schema import decode_json
    from basedbench.timing.ceilings import calibrate as measure

    place = resolve_devices(device)[0]
    check_threads(threads)
    store, rows = Store(out), []
    for row in measure(place, seconds, threads):
        store.write("calibration", row)
        rows.append(store.row("calibration", row["suite"], row["case_id"]) or row)
    if as_json:
        print_json([decode_json({name: row[name] for name in row if name != "samples_ms"}) for row in rows])
        return
    if not quiet:
        _print(rows, out)


def _print(rows: list[dict[str, Any]], out: Path) -> None:
    from basedbench.cli.tables import print_table
    from basedbench.cli.throughput_report import duration

    lines = []
    for row in rows:
        interval = f"{row['ci_low_ms']:.4g} - {row['ci_high_ms']:.4g} ms"
        lines.append(
            (row["ceiling"], _rate(row), duration(row["median_ms"]), interval, row["rounds"], row["stop_reason"])
        )
    typer.echo(f"{rows[0]['device_name']}")
    print_table("", COLUMNS, lines, whole=COLUMNS)
    for name, meaning in MEANINGS.items():
        typer.echo(f"{name}: {meaning}")
    if any(row.get("throttled") for row in rows):
        typer.echo("The device was held back while some were measured; see throttle_reason in the rows.")
    typer.echo(f"Rows: {out / 'calibration'}")


def _rate(row: dict[str, Any]) -> str:
    if row["bytes_per_s"]:
        return f"{row['bytes_per_s'] / 1e9:,.1f} GB/s"
    return f"{row['flops_per_s'] / 1e12:,.3g} TFLOP/s" if row["flops_per_s"] else "-"
