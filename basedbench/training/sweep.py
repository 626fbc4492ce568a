"""What a sweep still has to do, given the rows that are there."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from basedbench.errors import UserError, nearest
from basedbench.store import Store
from basedbench.store.dataset import finished, rows
from basedbench.store.schema import STATUSES
from basedbench.training.cases import RecallCase

OUTDATED = "outdated"  # to --retry what a status is: a row that another version of the user's file made


@dataclass(frozen=True)
class Plan:
    """`todo` is to be run; `done` have a row; `borrowed` have one under another suite's name, which is copied."""

    todo: list[RecallCase] = field(default_factory=list)
    done: list[RecallCase] = field(default_factory=list)
    borrowed: list[tuple[RecallCase, str]] = field(default_factory=list)


def parse_statuses(text: str | None, fresh: bool = False) -> frozenset[str]:
    """The statuses of `--retry oom,crashed`, and OUTDATED; UserError for an unknown one, and for any with --fresh."""
    names = [name.strip() for name in (text or "").split(",") if name.strip()]
    if names and fresh:
        raise UserError("--retry: with --fresh everything runs again; leave one of the two out.")
    for name in names:
        if name not in (*STATUSES, OUTDATED):
            raise UserError(f"--retry: unknown status {name!r}; {nearest(name, [*STATUSES, OUTDATED])}")
    return frozenset(names)


def plan(cases: Sequence[RecallCase], root: Path, fresh: bool, retry: frozenset[str]) -> Plan:
    """Sort cases into done and not done by the rows in `root`, which need not be there.

    `fresh` runs everything again, `retry` the rows with these statuses, OUTDATED those of other versions of the user's
    own files.
    """
    result = Plan()
    if fresh:
        result.todo.extend(cases)
        return result
    known = finished(root, "recall")
    elsewhere = {case_id: suite for (suite, case_id), status in known.items() if status == "ok"}
    for case in cases:
        status = known.get((case.suite, case.case_id))
        if status is not None and status not in retry:
            result.done.append(case)
        elif status is None and case.case_id in elsewhere:
            result.borrowed.append((case, elsewhere[case.case_id]))
        else:
            result.todo.append(case)
    return _without_outdated(cases, result, root) if OUTDATED in retry else result


def _without_outdated(cases: Sequence[RecallCase], plan: Plan, root: Path) -> Plan:
    """The plan, with what is outdated to be run again, in the order of the cases."""
    old = {case.case_id for case in outdated(kept_rows(plan, root))}
    todo = old | {case.case_id for case in plan.todo}
    return Plan(
        [case for case in cases if case.case_id in todo],
        [case for case in plan.done if case.case_id not in old],
        [(case, suite) for case, suite in plan.borrowed if case.case_id not in old],
    )


def kept_rows(plan: Plan, root: Path) -> list[tuple[RecallCase, dict[str, Any]]]:
    """The cases of the user's own mixers that a plan leaves as they are, each with its row."""
    kept = [*((case, case.suite) for case in plan.done), *plan.borrowed]
    kept = [(case, suite) for case, suite in kept if case.source]
    known = {(row["suite"], row["case_id"]): row for row in rows(root, "recall")} if kept else {}
    return [(case, known[suite, case.case_id]) for case, suite in kept]


def outdated(kept: Sequence[tuple[RecallCase, dict[str, Any]]]) -> list[RecallCase]:
    """Those whose rows were not made by the files of the user's own mixers as they are now."""
    return [case for case, row in kept if row["mixer_source"] not in (None, case.source)]


def borrow(store: Store, borrowed: Sequence[tuple[RecallCase, str]]) -> None:
    """Copy rows of equal runs to this suite's name, dated now: what a suite has last is its present task."""
    if not borrowed:
        return
    stored = {(row["suite"], row["case_id"]): row for row in rows(store.root, "recall")}
    for case, suite in borrowed:
        taken = {"suite": case.suite, "row_id": None, "created_at": None}
        store.write("recall", stored[suite, case.case_id] | taken)
