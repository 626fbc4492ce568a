"""Compile every Triton kernel that operators launch for an H200, without a GPU; print a JSON line for each.

    python -m tests.kernels.compiled.compile_variants taylor_attention ssd
    python -m tests.kernels.compiled.compile_variants --all short_conv

Triton asks its driver for the target: a stand-in answers "cuda, 90". Tensors on the CPU claim to lie on a GPU, so that
the public functions take their kernels, and launches only compile. What they compute is garbage; what they launch is
what they launch on a GPU.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from basedbench.checking.operators import FORMS, arguments_of, sequence_results, step_results
from basedbench.checking.problems import AWKWARD, COVERAGE, Problem, problems_of
from basedbench.kernels import ssd_plan
from tests.kernels.compiled.sass import stack_bytes, unwritten_reads, waits_a_product

TOOL = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
DESCRIPTORS = ("wgmma.", "cp.async.bulk")
# Short and long, whole tiles only and ragged: what kernels are specialised by, no longer than that takes.
LENGTHS = {"fwd": {2048: (64, 2048)}, "gradients": {17: (17,), 1000: (1000,), 2048: (64, 2048)}}


class Hopper:
    """What Triton wants to know of a driver in order to compile."""

    def get_current_device(self) -> int:
        return 0

    def set_current_device(self, device: int) -> None:
        pass

    def get_current_stream(self, device: int | None = None) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_active_torch_device(self) -> str:
        return "cpu"


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


def pretend() -> dict[str, tuple[str, Any]]:
    """From here on tensors seem to lie on a GPU and launches compile; returns what has been compiled, by hash."""
    triton.runtime.driver.set_active(Hopper())
    torch.Tensor.is_cuda = property(lambda self: True)  # type: ignore[assignment, misc]
    torch.cuda.get_device_capability = lambda device=None: (9, 0)  # type: ignore[assignment]
    compiled: dict[str, tuple[str, Any]] = {}
    compile_or_launch = JITFunction.run

    def only_compile(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        kernel = compile_or_launch(self, *args, grid=grid, warmup=True, **kwargs)
        compiled.setdefault(kernel.hash, (self.fn.__name__, kernel))
        return kernel

    JITFunction.run = only_compile
    return compiled


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


def disassembled(kernel: Any, *, code: bool = True) -> str:
    """What the disassembler prints: resources, and with `code` the instructions."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        command = [TOOL, "-res-usage", *(["-sass"] if code else []), file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def facts(kernel: Any, dump: str) -> dict[str, Any]:
    """What is asked of every kernel: its stack and shared memory, and instructions that read what nobody wrote."""
    suspicions = [str(one) for one in unwritten_reads(dump)]
    return {"stack": stack_bytes(dump), "suspicions": suspicions, "shared": kernel.metadata.shared}


def examined(name: str, kernel: Any, problem: Problem, *, read_all: bool) -> dict[str, Any]:
    """Suspicious instructions, the size of the stack, and shared memory.

    Disassembling takes as long as compiling, half a second. Operands' descriptors, which the assembler gets wrong, are
    only in kernels with warpgroup products or bulk copies: by default those are read.
    """
    reads = read_all or any(word in kernel.asm["ptx"] for word in DESCRIPTORS)
    dump = disassembled(kernel, code=reads)
    return {
        "kernel": name,
        "problem": problem.label,
        "dtype": problem.dtype,
        "read": reads,
        "waits": waits_a_product(dump),
        **facts(kernel, dump),
    }


def main(operators: list[str], *, read_all: bool) -> None:
    """Compile and examine everything of these operators."""
    chosen = [problem for operator in operators for problem in variants(operator)]
    compiled = pretend()
    torch.set_num_threads(1)
    seen: set[str] = set()
    for problem in chosen:
        try:
            run(problem)
        except Exception as error:  # one that does not compile hides no other
            text = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            print(json.dumps({"kernel": "", "problem": problem.label, "failed": text}), flush=True)
        for key in compiled.keys() - seen:
            print(json.dumps(examined(*compiled[key], problem, read_all=read_all)), flush=True)
        seen = set(compiled)


if __name__ == "__main__":
    words = sys.argv[1:]
    main([word for word in words if word != "--all"], read_all="--all" in words)
