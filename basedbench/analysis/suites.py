"""Which rows of a results folder belong in one figure."""

import json
from collections.abc import Sequence

import pandas as pd

from basedbench.analysis.columns import slices
from basedbench.errors import UserError, warn

_TRAINED = ("train", "test", "test_examples")  # the slices are in the rows themselves


def of_suites(frame: pd.DataFrame, suites: Sequence[str]) -> pd.DataFrame:
    """The rows of these suites, or all rows if none is named. Raises UserError for a suite that is not there."""
    known = sorted(frame["suite"].unique())
    for name in suites:
        if name not in known:
            raise UserError(f"there are no rows of suite {name!r} in this results folder, only of {', '.join(known)}.")
    return frame[frame["suite"].isin(list(suites))] if suites else frame


def runs_of_suites(frame: pd.DataFrame, suites: Sequence[str]) -> pd.DataFrame:
    """The runs of these suites, or all rows if none is named; each by its newest result, whatever suite asked for that.

    `frame` is oldest first. A run that several suites share is one experiment. One that failed when it was last tried
    has its last result.
    """
    chosen = of_suites(frame, suites)
    if not suites or "case_id" not in frame.columns:
        return chosen
    names = chosen.drop_duplicates("case_id", keep="last").set_index("case_id")["suite"]
    rows = frame[frame["case_id"].isin(names.index)]
    rows = rows.assign(_ok=rows["status"] == "ok").sort_values("_ok", kind="stable")
    newest = rows.drop_duplicates("case_id", keep="last").drop(columns="_ok").sort_index()
    return newest.assign(suite=newest["case_id"].map(names))


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


def rows_for_figure(frame: pd.DataFrame, suites: Sequence[str]) -> pd.DataFrame:
    """`runs_of_suites` without the rows of a suite's earlier tasks, which a warning tells."""
    last, earlier = as_last_set(runs_of_suites(frame, suites))
    for name, count in earlier.items():
        rows = "1 row is" if count == 1 else f"{count} rows are"
        warn(f"{rows} left out: of another task that the suite {name} had before.")
    return last


def as_last_set(frame: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, int]]:
    """The rows without those of a suite's earlier tasks, and how many of each suite these are.

    A suite whose file was edited has rows of both under one name, and models that nothing in a figure tells apart.
    `frame` is oldest first; rows that do not say their task stay.
    """
    if "task" not in frame.columns:
        return frame, {}
    last = frame.dropna(subset=["task"]).groupby("suite")["task"].last()
    earlier = frame["task"].notna() & (frame["task"] != frame["suite"].map(last))
    return frame[~earlier], {str(name): int(count) for name, count in frame[earlier].groupby("suite").size().items()}


def devices_note(frame: pd.DataFrame) -> str:
    """What a figure or table of these runs says of their devices: nothing where they are all of one."""
    if "device_name" not in frame.columns:
        return ""
    devices = sorted(frame.loc[frame["status"] == "ok", "device_name"].dropna().unique())
    return f"Trained on {' and '.join(devices)}." if len(devices) > 1 else ""


def doubts_note(frame: pd.DataFrame) -> str:
    """Which mixers' runs have no state bytes, and why: nothing where all have them."""
    if "state_doubt" not in frame.columns:
        return ""
    doubted = frame[(frame["status"] == "ok") & frame["state_doubt"].notna()].drop_duplicates("mixer")
    doubts = sorted(set(doubted["state_doubt"]))
    return f"Without state bytes, for these are in doubt: {'; '.join(doubts)}." if doubts else ""


def failures(frame: pd.DataFrame) -> dict[str, int]:
    """How many rows have each status other than ok."""
    counts = frame.loc[frame["status"] != "ok", "status"].value_counts()
    return {str(status): int(count) for status, count in sorted(counts.items())}


def counts_text(counts: dict[str, int]) -> str:
    """`2 oom, 1 timeout`."""
    return ", ".join(f"{count} {status}" for status, count in counts.items())


def _test(rows: pd.DataFrame) -> tuple[object, ...]:
    """What its rows were tested on; how they were trained is the suite's own affair."""
    tasks = rows["task"].dropna().unique() if "task" in rows.columns else ()
    settings = {json.dumps({k: v for k, v in json.loads(task).items() if k not in _TRAINED}) for task in tasks}
    return (*sorted(rows["vocab_size"].dropna().unique()), *sorted(settings), *slices(rows))
