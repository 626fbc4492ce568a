"""Compile the kernel of `row_linear` for a decode step's products; print what its code does.

    python -m tests.kernels.compiled.compile_row_linear

A JSON line for each: its plan, its stack, what is suspicious about it, its shared memory, and the positions of its
first bulk copy, its wait for the kernel in front, and its first write to global memory.
"""

import re
from typing import Any

import torch

from basedbench.kernels import row_linear_launch
from basedbench.kernels.row_linear import Plan, shared_bytes
from tests.kernels.compiled.disassembly import facts, tell
from tests.kernels.compiled.sass import register_count
from tests.kernels.compiled.target import pretend

PLANS = [
    (128, Plan(128, 128, 1, 5, 2, True)),
    (128, Plan(128, 64, 4, 9, 4, True)),
    (128, Plan(64, 64, 2, 6, 3, False)),
    (32, Plan(128, 128, 4, 6, 3, True)),
    (32, Plan(64, 128, 1, 5, 3, True)),
    (1, Plan(128, 256, 8, 3, 3, True)),
    (8, Plan(64, 128, 4, 6, 4, False)),
    (128, Plan(64, 128, 1, 8, 4, True, 4)),
    (128, Plan(64, 128, 1, 8, 4, True, 8)),
]
WITH_ENDS = [
    (128, Plan(64, 128, 1, 6, 4, True)),
    (128, Plan(64, 128, 4, 6, 4, True)),
    (8, Plan(64, 128, 4, 4, 4, False)),
    (128, Plan(64, 128, 1, 8, 4, True, 8)),
    (128, Plan(64, 128, 2, 4, 4, True, 2)),
]
PATTERNS = {"copy": "UTMALDG", "wait": "ACQBULK", "write": "STG|ATOMG|RED|REDG"}


def examined(kernel: Any, text: str) -> dict[str, Any]:
    """What the machine code says."""
    first = {word: re.search(rf"\b(?:{pattern})\b", text) for word, pattern in PATTERNS.items()}
    return {
        "early": kernel.metadata.launch_pdl,
        "registers": register_count(text),
        **facts(kernel, text),
        **{word: match and match.start() for word, match in first.items()},
    }


def ends(rows: int, plan: Plan) -> None:
    """The kernel with all that can stand between two products: norm and gate, norm and convolution, addition."""
    x, weight = torch.zeros((rows, 1792), dtype=torch.bfloat16), torch.zeros((1792, 1792), dtype=torch.bfloat16)
    stream, squares, bias = torch.zeros((rows, 1792)), torch.zeros((28, rows)), weight[0]
    taps, state = torch.zeros((896, 3), dtype=x.dtype), torch.zeros((rows, 896, 2), dtype=x.dtype)
    row_linear_launch.operator(x, weight, None, *plan, True, squares, 1e-5, True)
    row_linear_launch.conv_operator(x, weight, bias, taps, taps[:, 0].contiguous(), state, *plan, True, squares, 1e-5)
    row_linear_launch.onto_operator(x, weight, None, stream, bias, *plan, True)


def main() -> None:
    """Each plan as a dependent, with a bias, and one of them neither; some with all ends."""
    compiled = pretend()
    found: list[tuple[dict[str, Any], Any]] = []
    weight, bias = torch.zeros((1792, 1792), dtype=torch.bfloat16), torch.zeros(1792, dtype=torch.bfloat16)
    for early, plans in ((True, PLANS), (False, PLANS[:1])):
        for rows, plan in plans:
            compiled.clear()
            x = torch.zeros((rows, 1792), dtype=torch.bfloat16)
            row_linear_launch.operator(x, weight, bias if early else None, *plan, early)
            ((_, kernel),) = compiled.values()
            found.append(({"plan": str((rows, *plan)), "rings": shared_bytes(rows, plan)}, kernel))
    for rows, plan in WITH_ENDS:
        compiled.clear()
        ends(rows, plan)
        for end, (_, kernel) in zip(("gate", "conv", "add"), compiled.values(), strict=True):
            found.append(({"plan": f"{end} {(rows, *plan)}", "rings": shared_bytes(rows, plan)}, kernel))
    tell(found, examined)


if __name__ == "__main__":
    main()
