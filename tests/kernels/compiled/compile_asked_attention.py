"""Compile the kernels of asked attention for an H200 as Figure 2 trains them; a JSON line for each.

python -m tests.kernels.compiled.compile_asked_attention
"""

import json
import re
import subprocess
import tempfile
from typing import Any

import torch

from basedbench.kernels import sliding_window_asked, taylor_attention_asked
from basedbench.kernels.slices import cut
from tests.kernels.compiled.compile_variants import TOOL, pretend
from tests.kernels.compiled.sass import stack_bytes, unwritten_reads

# Window (0: Taylor), width of keys, width of values.
CELLS = ((0, 8, 48), (0, 16, 64), (0, 24, 128), (8, 128, 128), (64, 128, 128))
LENGTH, ASKED = 256, (16, 32, 64)


def examined(kernel: Any) -> dict[str, Any]:
    """Suspicious instructions, sizes, asynchronous copies, and accesses of single 16-bit numbers."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        command = [TOOL, "-res-usage", "-sass", file.name]
        dump = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {
        "stack": stack_bytes(dump),
        "suspicions": [str(one) for one in unwritten_reads(dump)],
        "shared": kernel.metadata.shared,
        "copies": len(re.findall(r"\bLDGSTS\b", dump)),
        "single": len(re.findall(r"\b(?:LDG|STG)\.E\.U16\b", dump)),
    }


def main() -> None:
    """One example is enough: what is compiled does not depend on their number."""
    compiled = pretend()
    torch.set_num_threads(1)
    for window, keys, values in CELLS:
        for asked in ASKED:
            compiled.clear()
            q = torch.zeros(1, asked, 1, keys, dtype=torch.bfloat16, requires_grad=True)
            kv = torch.zeros(1, LENGTH, keys + values, dtype=torch.bfloat16, requires_grad=True)
            k, v = (part.unflatten(-1, (1, -1)) for part in cut(kv, [keys, values]))
            positions = torch.arange(asked)[None]
            if window:
                y = sliding_window_asked(q, k, v, positions, window)
            else:
                y = taylor_attention_asked(q, k, v, positions)
            y.sum().backward()
            cell = {"window": window, "keys": keys, "values": values, "asked": asked}
            for name, kernel in compiled.values():
                print(json.dumps({"kernel": name, **cell, **examined(kernel)}), flush=True)


if __name__ == "__main__":
    main()
