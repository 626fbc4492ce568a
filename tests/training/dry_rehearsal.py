"""Every step of a recall run with launches that do nothing, as if on a GPU, in memory that holds the worst of numbers.

    python -m tests.training.dry_rehearsal

Prints what went wrong, of every mixer in the suites for GPUs. So do the processes that compile ahead; of all kernels
they launch only those that write what PyTorch reads as indices, which an interpreter does here.
"""

import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from triton.runtime.interpreter import InterpretedFunction
from triton.runtime.jit import JITFunction

from basedbench.config import load_suite
from basedbench.engines.compile_ahead import READ_BY_PYTORCH, distinct_models
from basedbench.kernels import partial_sums
from basedbench.timing.beside import compile_beside
from basedbench.training.cases import RecallCase, recall_cases
from basedbench.training.data import recall_data
from basedbench.training.run import RecallRun
from tests.kernels.compiled.target import seem_there

SUITES = ("figure2-full", "modern")
BATCH = 4


def cases() -> Iterator[RecallCase]:
    """The narrowest of every mixer, with a few examples of every length."""
    found: dict[str, RecallCase] = {}
    for suite in SUITES:
        for case in distinct_models(recall_cases(load_suite(suite))):
            if case.mixer not in found or case.d_model < found[case.mixer].d_model:
                found[case.mixer] = case
    for case in found.values():
        for precision in ("bf16", "fp32"):
            few = [part.model_copy(update={"examples": BATCH + 1}) for part in case.train.segments]
            train = {"segments": few, "batch_size": BATCH, "precision": precision}
            test = case.test.model_copy(update={"examples": BATCH})
            yield replace(case, train=case.train.model_copy(update=train), test=test)


def main() -> None:
    """Rehearse them all."""
    launched: list[str] = []

    def launch(self: Any, *arguments: Any, grid: Any, warmup: bool, **options: Any) -> None:
        launched.append(self.fn.__name__)
        if self.fn.__name__ in READ_BY_PYTORCH and not warmup:
            InterpretedFunction(self.fn)[grid](*arguments, **{"num_warps": 1} | options)

    seem_there()
    torch.use_deterministic_algorithms(True, warn_only=True)  # fills what is left empty
    JITFunction.run = launch
    for case in cases():
        launched.clear()
        try:
            RecallRun(case, recall_data(case, "cpu"), "cpu").rehearse(compile_for_nothing)
        except Exception:
            print(case.label, case.train.precision, traceback.format_exc())
        if not launched:
            print(case.label, "launched nothing")
        if partial_sums._open:
            print(case.label, "left sums to be added up")


def compile_for_nothing(steps: Callable[[], None]) -> None:
    """`compile_beside`, which says nothing of errors."""
    raised: list[Exception] = []

    def take() -> None:
        try:
            steps()
        except Exception as error:
            raised.append(error)

    compile_beside(take, "cpu", READ_BY_PYTORCH)
    if raised:
        raise raised[0]


if __name__ == "__main__":
    main()
