"""How far a sweep has come, from the rows alone: what is done, what is left, and the device time that it took.

A sweep may be run as several commands, family by family or on several machines. Each row's `train_s` is its run's share
of the device, so that sums over rows are device seconds, whatever ran side by side. On a CPU each run has a process and
a core of its own, and sums are core seconds. Not counted are attempts that were stopped, put off for lack of memory, or
lost with a worker that others shared.
"""

import re
import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from basedbench.config import load_suite, suite_names
from basedbench.config.recall import RecallSuite
from basedbench.errors import UserError
from basedbench.sources import versions_in
from basedbench.training.cases import RecallCase, recall_cases

Row = Mapping[str, Any]
Item = TypeVar("Item")
_LONGEST_S = 1e9  # of a run


@dataclass(frozen=True)
class Tally:
    """The runs of one mixer, or of several together. `train_s` is the sum over the rows, failed ones too."""

    name: str
    runs: int
    done: int
    failed: dict[str, int]
    left: int
    train_s: float
    seconds_per_run: float | None  # over those that finished
    left_s: float | None  # what is left, if each family goes on as it did; None if one has no finished run yet


@dataclass(frozen=True)
class SuiteTally:
    """A suite at one precision. `arguments` choose it on the command line; `other_rows` are of none of its runs.

    `on_cores`: times are core seconds, since some of its runs were on a CPU. `versions` says of which of the user's
    files its runs have several. Of its finished runs `elsewhere` have rows of other suites, `other_suites`, alone: a
    figure of this suite does not have those before its sweep has taken them over.
    """

    suite: str
    precision: str | None  # None for the suite's own
    families: list[Tally]
    total: Tally
    other_rows: int
    arguments: tuple[str, ...]
    unknown: str | None = None  # why the runs of this suite cannot be told
    on_cores: bool = False
    versions: str = ""
    elsewhere: int = 0
    other_suites: tuple[str, ...] = ()

    def commands(self, *more: str) -> list[str]:
        """One line for each family with runs left; `more` arguments stand at its end."""
        head = ["basedbench", "recall", "--sweep", *self.arguments, "--filter"]
        return [shlex.join([*head, f"^{re.escape(tally.name)} ", *more]) for tally in self.families if tally.left]


def tallies(rows: Sequence[Row], suite: str | None) -> list[SuiteTally]:
    """The suite of this name or file, or every suite that has rows, each at every precision that has rows.

    Runs that another suite has finished count as done, as a sweep would take them over.
    """
    if suite is not None:
        return _of_suite(load_suite(suite, "recall"), suite, rows)
    shipped, found = suite_names("recall"), []
    for name in sorted({row["suite"] for row in rows}):
        try:
            if name not in shipped:
                raise UserError(f"no suite {name!r} comes with basedbench; give its file with --suite.")
            found += _of_suite(load_suite(name, "recall"), name, rows)
        except UserError as error:
            found.append(_unknown(name, [row for row in rows if row["suite"] == name], str(error)))
    return found


def device_seconds(rows: Iterable[Row]) -> float:
    """The sum over rows, a run that several suites share counted once: no two have the same time to the last bit."""
    return sum(seconds for _, seconds in dict.fromkeys((row["case_id"], _seconds(row) or 0.0) for row in rows))


def on_cores(rows: Iterable[Row]) -> bool:
    """Whether any of these runs was on a CPU."""
    return any(row.get("device") == "cpu" for row in rows)


