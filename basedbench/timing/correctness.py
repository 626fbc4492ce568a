"""Correctness before time: a contender's results against the PyTorch reference in float64, or no time is taken.

What is allowed is tied to what the same reference makes in the case's own dtype: twice its error plus a floor. Two
errors are looked at for every output, gradient and state: that of the whole tensor, ||x - truth|| / ||truth||, and
that of its worst row (last dimension), so that one wrong row in a long sequence does not vanish in the norm of the
others.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from basedbench.config.throughput import Case
from basedbench.contenders import Call, Contender, operator_of
from basedbench.contenders.costs import flops_of
from basedbench.contenders.operators import bind
from basedbench.timing.program import inputs, program

# Allowed beyond twice the reference's error, for whole tensors; a single row may be ROW_FACTOR times further out.
FLOOR = {"fp32": 1e-5, "bf16": 2e-3, "fp16": 5e-4}
ROW_FACTOR = 8
# Disagreements between yes-or-no outputs (which token is the largest), as a share of all.
FLAG_FLOOR = 0.01
# Above so many operations the truth is float32: float64 runs at a fraction of its speed.
FLOAT64_FLOPS = {"cpu": 5e10, "cuda": 2e12}


@dataclass(frozen=True)
class Verdict:
    """How far off the results are, how far they may be, and the truth they were held against."""

    error: float
    bound: float
    truth: str
    reason: str | None  # why the results are wrong, None if they are right


def check(case: Case, contender: Contender, call: Call, device: str) -> Verdict:
    """Run the contender on freshly drawn inputs and hold its results against the truth.

    Where the truth does not fit the device's memory, a single sequence is checked; `truth` says so.
    """
    try:
        return _check(case, contender, call, device)
    except torch.OutOfMemoryError:
        if case.batch == 1:
            raise
    torch.cuda.empty_cache()
    one = case.model_copy(update={"batch": 1})
    verdict = _check(one, contender, contender.build(one), device)
    return Verdict(verdict.error, verdict.bound, f"{verdict.truth}, at batch 1", verdict.reason)


def _check(case: Case, contender: Contender, call: Call, device: str) -> Verdict:
    dtype = torch.float64 if flops_of(case) <= FLOAT64_FLOPS[case.device] else torch.float32
    results = _results(case, contender, call, device)
    reference = bind(operator_of(case).reference, case)
    tensors = inputs(case, 0, device)
    truth = program(case, reference, tensors, device, dtype).results()
    same = program(case, reference, tensors, device).results()
    return judge(results, same, truth, case.dtype, str(dtype).removeprefix("torch."))


def _results(case: Case, contender: Contender, call: Call, device: str) -> dict[str, Tensor]:
    """The contender's results, in memory that held NaN before: a row that it does not write shows."""

    def run() -> dict[str, Tensor]:
        tensors = contender.layout(case, inputs(case, 0, device))
        return program(case, call, tensors, device).results()

    with contender.context(case):
        shapes = [(x.shape, x.dtype) for x in run().values() if x.is_floating_point()]
        poison = [torch.full(shape, math.nan, dtype=dtype, device=device) for shape, dtype in shapes]
        del poison
        return run()


def judge(
    results: dict[str, Tensor],
    same: dict[str, Tensor],
    truth: dict[str, Tensor],
    dtype: str,
    name: str,
    floor: float | None = None,
) -> Verdict:
    """The verdict over all results; the one that is furthest beyond its bound gives the reason.

    `floor` takes the place of the dtype's.
    """
    floor = FLOOR[dtype] if floor is None else floor
    if set(results) != set(truth):
        missing = ", ".join(sorted(set(truth) ^ set(results)))
        return Verdict(math.nan, 0.0, name, f"it does not return what the operator returns: {missing}")
    largest, allowed, worst, reason = 0.0, floor, 1.0, None
    for key, right in truth.items():
        if results[key].shape != right.shape:
            shapes = f"{tuple(results[key].shape)} where {tuple(right.shape)} is due"
            return Verdict(math.nan, 0.0, name, f"{key} has shape {shapes}")
        for kind, error, bound in _errors(results[key], same[key], right, floor):
            if kind == "relative error" and (error > largest or math.isnan(error)):
                largest, allowed = error, bound  # a NaN stays: nothing is larger
            if not error / bound <= worst:
                worst = math.inf if math.isnan(error) else error / bound
                reason = f"{key}: {kind} {error:.2g}, at most {bound:.2g} is allowed"
    return Verdict(largest, allowed, name, reason)


def _errors(result: Tensor, same: Tensor, truth: Tensor, floor: float) -> list[tuple[str, float, float]]:
    """(what, error, allowed) of one tensor."""
    if not truth.is_floating_point():
        share, own = (float((x != truth).double().mean()) for x in (result, same))
        return [("share of wrong values", share, 2 * own + FLAG_FLOOR)]
    (whole, row), (own_whole, own_row) = relative_errors(result, truth), relative_errors(same, truth)
    return [
        ("relative error", whole, 2 * own_whole + floor),
        ("relative error of the worst row", row, 2 * own_row + ROW_FACTOR * floor),
    ]


def relative_errors(result: Tensor, truth: Tensor) -> tuple[float, float]:
    """Of the whole tensor, and of its worst row relative to the larger of that row and the typical row."""
    rows = truth.double().reshape(-1, truth.shape[-1] if truth.dim() > 1 else 1)
    distance = (result.double().reshape(rows.shape) - rows).norm(dim=-1)
    size = rows.norm(dim=-1)
    typical = size.square().mean().sqrt().clamp_min(torch.finfo(torch.float64).tiny)
    whole = distance.square().mean().sqrt() / typical
    return float(whole), float((distance / size.clamp_min(typical)).max())
