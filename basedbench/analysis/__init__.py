"""Numbers from result rows, without torch: the frontier, the selection of runs, the published points."""

from basedbench.analysis.columns import check_accuracy, larger_is_better, numbers, slices
from basedbench.analysis.frontier import hypervolume, pareto_front
from basedbench.analysis.published import against_published, published
from basedbench.analysis.selection import select, selection_note

__all__ = [
    "against_published",
    "check_accuracy",
    "hypervolume",
    "larger_is_better",
    "numbers",
    "pareto_front",
    "published",
    "select",
    "selection_note",
    "slices",
]
