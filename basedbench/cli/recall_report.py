"""Tables of `basedbench recall`: what would run, and what came out."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import typer

from basedbench.cli.progress import clock
from basedbench.cli.recall_input import places
from basedbench.cli.tables import print_json, print_table
from basedbench.cli.time_limit import goes_on
from basedbench.errors import UserError, sentence, visible
from basedbench.plots.scales import quantity
from basedbench.store.dataset import finished
from basedbench.store.dataset import rows as stored_rows
from basedbench.store.schema import decode_json
from basedbench.streams import stdout_to_stderr
from basedbench.timing.failures import shorten
from basedbench.training.cases import RecallCase
from basedbench.training.cost import estimate
from basedbench.training.rows import model_sizes

PLAN = ("model", "runs", "done", "parameters", "state", "zoology", "paper", "time")
STATES = ("state_bytes", "state_bytes_zoology", "state_bytes_paper")
RESULTS = ("model", "state", "accuracy", "at lr", "runs", "failed")
MOST_FAILURES = 5  # told in full at the end


def plan_table(cases: Sequence[RecallCase], devices: Sequence[str], jobs: int | None, out: Path) -> None:
    """Print the models of a sweep with their runs, parameters, state sizes and a rough time."""
    done_before = finished(out, "recall")
    rows, total_s, any_guess = [], 0.0, False
    for label, runs in by_model(cases).items():
        sizes = measured(runs[0])
        done = sum((case.suite, case.case_id) in done_before for case in runs)
        one = estimate(runs[0], devices[0])
        total_s += one.seconds * (len(runs) - done)
        any_guess |= one.guessed
        shown = (quantity(sizes[name], "bytes") for name in STATES)
        rows.append(
            (
                label,
                len(runs),
                done,
                sizes["parameters"],
                *shown,
                clock(one.seconds * len(runs)) + " ?" * one.guessed,
            )
        )
    print_table(f"{len(cases)} runs; state sizes at length {cases[0].longest}", PLAN, rows, whole=PLAN[1:])
    side_by_side = len(places(devices, jobs)) if devices[0] == "cpu" else len(devices)
    left = f"{clock(total_s / side_by_side)} for what is left on {', '.join(devices)}"
    if any_guess:
        typer.echo("?: a guess, for nobody has timed this mixer's runs on such a device.")
    typer.echo(f"Roughly {left}, less where runs stop early. Nothing was run.")


def plan_json(cases: Sequence[RecallCase], out: Path) -> None:
    """Every run with its case id, whether it has a row, and its model's sizes."""
    done_before = finished(out, "recall")
    plan = []
    for runs in by_model(cases).values():
        sizes = measured(runs[0])
        with stdout_to_stderr():  # for the labels a mixer looks at options
            named = [(case, case.label) for case in runs]
        for case, label in named:
            done = (case.suite, case.case_id) in done_before
            plan.append(case.meaning() | {"label": label, "case_id": case.case_id, "done": done} | sizes)
    print_json(plan)


def measured(case: RecallCase) -> dict[str, int]:
    """Parameters and state sizes of a run's model; UserError if it cannot be built or its state not be begun."""
    try:
        with stdout_to_stderr():
            return model_sizes(case)
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        check = f"`basedbench check mixer {case.mixer}` looks at the mixer alone"
        raise UserError(
            f"the model {case.model_label!r} cannot be built here: {shorten(sentence(error))}; {check}."
        ) from None


def results_json(cases: Sequence[RecallCase], out: Path) -> None:
    """The stored row of every run that has one."""
    stored = {(row["suite"], row["case_id"]): row for row in stored_rows(out, "recall")}
    found = [row for case in cases if (row := stored.get((case.suite, case.case_id)))]
    print_json([decode_json({name: value for name, value in row.items() if name != "fingerprint"}) for row in found])


@stdout_to_stderr()
def by_model(cases: Sequence[RecallCase]) -> dict[str, list[RecallCase]]:
    """The runs of each model, in order; models that only their stacks tell apart have these in their names."""
    models: dict[tuple[str, str], list[RecallCase]] = {}
    for case in cases:
        models.setdefault((case.model_label, case.layer_mixers), []).append(case)
    count = Counter(label for label, _ in models)
    return {f"{label} ({stack})" if count[label] > 1 else label: runs for (label, stack), runs in models.items()}


def results_table(cases: Sequence[RecallCase], out: Path, left: int, fresh: bool = False) -> None:
    """Print the best run of every model, and what to do next."""
    stored = {(row["suite"], row["case_id"]): row for row in stored_rows(out, "recall", understood=True)}
    validated = cases[0].test.select == "validation"
    chosen_on = "validation_accuracy" if validated else "accuracy"
    rows = []
    failures: Counter[str] = Counter()
    for label, runs in by_model(cases).items():
        found = [row for case in runs if (row := stored.get((case.suite, case.case_id)))]
        good = [row for row in found if row["status"] == "ok"]
        lost = [row for row in found if row["status"] != "ok"]
        failures.update(f"{row['status']}: {row['reason'] or row['stop_reason']}" for row in lost)
        best = max(good, key=lambda row: row[chosen_on], default=None)
        shown: tuple[str | None, ...] = (None, None, None)
        if best:
            shown = (quantity(best["state_bytes"], "bytes"), f"{best['accuracy']:.3f}", f"{best['learning_rate']:.4g}")
        rows.append((label, *shown, f"{len(found)}/{len(runs)}", len(lost)))
    title = "Best run of each model: accuracy on the test split after its last epoch"
    title += ", chosen on the validation split" if validated else ""
    print_table(title, RESULTS, rows, whole=RESULTS[1:])
    for failure, count in failures.most_common(MOST_FAILURES):
        typer.echo(f"{count} {visible(failure)}")
    if len(failures) > MOST_FAILURES:
        typer.echo(f"and {len(failures) - MOST_FAILURES} other failures: basedbench list runs --results {out}")
    if left:
        typer.echo(f"{left} runs are left; the same command without --limit {goes_on(fresh)}.")
    then = f" Next: basedbench plot pareto --results {out}" if any(row[2] for row in rows) else ""
    typer.echo(f"Rows: {out / 'recall'}.{then}")
