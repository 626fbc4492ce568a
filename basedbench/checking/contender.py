"""A plugin's contender, checked as `basedbench throughput` would before it times it, over lengths and dtypes."""

from collections.abc import Sequence
from typing import Any

import torch

from basedbench.checking.problems import COVERAGE, DTYPES, LENGTHS, STEP_LENGTHS, Mode, Problem, Sizes
from basedbench.config.throughput import OPERATOR_OPTIONS, Case
from basedbench.contenders import Contender, get_contender
from basedbench.timing.correctness import check

_SIZES: dict[str, tuple[Sizes, ...]] = {
    "attention": ({"H": 2, "K": 64, "V": 64}, {"H": 2, "K": 128, "V": 128}),
    **{name: coverage.sizes for name, coverage in COVERAGE.items()},
}
_AXES = {"H": "heads", "K": "key_dim", "V": "value_dim", "P": "value_dim", "N": "key_dim", "G": "groups"}
_MORE_AXES = {
    "sliding_window": {"W": "window"},
    "selective_scan": {"D": "value_dim"},
    "wkv4": {"D": "value_dim"},
    "short_conv": {"D": "value_dim", "W": "width"},
    "linear_cross_entropy": {"D": "key_dim"},
}
_MODES: dict[Mode, str] = {"fwd": "fwd", "gradients": "fwd_bwd", "step": "decode"}


def contender_problems(contenders: Sequence[Contender]) -> list[Problem]:
    """What is checked of contenders: their operators at every length and width, in each dtype and mode."""
    return [
        Problem(operator, mode, dtype, length, tuple(sizes.items()), contender=one.name)
        for one in contenders
        for operator in one.operators
        for mode in _MODES
        if not (mode == "step" and operator == "linear_cross_entropy")
        for sizes in _SIZES[operator]
        for length in (STEP_LENGTHS if mode == "step" else LENGTHS)
        for dtype in DTYPES
    ]


def case_of(problem: Problem, kind: str) -> Case:
    """The throughput case that asks the same of a contender."""
    axes = {(_AXES | _MORE_AXES.get(problem.operator, {}))[name]: value for name, value in problem.sizes}
    options = {name: axes.pop(name, default) for name, default in OPERATOR_OPTIONS.get(problem.operator, {}).items()}
    return Case.model_validate(
        {
            **axes,
            "operator": problem.operator,
            "contender": problem.contender,
            "mode": _MODES[problem.mode],
            "dtype": problem.dtype,
            "batch": 2,
            "length": problem.length,
            "config": options,
            "device": kind,
            "baseline": "reference",
        }
    )


def check_contender(problem: Problem, device: str) -> dict[str, Any]:
    """Error, bound and verdict; `skipped` with the reason where the contender says that this is beyond it."""
    case = case_of(problem, device.partition(":")[0])
    one = get_contender(case.contender)
    beyond = one.supports(case)
    if beyond:
        return {"verdict": "skipped", "reason": beyond}
    with torch.set_grad_enabled(case.mode == "fwd_bwd"):
        with one.context(case):
            call = one.build(case)
        found = check(case, one, call, device)
    return {
        "error": found.error,
        "bound": found.bound,
        "verdict": "WRONG" if found.reason else "ok",
        "reason": found.reason,
    }
