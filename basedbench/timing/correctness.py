"""Correctness before time: a contender's results against the PyTorch reference in float64, or no time is taken.

What is allowed is tied to what the same reference makes in the case's own dtype (see `errors`), for every output,
gradient and state. A contender computes its whole case; of a large one the reference computes a part (see `part`).
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from basedbench.config.throughput import Case
from basedbench.contenders import Call, Contender, Tensors
from basedbench.contenders.costs import flops_of
from basedbench.contenders.operators import operator_of, reference_call
from basedbench.timing.errors import FLOOR, Finding, Results, findings
from basedbench.timing.part import part_of
from basedbench.timing.program import Begun, Program, first_run, inputs, program

# Above so many operations the truth is float32: float64 runs at a fraction of its speed.
FLOAT64_FLOPS = {"cpu": 5e10, "cuda": 2e12}
# Times the floor, of a backward pass in 16 bits: kernels that keep states and inverses of chunks in 16 bits between its
# two halves round a third time. `check`, which judges our own, does not allow that.
GRADIENTS = 1.5
# Elements of an input that are summed at once: torch makes them 64 bits wide first, four times a 16-bit input.
SUMMED = 2**24
# The input set that is checked: not the one of the first call (0), whose results an implementation may have kept. It
# stands where another one stood in a call before, as what is kept may be known by the place of its inputs.
CHECKED_SET, EARLIER_SET = 1, 2
# In so many places at once what was wrong is tried again: two of them may be those of inputs gone by.
ELSEWHERE = 3


@dataclass(frozen=True)
class Verdict:
    """How far off the results are, how far they may be, and the truth they were held against."""

    error: float
    bound: float
    truth: str
    reason: str | None  # why the results are wrong, None if they are right
    in_full: bool = True  # False if memory was short, and a single sequence was checked


def check(case: Case, contender: Contender, call: Call, device: str, begun: Begun | None = None) -> Verdict:
    """Run the contender on freshly drawn inputs and hold its results against the truth.

    Where the truth does not fit the device's memory, a single sequence is checked; `truth` says so. A call that has run
    before need not once more for what is known of it.
    """
    try:
        return _check(case, contender, call, device, begun)
    except torch.OutOfMemoryError:
        if case.batch == 1:
            raise
    torch.cuda.empty_cache()
    one = case.model_copy(update={"batch": 1})
    verdict = _check(one, contender, contender.build(one), device)
    return replace(verdict, truth=f"{verdict.truth}, at batch 1", in_full=False)


def _check(case: Case, contender: Contender, call: Call, device: str, begun: Begun | None = None) -> Verdict:
    ran = _run(case, contender, call, device, begun)
    results = ran.results
    if ran.changed:
        return Verdict(math.nan, 0.0, "itself", f"it writes into its input {ran.changed[0]}")
    tensors = inputs(case, CHECKED_SET, device)
    part = part_of(case, tensors)
    share = 1.0
    if part is not None:
        if unwritten := [name for name, x in results.items() if x.is_floating_point() and not x.isfinite().all()]:
            return Verdict(math.nan, 0.0, "itself", f"{unwritten[0]}: values that are no finite numbers")
        results, tensors, share = part.results(results), part.inputs(tensors), part.share
    dtype = torch.float64 if share * flops_of(case) <= FLOAT64_FLOPS[case.device] else torch.float32
    reference = reference_call(case, case.batch * case.heads if part is None else part.pairs)
    truth = first_run(case, reference, tensors, device, dtype, part)[1]
    same = results if contender.name == "reference" else first_run(case, reference, tensors, device, part=part)[1]
    if late := [name for name, x in ran.results.items() if not torch.equal(_sum_of_bits(x), ran.sums[name])]:
        return Verdict(math.nan, 0.0, "itself", f"it returns before its work is done: {late[0]} changes afterwards")
    name = str(dtype).removeprefix("torch.") + ("" if part is None else f", {part.words}")
    found = judge(results, same, truth, case, name)
    if found.reason and contender.name != "reference":
        for results in _elsewhere(case, contender, call, device, ran.begun):
            if judge(results if part is None else part.results(results), same, truth, case, name).reason is None:
                kept = "it is right on inputs in a place of their own, so it may keep what it made of others there"
                return replace(found, reason=f"{kept}: {found.reason}")
    return found


def _elsewhere(case: Case, contender: Contender, call: Call, device: str, begun: Begun) -> Iterator[Tensors]:
    """What it makes of the checked inputs in places of their own, as far as there is memory and it does not fail."""
    with contender.context(case), suppress(Exception):
        for one in [_program(case, contender, call, device, begun, CHECKED_SET) for _ in range(ELSEWHERE)]:
            yield one.results()


@dataclass(frozen=True)
class _Ran:
    """What the contender's call on the checked inputs gave."""

    results: Tensors
    sums: Tensors  # of the bits of the results as they were at once
    changed: list[str]  # the inputs that it wrote into
    begun: Begun


