"""Compile every Triton kernel that operators launch for an H200, without a GPU; print a JSON line for each.

python -m tests.kernels.compiled.compile_variants taylor_attention ssd
python -m tests.kernels.compiled.compile_variants --every --all short_conv

--every: all variants of a kernel, otherwise the first that an operator launches. --all: read the machine code of all.
"""

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from basedbench.checking.operators import FORMS, arguments_of, sequence_results, step_results
from basedbench.checking.problems import AWKWARD, COVERAGE, Problem, problems_of
from basedbench.kernels import ssd_plan
from tests.kernels.compiled.disassembly import facts, tell
from tests.kernels.compiled.sass import waits_a_product
from tests.kernels.compiled.target import pretend

DESCRIPTORS = ("wgmma.", "cp.async.bulk")
# Short and long, whole tiles only and ragged: what kernels are specialised by, no longer than that takes.
LENGTHS = {"fwd": {2048: (64, 2048)}, "gradients": {17: (17,), 1000: (1000,), 2048: (64, 2048)}}


def variants(operator: str) -> Iterator[Problem]:
    """What is trained and decoded in bf16, in all widths and with all options at once; other dtypes in the main size.

    Forwards without gradients, which may be other kernels, at the main size alone, unless there is nothing else.
    """
    coverage = COVERAGE[operator]
    sizes, bare, full = (tuple(coverage.sizes[0].items()), coverage.options[0], coverage.options[-1])
    for problem in problems_of(operator):
        usual = (problem.sizes, problem.options) == (sizes, bare)
        if problem.dtype != "bf16":
            if usual and problem.length == AWKWARD and problem.mode in ("gradients", coverage.modes[-1]):
                yield problem
        elif problem.mode == "step":
            if problem.length == AWKWARD:
                yield replace(problem, length=17)
        elif usual:
            yield from (replace(problem, length=length) for length in LENGTHS[problem.mode].get(problem.length, ()))
        elif problem.options in (bare, full) and (problem.mode == "gradients" or coverage.modes == ("fwd",)):
            yield problem


def run(problem: Problem) -> None:
    """Call the public function as the check does."""
    given = arguments_of(problem, "cpu")
    if problem.mode == "step":
        step_results(problem, given)
    else:
        sequence_results(problem, FORMS[problem.operator].public, given)
        if problem.operator == "ssd":  # once more, as with many sequences
            before, ssd_plan.WALKS = ssd_plan.WALKS, 1
            sequence_results(problem, FORMS[problem.operator].public, given)
            ssd_plan.WALKS = before


def read_by_default(kernel: Any) -> bool:
    """Operands' descriptors, which the assembler gets wrong, are in kernels with warpgroup products or bulk copies."""
    return any(word in kernel.asm["ptx"] for word in DESCRIPTORS)


def examined(kernel: Any, text: str) -> dict[str, Any]:
    """Suspicious instructions, the size of the stack, and shared memory."""
    return {"waits": waits_a_product(text), **facts(kernel, text)}


def main(operators: list[str], *, every: bool, read_all: bool) -> None:
    """Compile and examine everything of these operators."""
    launched: set[tuple[str, str]] = set()

    def wanted(name: str) -> bool:
        one = problem.operator, name
        new = one not in launched
        launched.add(one)
        return every or new

    chosen = [problem for operator in operators for problem in variants(operator)]
    chosen.sort(key=lambda problem: problem.dtype != "bf16")  # what is trained, first
    compiled = pretend(wanted)
    found: list[tuple[dict[str, Any], Any]] = []
    seen: set[str] = set()
    reads = (lambda kernel: True) if read_all else read_by_default
    for problem in chosen:
        try:
            run(problem)
        except Exception as error:  # one that does not compile hides no other
            text = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            print(json.dumps({"kernel": "", "problem": problem.label, "failed": text}), flush=True)
        for name, kernel in (compiled[key] for key in compiled.keys() - seen):
            cell = {"kernel": name, "problem": problem.label, "dtype": problem.dtype, "read": reads(kernel)}
            found.append((cell, kernel))
        seen = set(compiled)
    tell(found, examined, code=reads)


if __name__ == "__main__":
    words = sys.argv[1:]
    operators = [word for word in words if not word.startswith("--")]
    main(operators, every="--every" in words, read_all="--all" in words)
