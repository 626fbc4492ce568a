"""One problem, checked on one device: drawn, computed by reference and by the public function, compared."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from basedbench.checking.operators import (
    FORMS,
    STEPS,
    arguments_of,
    sequence_results,
    step_reference,
    step_results,
    widened,
)
from basedbench.checking.problems import Problem
from basedbench.timing.errors import Finding, Results, compare

OPERATOR_NAMESPACE = "basedbench"  # where the Triton operators are registered with PyTorch


class _Watch(TorchDispatchMode):
    """Notes whether one of our Triton operators was called."""

    triton = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.triton |= func.namespace == OPERATOR_NAMESPACE
        return func(*args, **kwargs or {})


def check_kernel(problem: Problem, device: str) -> dict[str, Any]:
    """Which implementation took it, the error and its bound; raises what the implementation raises."""
    given = arguments_of(problem, device)
    stepping = problem.mode == "step"

    def ours() -> Results:
        public = FORMS[problem.operator].public
        return step_results(problem, given) if stepping else sequence_results(problem, public, given)

    def reference(arguments: dict[str, Any]) -> Results:
        if stepping:
            return step_reference(problem, arguments)
        return sequence_results(problem, FORMS[problem.operator].reference, arguments)

    results, implementation, repeatable = _computed(ours, device)
    truth, same = reference(widened(given)), reference(given)
    finding = compare(results, same, truth, problem.dtype, STEPS if stepping else problem.length)
    if finding.right and not repeatable:
        finding = Finding(math.nan, finding.bound, "two runs on the same inputs differ")
    return {"implementation": implementation} | verdict(finding)


def verdict(finding: Finding) -> dict[str, Any]:
    """A finding as columns of a row."""
    where = None if finding.right else finding.where
    return {
        "error": finding.error,
        "bound": finding.bound,
        "verdict": "ok" if finding.right else "WRONG",
        "reason": where,
    }


def _computed(run: Callable[[], Results], device: str) -> tuple[Results, str, bool]:
    """Results, who computed them, and whether a second run gives the same bits.

    The second run gets memory that held NaN before: a row that nobody writes shows. On a CPU there is one
    implementation, and running it twice would tell nothing.
    """
    if device == "cpu":
        return run(), "reference", True
    with _Watch() as watch:
        first = run()
    poison = [torch.full_like(x, math.nan) for x in first.values() if x.is_floating_point()]
    del poison
    second = run()
    torch.cuda.synchronize()
    return second, "triton" if watch.triton else "reference", not watch.triton or _equal(first, second)


def _equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return all(
        bool(((x == second[name]) | (x != x) & (second[name] != second[name])).all()) for name, x in first.items()
    )
