"""The tables of the documentation that `basedbench results table` prints, each from the rows of a results folder."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

    Frame = pd.DataFrame | None  # the rows of a table's kind; None where there are none

GENERATION = ("published", "heads", "ratio", "memory", "prefill")  # sections of docs/TWENTYFOUR.md


@dataclass(frozen=True)
class Table:
    """What makes a table's text from rows, and the kind of these; None if it needs none."""

    make: Callable[["Frame"], str]
    kind: str | None

    def __call__(self, results: Path) -> str:
        """The table of a results folder."""
        return self.make(None if self.kind is None else _rows(results, self.kind))


def kernels(rows: "Frame", *, largest: bool = False) -> str:
    """Our kernels, the ceilings and the best peers; with `largest` only the largest case of each operator and mode."""
    from basedbench.analysis.kernels import kernel_table

    return kernel_table(rows, largest=largest)


def published(rows: "Frame") -> str:
    """The published recall points and ours."""
    from basedbench.analysis.reproduction import published_table

    return published_table(rows)


def rates(rows: "Frame") -> str:
    """Accuracy by learning rate of the models with published recall points."""
    from basedbench.analysis.reproduction import rates_table

    return rates_table(rows)


def parity(rows: "Frame") -> str:
    """Accuracy at fp32, tf32 and bf16."""
    from basedbench.analysis.parity import parity_table

    return parity_table(rows)


def states(_: "Frame") -> str:
    """The state sizes of every model in the recall suites."""
    from basedbench.training.state_table import state_table

    return state_table()


def generation(section: str, rows: "Frame") -> str:
    """One section of the page about the paper's 24x."""
    from basedbench.analysis.generation import generation_section

    return generation_section(section, rows)


TABLES: dict[str, Table] = {
    "kernels": Table(kernels, "throughput"),
    "largest-kernels": Table(partial(kernels, largest=True), "throughput"),
    "published": Table(published, "recall"),
    "rates": Table(rates, "recall"),
    "states": Table(states, None),
    "parity": Table(parity, "recall"),
} | {f"generation-{name}": Table(partial(generation, name), "throughput") for name in GENERATION}


def _rows(results: Path, kind: str) -> "Frame":
    from basedbench.store import dataset

    return dataset.load(results, kind, understood=True) if kind in dataset.kinds_in(results) else None
