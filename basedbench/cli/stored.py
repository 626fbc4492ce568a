"""The stored rows that a command is asked for, whatever their kind."""

from collections.abc import Collection
from pathlib import Path
from typing import Any


def stored_rows(
    results: Path, kind: str, suites: Collection[str] = (), *, understood: bool = False
) -> list[dict[str, Any]]:
    """The newest row of every case, oldest first, of these suites or of all.

    Raises UserError for an unknown kind, if there are no rows at all, or none of a suite.
    """
    from basedbench.errors import UserError, nearest
    from basedbench.store.dataset import no_rows, rows
    from basedbench.store.schema import KINDS

    if kind not in KINDS:
        raise UserError(f"--kind {kind!r}: {nearest(kind, KINDS)}")
    found = rows(results, kind, understood=understood)
    if not found:
        raise UserError(no_rows(results, kind))
    known = {row.get("suite") for row in found}
    for suite in suites:
        if suite not in known:
            raise UserError(
                f"--suite: no {kind} rows of {suite!r} in {results}; {nearest(suite, sorted(filter(None, known)))}"
            )
    return [row for row in found if not suites or row.get("suite") in suites]
