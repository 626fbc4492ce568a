"""Tables of `basedbench recall`: what would run, and what came out."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from shlex import quote
from typing import Any

import pandas as pd
import typer

from basedbench.analysis.selection import select
from basedbench.cli.outcome import end, say_retry
from basedbench.cli.progress import clock
from basedbench.cli.recall_input import places
from basedbench.cli.tables import print_json, print_table
from basedbench.cli.time_limit import goes_on
from basedbench.errors import UserError, sentence, visible
from basedbench.plots.scales import quantity
from basedbench.store.dataset import rows as stored_rows
from basedbench.store.schema import decode_json
from basedbench.streams import stdout_to_stderr
from basedbench.timing.failures import shorten
from basedbench.training.cases import RecallCase
from basedbench.training.cost import estimate
from basedbench.training.rows import model_sizes
from basedbench.training.sweep import Plan

PLAN = ("model", "runs", "done", "to run", "parameters", "state", "zoology", "paper", "time")
STATES = ("state_bytes", "state_bytes_zoology", "state_bytes_paper")
RESULTS = ("model", "state", "accuracy", "at lr", "runs", "failed")
MOST_FAILURES = 5  # told in full at the end


def plan_table(
    cases: Sequence[RecallCase], plan: Plan, limit: int | None, devices: Sequence[str], jobs: int | None
) -> None:
    """Print the models of a sweep with their runs, those that would run, their sizes and a rough time."""
    done, to_run = _done_and_to_run(plan, limit)
    rows, seconds, any_guess = [], [0.0], False
    for label, runs in by_model(cases).items():
        sizes = measured(runs[0])
        ids = {case.case_id for case in runs}
        one, count = estimate(runs[0], devices[0]), len(ids & to_run)
        seconds += [one.seconds] * count
        guessed = one.guessed and count > 0
        any_guess |= guessed
        shown = (quantity(sizes[name], "bytes") for name in STATES)
        time = clock(one.seconds * count) + " ?" * guessed
        rows.append((label, len(runs), len(ids & done), count, sizes["parameters"], *shown, time))
    rates, seeds = sorted({case.learning_rate for case in cases}), sorted({case.seed for case in cases})
    given = f"lr {', '.join(f'{rate:.4g}' for rate in rates)}; {len(seeds)} {'seed' if len(seeds) == 1 else 'seeds'}"
    print_table(f"{len(cases)} runs, {given}; state sizes at length {cases[0].longest}", PLAN, rows, whole=PLAN[1:])
    side_by_side = len(places(devices, jobs)) if devices[0] == "cpu" else len(devices)
    ahead = clock(max(sum(seconds) / side_by_side, *seconds))
    if any_guess:
        typer.echo("?: a guess, for nobody has timed this mixer's runs on such a device.")
    on = ", ".join(devices)
    typer.echo(f"Roughly {ahead} for what would run on {on}, less where runs stop early. Nothing was run.")


def plan_json(cases: Sequence[RecallCase], plan: Plan, limit: int | None) -> None:
    """Every run with its case id, whether it is done or would run, and its model's sizes."""
    done, to_run = _done_and_to_run(plan, limit)
    found = []
    for runs in by_model(cases).values():
        sizes = measured(runs[0])
        with stdout_to_stderr():  # for the labels a mixer looks at options
            named = [(case, case.label) for case in runs]
        for case, label in named:
            name = case.case_id
            told = {"label": label, "case_id": name, "done": name in done, "to_run": name in to_run}
            found.append(case.meaning() | told | sizes)
    print_json(found)


def _done_and_to_run(plan: Plan, limit: int | None) -> tuple[set[str], set[str]]:
    """The case ids of both; a row of another suite that would be taken over is as good as one of its own."""
    done = [*plan.done, *(case for case, _ in plan.borrowed)]
    return {case.case_id for case in done}, {case.case_id for case in plan.todo[:limit]}


