"""What `basedbench throughput` prints: what would run, a line per finished case, and the tables at the end."""

import textwrap
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import typer

from basedbench.cli.progress import clock
from basedbench.cli.tables import WIDTH, print_json, print_table
from basedbench.config.throughput import OPERATOR_AXES, Case
from basedbench.plots.scales import quantity
from basedbench.store.dataset import rows as stored_rows
from basedbench.store.schema import decode_json
from basedbench.timing.baseline import speed_up

Row = Mapping[str, Any]
COLUMNS = ("length", "contender", "median", "95 % interval", "tokens/s", "vs base", "memory", "bandw.", "FLOPs")
_SAME = ("mode", "dtype", "batch", "heads", "cache", "baseline")
WIDE = 0.05  # an interval wider than this to either side is pointed out
_BULKY = ("samples_ms", "round_sizes", "fingerprint")


class Progress:
    """A line on stderr for each finished case."""

    def __init__(self, total: int, chosen: int, quiet: bool = False) -> None:
        self.total, self.done, self.began, self.quiet = total, 0, time.monotonic(), quiet
        self.sampling_s = 0.0
        if not quiet:
            typer.echo(f"{total} of {chosen} cases to do", err=True)

    def __call__(self, row: Row) -> None:
        """A case is done and stored."""
        self.done += 1
        self.sampling_s += row["sampling_s"] or 0.0
        if self.quiet:
            return
        left = (time.monotonic() - self.began) / self.done * (self.total - self.done)
        rest = f"  (about {clock(left)} left)" if self.done < self.total else ""
        typer.echo(f"[{self.done}/{self.total}] {label(row)}: {outcome(row)}{rest}", err=True)

    def close(self) -> None:
        """What of the time went into the measurements themselves."""
        whole = time.monotonic() - self.began
        if self.done and not self.quiet:
            share = 100 * self.sampling_s / whole
            typer.echo(f"{clock(whole)}, {share:.0f} % of it warm-up and sampling", err=True)


def stored(out: Path, suite: str) -> list[dict[str, Any]]:
    """The newest rows of a suite."""
    return [row for row in stored_rows(out, "throughput") if row["suite"] == suite]


def plan(cases: Sequence[Case], todo: Sequence[Case], as_json: bool) -> None:
    """What would run."""
    due = {case.id for case in todo}
    if as_json:
        print_json([case.model_dump() | {"case_id": case.id, "due": case.id in due} for case in cases])
        return
    for case in cases:
        typer.echo(f"{'run ' if case.id in due else 'skip'} {case.id} {case.label}")
    typer.echo(f"{len(todo)} of {len(cases)} cases would run. Nothing was run.")


def results(cases: Sequence[Case], rows: Sequence[Row], out: Path, as_json: bool) -> None:
    """The chosen cases in the order of the suite: tables, or JSON. `rows` are all of the suite: baselines are there."""
    by_id = {row["case_id"]: row for row in rows}
    ordered = [by_id[case.id] for case in cases if case.id in by_id]
    if as_json:
        print_json([decode_json({name: value for name, value in row.items() if name not in _BULKY}) for row in ordered])
        return
    for same, group in _grouped(ordered).items():
        _say(_title(same, group))
        print_table("", COLUMNS, _lines(group, rows), whole=COLUMNS)
    _explain(ordered)
    left = len(cases) - len(ordered)
    if left:
        typer.echo(f"{left} cases are left; the same command without --limit goes on.")
    typer.echo(f"Rows: {out / 'throughput'}. Next: basedbench plot throughput --results {out}")


def label(row: Row) -> str:
    """`taylor_attention/ours fwd fp32 1x512`."""
    return f"{row['operator']}/{row['contender']} {row['mode']} {row['dtype']} {row['batch']}x{row['length']}"


def outcome(row: Row) -> str:
    """A finished case in a few words."""
    if row["status"] != "ok":
        return f"{row['status']}: {row['reason']}"
    rounds = f"{row['rounds']} rounds, {row['stop_reason']}"
    return f"{duration(row['median_ms'])} +- {100 * _half_width(row):.1f} %, {rounds}"


def duration(milliseconds: float) -> str:
    """`1.23 ms`, `45.6 us`."""
    return f"{milliseconds * 1e3:.3g} us" if milliseconds < 0.1 else f"{milliseconds:.4g} ms"


