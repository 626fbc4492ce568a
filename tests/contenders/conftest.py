"""Small cases of every operator and mode."""

from typing import Any

from basedbench.config.throughput import OPERATOR_AXES, OPERATOR_OPTIONS, Case

FORMS = [
    (operator, mode)
    for operator in OPERATOR_AXES
    for mode in ("fwd", "fwd_bwd", "decode")
    if (operator, mode) != ("linear_cross_entropy", "decode")
]


def small(operator: str, mode: str, contender: str = "ours", **changes: Any) -> Case:
    """A case that takes milliseconds."""
    shape = {"batch": 2, "length": 40, "key_dim": 8, "value_dim": 6} | changes
    heads = 2 if "heads" in OPERATOR_AXES[operator] else 1
    return Case.model_validate(
        {"operator": operator, "mode": mode, "contender": contender, "heads": heads, "baseline": "reference"}
        | {"config": OPERATOR_OPTIONS.get(operator, {})}
        | shape
    )