def _of_suite(suite: RecallSuite, name_or_path: str, rows: Sequence[Row]) -> list[SuiteTally]:
    """The suite as it stands, unless only other precisions have rows; then at those that have."""
    mine = [row for row in rows if row["suite"] == suite.name]
    undecided = suite.train.precision == "auto"  # then what has rows is named by its precision
    own = "fp32" if undecided else suite.train.precision
    planned: dict[str, list[RecallCase]] = {}
    for precision in [own, *sorted({row["precision"] for row in mine if row["precision"]} - {own})]:
        train = suite.train.model_copy(update={"precision": precision})
        planned[precision] = recall_cases(suite.model_copy(update={"train": train}))
    seen = {case.case_id for cases in planned.values() for case in cases}
    other_rows = sum(row["case_id"] not in seen for row in mine)
    as_written = _tallied(suite.name, None, planned.pop(own), rows, ("--suite", name_or_path))
    if undecided and as_written.total.left < as_written.total.runs:
        arguments = (*as_written.arguments, "--precision", own)
        as_written = replace(as_written, precision=own, arguments=arguments)
    others = [
        _tallied(suite.name, precision, cases, rows, ("--suite", name_or_path, "--precision", precision))
        for precision, cases in planned.items()
    ]
    started = [one for one in others if one.total.left < one.total.runs]
    found = started if started and as_written.total.left == as_written.total.runs else [as_written, *started]
    return [replace(found[0], other_rows=other_rows), *found[1:]]


def _unknown(suite: str, rows: Sequence[Row], reason: str) -> SuiteTally:
    """What the rows alone say of a suite that cannot be read."""
    families = [_tally(mixer, len(own), own) for mixer, own in _by(lambda row: str(row["mixer"]), rows).items()]
    total, versions = _total(families, rows), versions_in(rows, "recall")
    return SuiteTally(suite, None, families, total, 0, (), reason, on_cores(rows), versions)


def _tallied(
    suite: str, precision: str | None, cases: Sequence[RecallCase], rows: Sequence[Row], arguments: tuple[str, ...]
) -> SuiteTally:
    elsewhere = {row["case_id"]: row for row in rows if row["status"] == "ok"}
    own = {row["case_id"]: row for row in rows if row["suite"] == suite}
    known, shared = elsewhere | own, {case.case_id for case in cases} & elsewhere.keys() - own.keys()
    others = sorted({row["suite"] for row in rows if row["case_id"] in shared and row["status"] == "ok"})
    found = [known[case.case_id] for case in cases if case.case_id in known]
    families = [
        _tally(mixer, len(runs), [known[case.case_id] for case in runs if case.case_id in known])
        for mixer, runs in _by(lambda case: case.mixer, cases).items()
    ]
    return SuiteTally(
        suite,
        precision,
        families,
        _total(families, found),
        0,
        arguments,
        on_cores=on_cores(found),
        versions=versions_in(found, "recall"),
        elsewhere=len(shared),
        other_suites=tuple(others),
    )


def _tally(name: str, runs: int, rows: Sequence[Row]) -> Tally:
    known = [_seconds(row) for row in rows if row["status"] == "ok"]
    finished = [seconds for seconds in known if seconds is not None]
    failed = Counter(row["status"] for row in rows if row["status"] != "ok")
    per_run = sum(finished) / len(finished) if finished else None
    left = runs - len(rows)
    return Tally(
        name=name,
        runs=runs,
        done=len(rows) - failed.total(),
        failed=dict(sorted(failed.items())),
        left=left,
        train_s=sum(_seconds(row) or 0.0 for row in rows),
        seconds_per_run=per_run,
        left_s=left * per_run if left and per_run is not None else None if left else 0.0,
    )


def _seconds(row: Row) -> float | None:
    """None where a row does not say, or what no run takes."""
    seconds = row["train_s"]
    return seconds if seconds is not None and 0 <= seconds <= _LONGEST_S else None


def _total(families: Sequence[Tally], rows: Sequence[Row]) -> Tally:
    ahead = [family.left_s for family in families]
    known = [seconds for seconds in ahead if seconds is not None]
    total = _tally("total", sum(family.runs for family in families), rows)
    return replace(total, left_s=sum(known) if len(known) == len(ahead) else None)


def _by(key: Callable[[Item], str], items: Iterable[Item]) -> dict[str, list[Item]]:
    """The items of each key, in order of appearance."""
    groups: dict[str, list[Item]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return groups
