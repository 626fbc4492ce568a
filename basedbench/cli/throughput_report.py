"""What `basedbench throughput` prints: what would run, a line per finished case, and the tables at the end."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from shlex import quote
from typing import Any

import typer

from basedbench.cli.outcome import end, say_retry
from basedbench.cli.progress import clock
from basedbench.cli.tables import print_json, print_note, print_table
from basedbench.cli.time_limit import goes_on
from basedbench.cli.timing_tables import duration, half_width, timing_tables
from basedbench.config.throughput import AnyCase
from basedbench.store.dataset import rows as stored_rows
from basedbench.store.schema import decode_json
from basedbench.timing.baseline import speed_up
from basedbench.timing.pairs import case_label
from basedbench.timing.sweep import AHEAD

Row = Mapping[str, Any]
WIDE = 0.05  # an interval wider than this to either side is pointed out
BEYOND = 1.5  # times a ceiling, which itself is known to some percent
_BULKY = ("samples_ms", "round_sizes", "fingerprint")


class Progress:
    """A line on stderr for each finished case. `began` is when the whole command did, imports and ceilings included."""

    def __init__(self, total: int, chosen: int, began: float, quiet: bool = False) -> None:
        self.total, self.done, self.began, self.quiet = total, 0, began, quiet
        self.first, self.timed, self.sampling_s = time.monotonic(), 0, 0.0
        self.prepared: dict[str, float] = {}  # seconds by operator/contender
        if not quiet:
            typer.echo(f"{total} of {chosen} cases to do", err=True)

    def __call__(self, row: Row) -> None:
        """A case is done and stored."""
        self.done += 1
        self.timed += bool(row["prepare_s"])  # what is refused at once says nothing of how long others take
        self.sampling_s += row["sampling_s"] or 0.0
        name = f"{row['operator'] or row['model']}/{row['contender']}"
        self.prepared[name] = self.prepared.get(name, 0.0) + (row["prepare_s"] or 0.0)
        if self.quiet:
            return
        left = (time.monotonic() - self.first) / max(1, self.timed) * (self.total - self.done)
        rest = f"  (about {clock(left)} left)" if self.timed and self.done < self.total else ""
        typer.echo(f"[{self.done}/{self.total}] {label(row)}: {outcome(row)}{rest}", err=True)

    def close(self, spent: Mapping[str, float], called: Mapping[str, float]) -> None:
        """Where the time went, and into what if most of it was not into timing.

        `spent` are the seconds that no case is charged for, by what they went into; `called` those of all processes
        before cases were timed, by operator/contender.
        """
        if not self.done or self.quiet:
            return
        whole = time.monotonic() - self.began
        parts = {"warm-up and sampling": self.sampling_s, "start": self.first - self.began, **spent}
        parts["preparing cases"] = sum(self.prepared.values())
        parts["between them"] = whole - sum(parts.values())
        shares = {name: round(100 * seconds / whole) for name, seconds in parts.items()}
        told = ", ".join(f"{share} % {name}" for name, share in shares.items() if share > 0)
        typer.echo(f"{clock(whole)}: {told}", err=True)
        if spent.get(AHEAD, 0.0) + parts["preparing cases"] > whole / 2:
            both = _longest(called, "to be called first, in all processes"), _longest(self.prepared, "to be prepared")
            typer.echo(f"What took longest: {'; '.join(filter(None, both))}.", err=True)


def _longest(seconds: Mapping[str, float], what: str) -> str | None:
    """`delta_rule/fla-chunk to be prepared, 51 s`; None where nothing was."""
    name = max(seconds, key=lambda one: seconds[one], default=None)
    return name and f"{name} {what}, {clock(seconds[name])}"


def rehearsal(cases: int, processes: int, quiet: bool) -> None:
    """What happens before cases are timed, which may take minutes."""
    if cases and not quiet:
        typer.echo(f"calling {cases} cases first, in {processes} processes, to compile and check them", err=True)


def stored(out: Path, suite: str) -> list[dict[str, Any]]:
    """The newest rows of a suite."""
    return [row for row in stored_rows(out, "throughput", understood=True) if row["suite"] == suite]


def plan(cases: Sequence[AnyCase], todo: Sequence[AnyCase], as_json: bool) -> None:
    """What would run."""
    due = {case.id for case in todo}
    if as_json:
        print_json([case.model_dump() | {"case_id": case.id, "due": case.id in due} for case in cases])
        return
    for case in cases:
        typer.echo(f"{'run ' if case.id in due else 'skip'} {case.id} {case.label}")
    typer.echo(f"{len(todo)} of {len(cases)} cases would run. Nothing was run.")


def results(
    cases: Sequence[AnyCase], rows: Sequence[Row], out: Path, as_json: bool, left: int, fresh: bool = False
) -> None:
    """The chosen cases in the order of the suite: tables, or JSON. `rows` are all of the suite: baselines are there."""
    by_id = {row["case_id"]: row for row in rows}
    ordered = [by_id[case.id] for case in cases if case.id in by_id]
    if as_json:
        print_json([decode_json({name: value for name, value in row.items() if name not in _BULKY}) for row in ordered])
        end(ordered)
        return
    for title, heading, lines in timing_tables(ordered, rows):
        print_note(title)
        print_table("", heading, lines, whole=[name for name in heading if name != "model"])
    _explain(ordered)
    _without_base(ordered, rows)
    say_retry((row["status"] for row in ordered), "cases", fresh)
    if left:
        typer.echo(f"{left} cases are left; the same command without --limit {goes_on(fresh)}.")
    typer.echo(f"Rows: {out / 'throughput'}. Next: basedbench plot {_figure(ordered)} --results {quote(str(out))}")
    end(ordered)


def _figure(rows: Sequence[Row]) -> str:
    """The figure of what was timed."""
    return "generation" if any(row["mode"] == "generation" for row in rows) else "throughput"


def label(row: Row) -> str:
    """`taylor_attention/ours fwd fp32 1x512`, or a model's label as `--filter` has it."""
    if not row["operator"]:
        return case_label(row)
    return f"{row['operator']}/{row['contender']} {row['mode']} {row['dtype']} {row['batch']}x{row['length']}"


