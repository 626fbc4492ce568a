"""Operators of ours called with launches that do nothing, as if on a GPU, in memory that holds the worst of numbers.

    python -m tests.timing.dry_calls

Prints what went wrong. Tensors on the CPU claim to lie on a GPU, so that the public functions take their kernels;
memory that nobody wrote holds NaN, or the largest integer: an index read from it is out of range, and a CPU says so.
"""

import traceback
from collections.abc import Iterator
from typing import Any

import torch
from triton.runtime.jit import JITFunction

from basedbench.config.throughput import Case
from basedbench.kernels import partial_sums
from basedbench.timing.operator import OperatorSubject
from tests.contenders.conftest import FORMS, small
from tests.kernels.compiled.target import seem_there

# Widths and a length that some operators' kernels refuse leave these to the reference: nothing is launched then.
SHAPES = ((40, 16, 64), (600, 16, 64), (2048, 16, 64), (70, 64, 64))
REFUSED = {("taylor_attention", 64)}  # by the width of its keys
DECAYS = ("none", "head", "channel")


def cases() -> Iterator[Case]:
    """Short and long, in the dtypes with kernels of their own."""
    for operator, mode in FORMS:
        if operator == "attention" and mode != "decode":
            continue
        configs: list[dict[str, Any]] = [{}]
        if operator == "delta_rule":
            configs = [{"config": {"decay": decay}} for decay in DECAYS]
        for dtype in ("bf16", "fp32"):
            for length, key_dim, value_dim in SHAPES:
                for config in configs:
                    shape = {"length": length, "key_dim": key_dim, "value_dim": value_dim}
                    yield small(operator, mode, device="cuda", cache="cold", dtype=dtype, **shape, **config)


def main() -> None:
    """Call them all."""
    launched: list[str] = []
    seem_there()
    torch.use_deterministic_algorithms(True, warn_only=True)  # fills what is left empty
    JITFunction.run = lambda self, *_, **__: launched.append(self.fn.__name__)
    for case in cases():
        launched.clear()
        try:
            subject = OperatorSubject(case, "cpu")
            with torch.set_grad_enabled(subject.grad):
                subject.load()
                subject.start()
        except Exception:
            print(case.label, traceback.format_exc())
        if not launched and (case.operator, case.key_dim) not in REFUSED:
            print(case.label, "launched nothing")
        if partial_sums._open:
            print(case.label, "left sums to be added up")


if __name__ == "__main__":
    main()
