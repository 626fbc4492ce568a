"""Which rows of a results folder belong in one figure."""

from collections.abc import Sequence

import pandas as pd

from basedbench.analysis.columns import slices
from basedbench.errors import UserError


def of_suites(frame: pd.DataFrame, suites: Sequence[str]) -> pd.DataFrame:
    """The rows of these suites, or all rows if none is named. Raises UserError for a suite that is not there."""
    known = sorted(frame["suite"].unique())
    for name in suites:
        if name not in known:
            raise UserError(f"there are no rows of suite {name!r} in this results folder, only of {', '.join(known)}.")
    return frame[frame["suite"].isin(list(suites))] if suites else frame


def finished(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows with a result. Raises UserError if there are none, saying what became of the others."""
    done = frame[frame["status"] == "ok"]
    if done.empty:
        suites = ", ".join(sorted(frame["suite"].unique()))
        raise UserError(f"no run of {suites} finished ({counts_text(failures(frame))}); there is nothing to draw.")
    return done


def check_one_test(frame: pd.DataFrame) -> None:
    """Raise UserError if the rows were tested on different tasks: their accuracies do not belong on one axis."""
    tests = {str(suite): _test(rows) for suite, rows in finished(frame).groupby("suite")}
    if len(set(tests.values())) > 1:
        raise UserError(
            f"the suites {', '.join(tests)} were tested on different tasks, which do not belong in one figure; "
            "choose with --suite."
        )


def failures(frame: pd.DataFrame) -> dict[str, int]:
    """How many rows have each status other than ok."""
    counts = frame.loc[frame["status"] != "ok", "status"].value_counts()
    return {str(status): int(count) for status, count in sorted(counts.items())}


def counts_text(counts: dict[str, int]) -> str:
    """`2 oom, 1 timeout`."""
    return ", ".join(f"{count} {status}" for status, count in counts.items())


def _test(rows: pd.DataFrame) -> tuple[object, ...]:
    return (*sorted(rows["vocab_size"].dropna().unique()), *slices(rows))