def _half_width(row: Row) -> float:
    return float((row["ci_high_ms"] - row["ci_low_ms"]) / 2 / row["median_ms"])


def _grouped(rows: Sequence[Row]) -> dict[tuple[Any, ...], list[Row]]:
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in _SAME), []).append(row)
    return {same: sorted(group, key=lambda row: row["length"]) for same, group in groups.items()}


def _title(same: tuple[Any, ...], group: Sequence[Row]) -> str:
    mode, dtype, batch, heads, cache, baseline = same
    count = next((row["threads"] for row in group if row["threads"]), 0)
    threads = f", {count} thread{'s' if count > 1 else ''}" if count else ""
    device = next(row["device_name"] for row in group)
    return f"{mode} {dtype}, batch {batch}, heads {heads}, {cache} cache, base {baseline}; {device}{threads}"


def _lines(group: Sequence[Row], rows: Sequence[Row]) -> list[list[Any]]:
    operators = {row["operator"] for row in group}
    shapes = {(row["operator"], row["key_dim"], row["value_dim"], row["config"]) for row in group}
    lines: list[list[Any]] = []
    for row in group:
        name = f"{row['operator']}/{row['contender']}" if len(operators) > 1 else row["contender"]
        if len(shapes) > len(operators):
            name = f"{name} {_widths(row)}"
        first = "" if lines and group[len(lines) - 1]["length"] == row["length"] else str(row["length"])
        lines.append([first, name, *_numbers(row, rows)])
    return lines


def _numbers(row: Row, rows: Sequence[Row]) -> list[str]:
    if row["status"] != "ok":
        return [row["status"], *[""] * (len(COLUMNS) - 3)]
    ratio, memory = speed_up(row, rows), row["peak_memory_bytes"]
    return [
        duration(row["median_ms"]),
        f"{row['ci_low_ms']:.4g} - {row['ci_high_ms']:.4g}",
        quantity(row["tokens_per_s"], "tokens_per_s"),
        f"{ratio:.2f}x" if ratio else "-",
        quantity(memory, "bytes") if memory is not None else "-",
        _share(row["bandwidth_fraction"]),
        _share(row["flops_fraction"]),
    ]


def _share(fraction: float | None) -> str:
    return "-" if fraction is None else f"{100 * fraction:.3g} %" if fraction >= 0.001 else "<0.1 %"


def _widths(row: Row) -> str:
    letters = {"key_dim": "K", "value_dim": "V"}
    axes = [f"{letters[name]}{row[name]}" for name in OPERATOR_AXES[row["operator"]] if name in letters]
    return " ".join([*axes, *(f"{name} {value}" for name, value in decode_json(row)["config"].items())])


def _explain(rows: Sequence[Row]) -> None:
    """What the columns mean, what the reader should be wary of, and why some cases have no time."""
    if any(row["status"] == "ok" for row in rows):
        _say("vs base: times as fast as the base. memory: peak beyond the inputs.")
        _say("bandw., FLOPs: the least work there is, as a share of what `basedbench calibrate` measured.")
    for mark, text in (
        ("throttled", "were taken while the device was held back"),
        ("exposed_samples", "hold samples in which the device waited for the host"),
    ):
        marked = [label(row) for row in rows if row[mark]]
        if marked:
            _say(f"{len(marked)} rows {text}: {_few(marked)}.")
    wide = [label(row) for row in rows if row["status"] == "ok" and _half_width(row) > WIDE]
    if wide:
        _say(
            f"{len(wide)} rows are known to no better than {100 * WIDE:g} %: {_few(wide)}. A quieter machine helps, "
            "or more rounds: --rounds 100 --fresh."
        )
    reasons: dict[str, list[str]] = {}
    for row in rows:
        if row["status"] != "ok":
            reasons.setdefault(f"{row['status']}: {row['reason']}", []).append(label(row))
    for reason, labels in reasons.items():
        _say(f"{_few(labels)}: {reason}")


def _say(text: str) -> None:
    typer.echo(textwrap.fill(text, WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False))


def _few(labels: Sequence[str]) -> str:
    return ", ".join(labels[:2]) + (f" and {len(labels) - 2} more" if len(labels) > 2 else "")