def _run(case: Case, contender: Contender, call: Call, device: str, begun: Begun | None) -> _Ran:
    """The contender's results, in memory that held NaN before: a row that it does not write shows.

    And the inputs that it changed: its next call would compute something else. Its inputs are written over those of a
    call before, without a word to autograd: what it kept of these would be wrong.
    """
    with contender.context(case):
        if begun is None:
            begun = Begun.by(*first_run(case, call, contender.layout(case, inputs(case, 0, device)), device))
        ready = _program(case, contender, call, device, begun, EARLIER_SET)
        ready.run()
        laid = contender.layout(case, inputs(case, CHECKED_SET, device))
        if any(x.shape != ready.tensors[name].shape for name, x in laid.items()):  # that depend on the values
            ready = program(case, call, laid, begun.gradients)
        else:
            _write_over(ready, laid)
        fixed = {name: ready.tensors[name] for name in laid if name not in operator_of(case).states}
        del laid
        before = {name: _sum_of_bits(x) for name, x in fixed.items()}
        poison = [torch.full(shape, math.nan, dtype=dtype, device=device) for shape, dtype in begun.shapes]
        del poison
        results = ready.results()
        sums = {name: _sum_of_bits(x) for name, x in results.items()}
        changed = [name for name, x in fixed.items() if not torch.equal(_sum_of_bits(x), before[name])]
        return _Ran(results, sums, changed, begun)


def _program(case: Case, contender: Contender, call: Call, device: str, begun: Begun, index: int) -> Program:
    """The call on an input set of its own."""
    return program(case, call, contender.layout(case, inputs(case, index, device)), begun.gradients)


def _write_over(ready: Program, tensors: Tensors) -> None:
    """Other values in the place of its inputs, of which a layout may have several elements in one place."""
    for name, x in tensors.items():
        own = ready.tensors[name].data
        repeated = [axis for axis in range(own.dim()) if own.stride(axis) == 0 and own.size(axis)]
        for axis in repeated:
            own, x = own.narrow(axis, 0, 1), x.narrow(axis, 0, 1)
        own.copy_(x)


def _sum_of_bits(x: Tensor) -> Tensor:
    """A number that a change of `x` changes too, another order as well; no copy of a large one is made."""
    whole = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    plain = torch.view_as_real(x.detach().resolve_conj()) if x.is_complex() else x.detach().resolve_neg()
    bits = torch.atleast_1d(plain.view(whole[plain.element_size()]))
    longest = max(range(bits.dim()), key=bits.size)
    parts = bits.split(max(1, SUMMED * bits.size(longest) // max(1, bits.numel())), longest)
    sums = torch.stack([_by_place(part.reshape(-1).to(torch.int64)).sum(dtype=torch.int64) for part in parts])
    return _by_place(sums).sum()


def _by_place(numbers: Tensor) -> Tensor:
    """Each times an odd number of its own, modulo 2^64: another number in a place, or in another, is another term."""
    return torch.arange(len(numbers), device=numbers.device).mul_(2).add_(1).mul_(numbers)


def judge(results: Results, same: Results, truth: Results, case: Case, name: str) -> Verdict:
    """The verdict over all results; the one that is furthest beyond its bound gives the reason."""
    floor = FLOOR[case.dtype] * (GRADIENTS if case.mode == "fwd_bwd" and case.dtype != "fp32" else 1)
    length = 0 if case.mode == "decode" else case.length
    return verdict(findings(results, same, truth, case.dtype, length, floor), name)


def verdict(found: Sequence[Finding], name: str) -> Verdict:
    """The verdict on findings; `name` is the truth's."""
    worst = max(found, key=lambda one: one.excess)
    largest = max((one for one in found if one.whole), key=_size, default=worst)
    reason = (
        worst.where
        if worst.absent
        else f"{worst.where}: {worst.measure} {worst.error:.2g}, at most {worst.bound:.2g} is allowed"
    )
    return Verdict(largest.error, largest.bound, name, None if worst.right else reason)


def _size(finding: Finding) -> float:
    """A NaN is the largest of all."""
    return math.inf if math.isnan(finding.error) else finding.error
