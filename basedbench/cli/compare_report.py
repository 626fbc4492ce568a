"""What `basedbench compare` prints."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict

import typer

from basedbench.cli.compare_input import Choice, Found
from basedbench.cli.tables import print_json, print_note, print_table
from basedbench.errors import visible
from basedbench.timing.comparison import IDENTICAL, VERDICTS, Comparison
from basedbench.timing.pairs import AGAINST, Pair

REGRESSION, INCOMPLETE = 1, 3
_HEADINGS = {"throughput": ("case", "A ms", "B ms", "B / A"), "recall": ("model", "A", "B", "B - A")}
_NOTES = 10
_TWO_RUNS = (
    "A and B were timed in runs of their own: what the machine did in between is in the ratio, too. Time A once more "
    "before you believe it, or two contenders in one run, which take turns."
)
_SHORT = 4  # words of a label: operator and contender, mode, dtype, batch x length


def exit_code(pairs: Sequence[Pair], failing: Sequence[str]) -> int:
    """1 if a verdict is among the failing ones, else 3 if something is missing, else 0."""
    seen = {pair.result.verdict for pair in pairs}
    if seen & set(failing):
        return REGRESSION
    return INCOMPLETE if "MISSING" in seen else 0


def table(kind: str, found: Found, choice: Choice) -> None:
    """One line per pair."""
    columns = (*_HEADINGS[kind], "95 % interval", "verdict")
    two_models = kind == "recall" and choice.b is None
    if two_models:
        b, a = found.pairs[0].label.split(AGAINST)
        typer.echo(f"A: {visible(a)}\nB: {visible(b)}\nthreshold {100 * choice.threshold:g} %")
    else:
        sides = (choice.against, choice.contender) if choice.b is None else (choice.a, choice.b)
        typer.echo(f"A: {sides[0]}   B: {sides[1]}   threshold {100 * choice.threshold:g} %")
    if any(found.files):
        told = (f"{side}: {', '.join(files)}" for side, files in zip("AB", found.files, strict=True) if files)
        print_note(f"Your files: {'; '.join(told)}")
    if found.software:
        typer.echo(f"Besides basedbench itself, what differs: {visible(found.software)}")
    names = [AGAINST.join(str(one).split()[0] for one in (b, a))] if two_models else _names(found.pairs)
    lines = [(name, *_numbers(kind, pair)) for name, pair in zip(names, found.pairs, strict=True)]
    print_table("", columns, lines, whole=columns[1:])
    seen = {pair.result.verdict for pair in found.pairs}
    if kind == "throughput" and choice.b is not None and seen & {"FASTER", "SLOWER"}:
        print_note(_TWO_RUNS)
    if kind == "throughput" and (once := sum(_once(pair.result) for pair in found.pairs)):
        where = f"In {once} of {len(found.pairs)} cases"
        print_note(f"{where} A and B are one measurement, which tells nothing of how well it repeats.")


def notes(pairs: Sequence[Pair]) -> None:
    """The reasons, and the commands that would settle what is unclear."""
    noted = [pair for pair in pairs if pair.result.reason and pair.result.verdict != "SAME"]
    for pair in noted[:_NOTES]:
        print_note(f"{pair.result.verdict} {pair.label}: {pair.result.reason}")
        if pair.command:
            typer.echo(f"  {visible(pair.command)}")
    if len(noted) > _NOTES:
        typer.echo(f"... and {len(noted) - _NOTES} more; --json has all.")


def summary(pairs: Sequence[Pair], code: int) -> None:
    """The count of every verdict, and the exit code."""
    counts = Counter(pair.result.verdict for pair in pairs)
    meaning = {0: "no regression", REGRESSION: "a regression", INCOMPLETE: "incomplete"}[code]
    meaning = "nothing to compare" if code == 0 and set(counts) == {"FAILED"} else meaning
    listed = ", ".join(f"{counts[verdict]} {verdict}" for verdict in VERDICTS if counts[verdict])
    typer.echo(f"{listed}: {meaning} (exit code {code}).")


def as_json(found: Mapping[str, Found], code: int) -> None:
    """Everything, for other programs."""
    print_json(
        {
            "exit_code": code,
            "software": {kind: one.software for kind, one in found.items()},
            "files": {kind: dict(zip("ab", one.files, strict=True)) for kind, one in found.items()},
            "pairs": [
                {"kind": kind, "label": pair.label, "a": pair.a, "b": pair.b, "command": pair.command}
                | asdict(pair.result)
                for kind, one in found.items()
                for pair in one.pairs
            ],
        }
    )


def _once(result: Comparison) -> bool:
    """Whether both sides are of one measurement."""
    return result.verdict == "SAME" and (result.reason or "").startswith(IDENTICAL)


def _names(pairs: Sequence[Pair]) -> list[str]:
    """Labels without their shapes where that leaves them distinct."""
    short = [" ".join(pair.label.split()[:_SHORT]) for pair in pairs]
    return short if len(set(short)) == len(short) else [pair.label for pair in pairs]


def _numbers(kind: str, pair: Pair) -> tuple[str, ...]:
    digits = "{:.4g}" if kind == "throughput" else "{:.4f}"
    values = ["-" if value is None else digits.format(value) for value in (pair.a, pair.b)]
    return (*values, *_change(kind, pair.result), pair.result.verdict)


def _change(kind: str, result: Comparison) -> tuple[str, str]:
    form = _ratio if kind == "throughput" else "{:+.4f}".format
    change = "-" if result.change is None else form(result.change)
    if result.low is None or result.high is None:
        return change, "-"
    return change, f"{form(result.low)} to {form(result.high)}"


def _ratio(value: float) -> str:
    """With as many digits as tell small ones apart, too."""
    return f"{value:.3f}" if value >= 0.1 else f"{value:.3g}"
