"""The tables of the documentation that `basedbench results table` prints, each from the rows of a results folder."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

GENERATION = ("published", "heads", "ratio", "memory", "prefill")  # sections of docs/TWENTYFOUR.md


def kernels(results: Path, *, largest: bool = False) -> str:
    """Our kernels, the ceilings and the best peers."""
    from basedbench.analysis.kernels import kernel_table

    return kernel_table(_rows(results, "throughput"), largest=largest)


def published(results: Path) -> str:
    """The published recall points and ours."""
    from basedbench.analysis.reproduction import published_table

    return published_table(_rows(results, "recall"))


def rates(results: Path) -> str:
    """Accuracy by learning rate of the models with published recall points."""
    from basedbench.analysis.reproduction import rates_table

    return rates_table(_rows(results, "recall"))


def parity(results: Path) -> str:
    """Accuracy at fp32, tf32 and bf16."""
    from basedbench.analysis.parity import parity_table

    return parity_table(_rows(results, "recall"))


def states(_: Path) -> str:
    """The state sizes of every model in the recall suites; they need no rows."""
    from basedbench.training.state_table import state_table

    return state_table()


def generation(section: str, results: Path) -> str:
    """One section of the page about the paper's 24x."""
    from basedbench.analysis.generation import generation_section

    return generation_section(section, _rows(results, "throughput"))


def largest_kernels(results: Path) -> str:
    """Of each operator and mode of `kernels` the largest case."""
    return kernels(results, largest=True)


TABLES: dict[str, Callable[[Path], str]] = {
    "kernels": kernels,
    "largest-kernels": largest_kernels,
    "published": published,
    "rates": rates,
    "states": states,
    "parity": parity,
} | {f"generation-{name}": partial(generation, name) for name in GENERATION}

# The kind of result a table is made from; throughput's where nothing is said, and none for `states`.
KINDS = {"published": "recall", "rates": "recall", "parity": "recall", "states": None}


def _rows(results: Path, kind: str) -> "pd.DataFrame | None":
    """A folder's rows of a kind, None if it has none."""
    from basedbench.store import dataset

    return dataset.load(results, kind, understood=True) if kind in dataset.kinds_in(results) else None