def measured(case: RecallCase) -> dict[str, int]:
    """Parameters and state sizes of a run's model; UserError if it cannot be built or its state not be begun."""
    try:
        with stdout_to_stderr():
            return model_sizes(case)
    except (UserError, KeyboardInterrupt):
        raise
    except BaseException as error:
        check = f"`basedbench check mixer {case.mixer}` looks at the mixer alone"
        raise UserError(
            f"the model {case.model_label!r} cannot be built here: {shorten(sentence(error))}; {check}."
        ) from None


def results_json(cases: Sequence[RecallCase], out: Path) -> None:
    """The stored row of every run that has one."""
    stored = {(row["suite"], row["case_id"]): row for row in stored_rows(out, "recall")}
    found = [row for case in cases if (row := stored.get((case.suite, case.case_id)))]
    print_json([decode_json({name: value for name, value in row.items() if name != "fingerprint"}) for row in found])
    end(found)


@stdout_to_stderr()
def by_model(cases: Sequence[RecallCase]) -> dict[str, list[RecallCase]]:
    """The runs of each model, in order; models that only their stacks tell apart have these in their names."""
    models: dict[tuple[str, str], list[RecallCase]] = {}
    for case in cases:
        models.setdefault((case.model_label, case.layer_mixers), []).append(case)
    count = Counter(label for label, _ in models)
    return {f"{label} ({stack})" if count[label] > 1 else label: runs for (label, stack), runs in models.items()}


def _best_rate(rows: Sequence[dict[str, Any]]) -> tuple[str | None, ...]:
    """State, accuracy and learning rate of a model's runs at its best rate, as figures have them."""
    good = [row for row in rows if row["status"] == "ok"]
    if not good:
        return None, None, None
    (point,) = select(pd.DataFrame(rows), ["accuracy"]).to_dict("records")
    state = next(row["state_bytes"] for row in good if row["learning_rate"] == point["learning_rate"])
    size = None if state is None else quantity(state, "bytes")
    return size, f"{point['accuracy']:.3f}", f"{point['learning_rate']:.4g}"


def results_table(cases: Sequence[RecallCase], out: Path, left: int, fresh: bool = False) -> None:
    """Print every model at its best learning rate, and what to do next."""
    stored = {(row["suite"], row["case_id"]): row for row in stored_rows(out, "recall", understood=True)}
    validated = cases[0].test.select == "validation"
    rows = []
    ended: list[dict[str, Any]] = []
    failures: Counter[str] = Counter()
    for label, runs in by_model(cases).items():
        found = [row for case in runs if (row := stored.get((case.suite, case.case_id)))]
        lost = [row for row in found if row["status"] != "ok"]
        failures.update(f"{row['status']}: {row['reason'] or row['stop_reason']}" for row in lost)
        failures.update(f"ok, but {row['reason']}" for row in found if row["status"] == "ok" and row["reason"])
        ended += found
        rows.append((label, *_best_rate(found), f"{len(found)}/{len(runs)}", len(lost)))
    title = "Each model at its best learning rate: accuracy on the test split after the last epoch"
    title += ", mean over seeds" if len({case.seed for case in cases}) > 1 else ""
    title += ", chosen on the validation split" if validated else ""
    print_table(title, RESULTS, rows, whole=RESULTS[1:])
    for failure, count in failures.most_common(MOST_FAILURES):
        typer.echo(f"{count} {visible(failure)}")
    if len(failures) > MOST_FAILURES:
        typer.echo(
            f"and {len(failures) - MOST_FAILURES} other failures: basedbench list runs --results {quote(str(out))}"
        )
    say_retry((row["status"] for row in ended), "runs", fresh)
    if left:
        typer.echo(f"{left} runs are left; the same command without --limit {goes_on(fresh)}.")
    then = f" Next: basedbench plot pareto --results {quote(str(out))}" if any(row[2] for row in rows) else ""
    typer.echo(f"Rows: {out / 'recall'}.{then}")
    end(ended)