def outcome(row: Row) -> str:
    """A finished case in a few words."""
    if row["status"] != "ok":
        return f"{row['status']}: {row['reason']}"
    # Where the limit of rounds ended it, both say the same.
    rounds = ", ".join(dict.fromkeys([f"{row['rounds']} rounds", str(row["stop_reason"])]))
    return f"{duration(row['median_ms'])} +- {100 * half_width(row):.1f} %, {rounds}"


def _explain(rows: Sequence[Row]) -> None:
    """What the columns mean, what the reader should be wary of, and why some cases have no time."""
    if any(row["status"] == "ok" for row in rows):
        print_note("vs base: times as fast as the base. memory: peak beyond the inputs, weights and states.")
        print_note("bandw., FLOPs: the least work there is, as a share of what `basedbench calibrate` measured.")
    if any(row["operator"] and row["contender"] == "ours" and row["device"] == "cpu" for row in rows):
        print_note("ours: on a CPU its PyTorch form; the kernels are for GPUs.")
    if any(row["largest_batch"] for row in rows):
        most = "the most sequences that this device's memory holds at that context"
        print_note(f"state: bytes per sequence. fits: {most}.")
    for mark, text in (
        ("throttled", "taken while the device was held back"),
        ("exposed_samples", "with samples in which the device waited for the host"),
    ):
        marked = [label(row) for row in rows if row[mark]]
        if marked:
            print_note(f"{_rows(marked)} {text}: {_few(marked)}.")
    launched = [label(row) for row in rows if row["status"] == "ok" and row["reason"]]
    if launched:
        rest = f"{_few(launched)}; see their `reason`."
        print_note(f"{_rows(launched)} without the graph that others of the kind have: {rest}")
    wide = [label(row) for row in rows if row["status"] == "ok" and half_width(row) > WIDE]
    if wide:
        print_note(
            f"{_rows(wide)} known to no better than {100 * WIDE:g} %: {_few(wide)}. A quieter machine helps, "
            "or more rounds: --rounds 100 --fresh."
        )
    beyond = [label(row) for row in rows if row["status"] == "ok" and _beyond_ceilings(row)]
    if beyond:
        print_note(
            f"{_rows(beyond)} faster than the ceilings allow: {_few(beyond)}. Does the call do all of its work "
            "each time? Or were the ceilings measured beside something else: `basedbench calibrate` does it again."
        )
    reasons: dict[str, list[str]] = {}
    for row in rows:
        if row["status"] != "ok":
            reasons.setdefault(f"{row['status']}: {row['reason']}", []).append(label(row))
    for reason, labels in reasons.items():
        print_note(f"{_few(labels)}: {reason}")


def _without_base(shown: Sequence[Row], rows: Sequence[Row]) -> None:
    """Whose time a ratio lacks."""
    alone = [row for row in shown if row["status"] == "ok" and row["baseline"] and speed_up(row, rows) is None]
    for base in dict.fromkeys(row["baseline"] for row in alone):
        labels = [label(row) for row in alone if row["baseline"] == base]
        print_note(f"{_rows(labels)} without a ratio, as {base} has no time there: {_few(labels)}.")


def _beyond_ceilings(row: Row) -> bool:
    """More operations than products of large matrices reach, or more bytes from memory than a copy."""
    read = row["bandwidth_fraction"] if row["cache"] == "cold" else 0.0  # hot ones are in a cache
    return max(row["flops_fraction"] or 0.0, read or 0.0) > BEYOND


def _few(labels: Sequence[str]) -> str:
    return ", ".join(labels[:2]) + (f" and {len(labels) - 2} more" if len(labels) > 2 else "")


def _rows(labels: list[str]) -> str:
    return "1 row" if len(labels) == 1 else f"{len(labels)} rows"
