"""An operator as a session times it: a contender's call on seeded inputs, held against the reference first."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from basedbench.config.throughput import Case
from basedbench.contenders import Call, Tensors, get_contender
from basedbench.contenders.costs import bytes_of, flops_of
from basedbench.timing.correctness import Verdict, check
from basedbench.timing.program import Begun, Program, first_run, inputs, program

# Inputs are rotated through so many sets, fewer where they would take up more memory than this.
INPUT_SETS = 3
INPUT_BYTES = {"cpu": 2**29, "cuda": 2**34}


class OperatorSubject:
    """One contender of an operator at one shape."""

    tensors: Tensors
    call: Call
    first: Program
    begun: Begun

    def __init__(self, case: Case, device: str) -> None:
        self.case, self.device = case, device
        self.contender = get_contender(case.contender)
        self.grad = case.mode == "fwd_bwd"

    def context(self) -> AbstractContextManager[object]:
        return self.contender.context(self.case)

    def load(self) -> None:
        self.tensors = inputs(self.case, 0, self.device)

    def start(self) -> None:
        self.call = self.contender.build(self.case)
        self.first, results = first_run(self.case, self.call, self._laid_out(self.tensors), self.device)
        self.begun = Begun.by(self.first, results)

    def check(self) -> Verdict:
        return check(self.case, self.contender, self.call, self.device, self.begun)

    def calls(self) -> list[Callable[[], object]]:
        sets = max(1, min(INPUT_SETS, INPUT_BYTES[self.case.device] // self.first.input_bytes))
        others = [self._program(inputs(self.case, index, self.device)) for index in range(1, sets)]
        return [one.timed for one in (self.first, *others)]

    def replayed(self, capture: Callable[[Callable[[], object]], Callable[[], object]]) -> list[Callable[[], object]]:
        return []

    def facts(self) -> dict[str, Any]:
        case = self.case
        return {
            "bytes": bytes_of(case),
            "flops": flops_of(case),
            "state_bytes": self.first.state_bytes // case.batch if case.mode == "decode" else None,
            "contender_version": self.contender.version,
        }

    def capacity(self, peak_bytes: int) -> dict[str, Any]:
        return {}

    def _program(self, tensors: Tensors) -> Program:
        return program(self.case, self.call, self._laid_out(tensors), self.begun.gradients)

    def _laid_out(self, tensors: Tensors) -> Tensors:
        return self.contender.layout(self.case, tensors)
