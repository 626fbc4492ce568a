"""Compile the kernel of `row_linear` for a decode step's products; print what its code does.

    python -m tests.kernels.compiled.compile_row_linear

A JSON line for each: its plan, its stack, what is suspicious about it, its shared memory, and the positions of its
first bulk copy, its wait for the kernel in front, and its first other access to global memory.
"""

import json
import re
import subprocess
import tempfile
from typing import Any

import torch

from basedbench.kernels import row_linear_launch
from basedbench.kernels.row_linear import Plan, shared_bytes
from tests.kernels.compiled.compile_variants import TOOL, pretend
from tests.kernels.compiled.sass import stack_bytes, unwritten_reads

PLANS = [
    (128, Plan(128, 128, 1, 5, 2, True)),
    (128, Plan(128, 64, 4, 9, 4, True)),
    (128, Plan(64, 64, 2, 6, 3, False)),
    (32, Plan(128, 128, 4, 6, 3, True)),
    (32, Plan(64, 128, 1, 5, 3, True)),
    (1, Plan(128, 256, 8, 3, 3, True)),
    (8, Plan(64, 128, 4, 6, 4, False)),
]
PATTERNS = {"copy": "UTMALDG", "wait": "ACQBULK", "access": "LDG|STG|LDGSTS|ATOMG|RED"}


def examined(kernel: Any) -> dict[str, Any]:
    """What the machine code says."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        command = [TOOL, "-res-usage", "-sass", file.name]
        dump = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    first = {word: re.search(rf"\b(?:{pattern})\b", dump) for word, pattern in PATTERNS.items()}
    return {
        "early": kernel.metadata.launch_pdl,
        "stack": stack_bytes(dump),
        "suspicions": [str(one) for one in unwritten_reads(dump)],
        "shared": kernel.metadata.shared,
        **{word: match and match.start() for word, match in first.items()},
    }


def main() -> None:
    """Each plan as a dependent, with a bias, and one of them neither."""
    compiled = pretend()
    torch.set_num_threads(1)
    weight, bias = torch.zeros((1792, 1792), dtype=torch.bfloat16), torch.zeros(1792, dtype=torch.bfloat16)
    for early, plans in ((True, PLANS), (False, PLANS[:1])):
        for rows, plan in plans:
            compiled.clear()
            x = torch.zeros((rows, 1792), dtype=torch.bfloat16)
            row_linear_launch.operator(x, weight, bias if early else None, *plan, early)
            ((_, kernel),) = compiled.values()
            found = {"plan": str((rows, *plan)), "rings": shared_bytes(rows, plan), **examined(kernel)}
            print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
