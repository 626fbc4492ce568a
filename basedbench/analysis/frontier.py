"""The frontier: the points that no other point beats at once in cost and in recall, and the area it encloses.

Point a dominates point b if it is at least as good in x and in y and better in one of them. Hypervolume: Zitzler and
Thiele, "Multiobjective evolutionary algorithms: a comparative case study and the strength Pareto approach", 1999.
"""

import numpy as np
import pandas as pd

from basedbench.analysis.columns import larger_is_better, numbers


def pareto_front(
    frame: pd.DataFrame,
    x: str = "state_bytes",
    y: str = "accuracy",
    minimise_x: bool | None = None,
    maximise_y: bool | None = None,
) -> pd.DataFrame:
    """The rows that no other row dominates, sorted by x.

    Directions left at None follow from the names: bytes, seconds and parameters are better small; accuracies and rates
    (`_per_s`) better large. Rows with NaN in x or y are ignored, and those whose `status` is not ok, if there is such a
    column; of rows equal in both the first is kept.
    Raises UserError for a name that is no numeric column and no slice (`accuracy@256`) of the rows.
    """
    cost, gain = _cost_and_gain(frame, x, y, minimise_x, maximise_y)
    ok = (frame["status"] == "ok").to_numpy() if "status" in frame.columns else True
    known = np.flatnonzero(~(np.isnan(cost) | np.isnan(gain)) & ok)
    by_cost = known[np.lexsort((-gain[known], cost[known]))]  # stable: of equals, the first comes first
    best_before = np.maximum.accumulate(np.concatenate(([-np.inf], gain[by_cost])))[:-1]
    kept = by_cost[gain[by_cost] > best_before]
    return frame.iloc[kept if _minimise(x, minimise_x) else kept[::-1]]


def hypervolume(
    frame: pd.DataFrame,
    x: str,
    y: str,
    reference: tuple[float, float],
    log_x: bool = True,
    minimise_x: bool | None = None,
    maximise_y: bool | None = None,
) -> float:
    """The area between the frontier and `reference` (the worst x and the worst y that count), in decades of x times y.

    With log_x=False the unit is that of x times y. Rows that are no better than the reference in x and y add nothing,
    nor do rows with x <= 0 on a logarithmic axis. Raises ValueError for a reference x <= 0 with log_x.
    """
    if log_x and reference[0] <= 0:
        raise ValueError(f"reference x is {reference[0]}; a logarithmic axis needs a positive one.")
    counted = frame[numbers(frame, x) > 0] if log_x else frame
    front = pareto_front(counted, x, y, minimise_x, maximise_y)
    cost, gain = _cost_and_gain(front, x, y, minimise_x, maximise_y, log_x)
    corner = pd.DataFrame({x: [float(reference[0])], y: [float(reference[1])]})
    worst_cost, worst_gain = (side[0] for side in _cost_and_gain(corner, x, y, minimise_x, maximise_y, log_x))
    inside = (cost < worst_cost) & (gain > worst_gain)
    by_cost = np.argsort(cost[inside])
    steps = np.diff(gain[inside][by_cost], prepend=worst_gain)
    return float(np.sum((worst_cost - cost[inside][by_cost]) * steps))


def _minimise(name: str, given: bool | None) -> bool:
    return not larger_is_better(name) if given is None else given


def _cost_and_gain(
    frame: pd.DataFrame, x: str, y: str, minimise_x: bool | None, maximise_y: bool | None, log_x: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """x and y turned so that a smaller first and a larger second are better."""
    cost, gain = numbers(frame, x).to_numpy(), numbers(frame, y).to_numpy()
    cost = np.log10(cost) if log_x else cost
    maximise = larger_is_better(y) if maximise_y is None else maximise_y
    return cost if _minimise(x, minimise_x) else -cost, gain if maximise else -gain
