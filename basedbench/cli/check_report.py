"""What `basedbench check` prints: a line per finished problem, a table per operator, the broken laws of a mixer."""

import textwrap
from collections import Counter
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
    """Counts finished problems on stderr; says at once what is not right. Keeps the rows, for one that is stopped."""

    def __init__(self, total: int, *, silent: bool) -> None:
        self.total, self.rows, self.silent = total, list[Row](), silent
        if not silent:
            typer.echo(f"checking {total} problems", err=True)

    def __call__(self, row: Row) -> None:
        """A problem is done."""
        self.rows.append(row)
        done = len(self.rows)
        if self.silent:
            return
        if row["verdict"] in ("WRONG", "failed"):
            typer.echo(f"[{done}/{self.total}] {row['label']}: {row['verdict']}", err=True)
        elif done % 50 == 0:
            typer.echo(f"[{done}/{self.total}]", err=True)


def kernels(rows: Sequence[Row], device: str, *, as_json: bool, quiet: bool) -> None:
    """Tables by operator, what is wrong in full, and the count."""
    if as_json:
        print_json(rows)
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
    typer.echo(
        f"{len(rows)} problems on {device}, computed by {' and '.join(who) or 'nobody'}: {told or 'none is done'}."
    )


def stopped(done: int, total: int, what: str) -> None:
    """That the end came early."""
    typer.echo(f"\nStopped: {total - done} of {total} {what} were not looked at.", err=True)


def laws(
    name: str,
    every: "Sequence[Law]",
    found: "Mapping[Law, Sequence[Breach]]",
    *,
    unstated: "Law | None",
    as_json: bool,
    quiet: bool,
) -> None:
    """A line per law; under a broken one where, by how much, and what to do next. Not all need be `found`.

    `unstated` is the law about what the mixer states, if it states nothing: nobody can say whether it is kept.
    """
    asked = {law: some for law, some in found.items() if some or law is not unstated}
    cause = _cause(found)
    if as_json:
        print_json([_entry(law, asked.get(law)) for law in every])
        return
    for law, some in found.items():
        if some or not quiet:
            typer.echo(f"{'BROKEN' if some else 'kept  ' if law in asked else '-     '}  {law.name}")
        for breach in some[:_MOST]:
            _say(f"        {breach}", indent=" " * 10)
        if len(some) > _MOST:
            typer.echo(f"        and {len(some) - _MOST} more (--json prints all)")
        if some and not _raised(law, found):
            _say(f"        {'Mend this first' if law is cause else 'Next'}: {law.advice}", indent=" " * 10)
    broken, left = sum(bool(some) for some in found.values()), len(every) - len(found)
    rest = f" {left} {'was' if left == 1 else 'were'} not looked at." if left else ""
    all_kept = f"{name} keeps all {len(asked)} laws" + (" that it can be held to." if len(asked) < len(every) else ".")
    are = "is" if broken == 1 else "are"
    typer.echo(f"{name}: {broken} of {len(every)} laws {are} broken.{rest}" if broken or left else all_kept)
    if unstated and unstated not in asked and not quiet:
        typer.echo("Its docstring states no size of the state (`state_bytes = ...`): that was not compared.")
    if cause:
        _say(f"Next: mend this first, from which others may follow: {cause.name}: {found[cause][0]}")
    elif raised := Counter(str(some[0]) for law, some in found.items() if _raised(law, found)):
        ((most, count),) = raised.most_common(1)
        laws_kept = "1 law" if count == 1 else f"{count} laws"
        _say(f"Next: mend this first, which kept {laws_kept} from being looked at: {most}")


def _cause(found: "Mapping[Law, Sequence[Breach]]") -> "Law | None":
    """Of several broken laws the one from which others may follow, if there is one; not for what the mixer raises."""
    broken = [law for law, some in found.items() if some]
    causes = (law for law in broken if law.first and not all(breach.raised for breach in found[law]))
    return next(causes, None) if len(broken) > 1 else None


def _raised(law: "Law", found: "Mapping[Law, Sequence[Breach]]") -> bool:
    """Whether a law was not looked at for what the mixer raises, which needs no hint at numbers."""
    some = found[law]
    if not some or not all(breach.raised for breach in some):
        return False
    elsewhere = {str(breach) for other, breaches in found.items() if other is not law for breach in breaches}
    return not law.by_raising or all(str(breach) in elsewhere for breach in some)


_MOST = 4


def _entry(law: "Law", breaches: "Sequence[Breach] | None") -> dict[str, Any]:
    """For JSON: `kept` is null where nobody looked."""
    told = [{"where": one.where, "amount": one.amount} for one in breaches or ()]
    return {"law": law.name, "kept": None if breaches is None else not breaches, "breaches": told}


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


def _say(text: str, indent: str = "  ") -> None:
    lead = text[: len(text) - len(text.lstrip())]
    wrapped = textwrap.fill(text.strip(), WIDTH, initial_indent=lead, subsequent_indent=indent, break_long_words=False)
    typer.echo(wrapped)
