"""Tables of `basedbench recall`: what would run, and what came out."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from basedbench.plots.scales import quantity
from basedbench.cli.progress import clock
from basedbench.cli.recall_input import places
from basedbench.models.state import state_bytes, state_bytes_paper, state_bytes_zoology
from basedbench.store import Store
from basedbench.training.cases import RecallCase
from basedbench.training.cost import estimated_seconds
from basedbench.training.run import build_model


def plan_table(cases: Sequence[RecallCase], devices: Sequence[str], jobs: int | None, out: Path) -> None:
    """Print the models of a sweep with their runs, parameters, state sizes and a rough time."""
    finished = Store(out).finished("recall")
    table = Table(title=f"{len(cases)} runs at L = {cases[0].longest}")
    for name in ("model", "runs", "done", "parameters", "state", "zoology", "paper", "time"):
        table.add_column(name, justify="left" if name == "model" else "right")
    total_s = 0.0
    for label, runs in by_model(cases).items():
        model = build_model(runs[0])
        length = runs[0].longest
        done = sum((case.suite, case.case_id) in finished for case in runs)
        seconds = sum(estimated_seconds(case, devices[0]) for case in runs)
        total_s += seconds * (len(runs) - done) / len(runs)
        sizes = (f(model, length) for f in (state_bytes, state_bytes_zoology, state_bytes_paper))
        table.add_row(
            label, str(len(runs)), str(done), f"{model.parameters_count():,}", *(quantity(size, "bytes") for size in sizes), clock(seconds)
        )
    console = Console()
    console.print(table)
    spots = places(devices, jobs)
    side_by_side = len(spots) if devices[0] == "cpu" else len(devices)
    console.print(
        f"About {clock(total_s / side_by_side)} for what is left on {', '.join(devices)}, at a rough guess. Nothing was run.",
        highlight=False,
    )


def by_model(cases: Sequence[RecallCase]) -> dict[str, list[RecallCase]]:
    """The runs of each model, in order."""
    models: dict[str, list[RecallCase]] = {}
    for case in cases:
        models.setdefault(case.model_label, []).append(case)
    return models


def results_table(cases: Sequence[RecallCase], out: Path, left: int) -> None:
    """Print the best run of every model, and what to do next."""
    rows = {case.case_id: Store(out).row("recall", case.suite, case.case_id) for case in cases}
    table = Table(title="Best run of each model (last epoch, on the test split)")
    for name in ("model", "state", "accuracy", "at lr", "runs", "failed"):
        table.add_column(name, justify="left" if name == "model" else "right")
    for label, runs in by_model(cases).items():
        found = [row for case in runs if (row := rows[case.case_id]) is not None]
        good = [row for row in found if row["status"] == "ok"]
        best = max(good, key=lambda row: row["accuracy"], default=None)
        shown = (quantity(best["state_bytes"], "bytes"), f"{best['accuracy']:.3f}", f"{best['learning_rate']:g}") if best else ("", "", "")
        table.add_row(label, *shown, f"{len(found)}/{len(runs)}", str(len(found) - len(good) or ""))
    console = Console()
    console.print(table)
    if left:
        console.print(f"{left} runs are left; the same command without --limit goes on.", highlight=False)
    console.print(f"Rows: {out / 'recall'}. Next: basedbench plot pareto --results {out}", highlight=False, soft_wrap=True)
