"""What `basedbench check` prints: a line per finished problem, a table per operator, the broken laws of a mixer."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import typer

from basedbench.cli.tables import WIDTH, print_json, print_table

if TYPE_CHECKING:
    from basedbench.checking.laws import Law
    from basedbench.checking.subject import Breach

Row = Mapping[str, Any]
COLUMNS = ("mode", "dtype", "shape", "lengths", "by", "error", "bound", "verdict")
_TOGETHER = ("mode", "dtype", "shape", "implementation")
_MODES = {"fwd": "forward", "gradients": "gradients", "step": "decode step"}
_ORDER = ("ok", "skipped", "WRONG", "failed")


class Progress:
    """Counts finished problems on stderr; says at once what is not right."""

    def __init__(self, total: int, *, silent: bool) -> None:
        self.total, self.done, self.silent = total, 0, silent
        if not silent:
            typer.echo(f"checking {total} problems", err=True)

    def __call__(self, row: Row) -> None:
        """A problem is done."""
        self.done += 1
        if self.silent:
            return
        if row["verdict"] in ("WRONG", "failed"):
            typer.echo(f"[{self.done}/{self.total}] {row['label']}: {row['verdict']}", err=True)
        elif self.done % 50 == 0:
            typer.echo(f"[{self.done}/{self.total}]", err=True)


def kernels(rows: Sequence[Row], device: str, *, as_json: bool, quiet: bool) -> None:
    """Tables by operator, what is wrong in full, and the count."""
    if as_json:
        print_json([{name: _strict(value) for name, value in row.items()} for row in rows])
        return
    for operator in dict.fromkeys(row["operator"] for row in rows):
        if not quiet:
            print_table(operator, COLUMNS, _lines([row for row in rows if row["operator"] == operator]), whole=COLUMNS)
    for row in rows:
        if row["verdict"] in ("WRONG", "failed"):
            _say(f"{row['label']}: {row['verdict']}: {_reason(row)}")
    _skipped(rows)
    counts = {verdict: sum(row["verdict"] == verdict for row in rows) for verdict in _ORDER}
    told = ", ".join(f"{count} {verdict}" for verdict, count in counts.items() if count)
    who = sorted({row["implementation"] for row in rows if row["implementation"]})
    typer.echo(f"{len(rows)} problems on {device}, computed by {' and '.join(who) or 'nobody'}: {told}.")


def laws(name: str, found: "Mapping[Law, Sequence[Breach]]", *, stated: bool, as_json: bool, quiet: bool) -> None:
    """A line per law; under a broken one where, by how much, and what to do next."""
    if as_json:
        entries = [(law, [{"where": one.where, "amount": one.amount} for one in some]) for law, some in found.items()]
        print_json([{"law": law.name, "kept": not some, "breaches": some} for law, some in entries])
        return
    for law, some in found.items():
        if some or not quiet:
            typer.echo(f"{'BROKEN' if some else 'kept  '}  {law.name}")
        for breach in some[:_MOST]:
            _say(f"        {breach}", indent=" " * 10)
        if len(some) > _MOST:
            typer.echo(f"        and {len(some) - _MOST} more (--json prints all)")
        if not all(breach.raised for breach in some):  # what raises needs no hint at numbers
            _say(f"        Next: {law.advice}", indent=" " * 10)
    broken = sum(bool(some) for some in found.values())
    typer.echo(
        f"{name}: {broken} of {len(found)} laws are broken." if broken else f"{name} keeps all {len(found)} laws."
    )
    if not stated and not quiet:
        typer.echo("Its docstring states no size of the state (`state_bytes = ...`): that was not compared.")


_MOST = 4


def _lines(rows: Sequence[Row]) -> list[list[Any]]:
    """Problems that differ in length alone in one line, with the error that comes closest to its bound."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in _TOGETHER), []).append(row)
    return [_line(group) for group in groups.values()]


def _line(group: Sequence[Row]) -> list[Any]:
    worst = max(group, key=_severity)
    lengths = " ".join(str(row["length"]) for row in group)
    measured = [_number(worst[name]) for name in ("error", "bound")]
    shape = worst["shape"].replace("initial state", "h0").replace("last state", "hL")
    return [_MODES[worst["mode"]], worst["dtype"], shape, lengths, worst["implementation"], *measured, worst["verdict"]]


def _severity(row: Row) -> tuple[int, float]:
    ratio = row["error"] / row["bound"] if row["bound"] and row["error"] == row["error"] else 0.0
    return _ORDER.index(row["verdict"]), ratio


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1e}"


def _reason(row: Row) -> str:
    if row["verdict"] == "failed" or row["bound"] is None:
        return str(row["reason"])
    return f"{row['reason']} (error {_number(row['error'])}, at most {_number(row['bound'])})"


def _skipped(rows: Sequence[Row]) -> None:
    reasons: dict[str, int] = {}
    for row in rows:
        if row["verdict"] == "skipped":
            reasons[str(row["reason"])] = reasons.get(str(row["reason"]), 0) + 1
    for reason, count in reasons.items():
        _say(f"{count} skipped: {reason}")


def _strict(value: Any) -> Any:
    """NaN has no place in JSON."""
    return None if isinstance(value, float) and value != value else value


def _say(text: str, indent: str = "  ") -> None:
    lead = text[: len(text) - len(text.lstrip())]
    wrapped = textwrap.fill(text.strip(), WIDTH, initial_indent=lead, subsequent_indent=indent, break_long_words=False)
    typer.echo(wrapped)
